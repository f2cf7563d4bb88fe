"""A cluster in memory: several runners and clients in one event loop, on one store and one network.

Everything but the database and the sockets is what production runs: ownership, routing, activation, turns, commits.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import msgspec

from actorhub.cluster import Cluster, part_of
from actorhub.core.address import ShardId
from actorhub.core.clock import Clock, SystemClock
from actorhub.core.config import HostPort, Settings
from actorhub.core.envelope import PROTOCOL_VERSION, Hello
from actorhub.core.option_types import annotations_of, check_types
from actorhub.engine.client_node import ClientNode
from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.engine.model.limits import Limits
from actorhub.engine.ownership.plan import desired_shards
from actorhub.engine.runner import Runner
from actorhub.hub import VERSION, Hub
from actorhub.storage.memory import MemoryStorage, MemoryStore
from actorhub.storage.ports import StoredState
from actorhub.transport.memory import MemoryNetwork, MemoryTransport
from actorhub.transport.outbox import LinkLimits

_POLL: Final = 0.002
"""Seconds between two looks at a condition that has no event."""
_CONNECT_DEADLINE: Final = 5.0


async def until(condition: Callable[[], bool], what: str = "the condition", *, deadline: float = 10.0) -> None:
    """Return once `condition()` holds.

    Args:
        condition: An ordinary function, asked in short intervals.
        what: Names it in the error.
        deadline: Seconds.

    Raises:
        TimeoutError: it did not hold in time.
        TypeError: the condition is async: a coroutine counts as true, whatever it would return.
    """
    try:
        async with asyncio.timeout(deadline):
            while not _holds(condition):  # noqa: ASYNC110 - what is waited for may live anywhere
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise TimeoutError(f"{what} did not hold within {deadline:g} s") from None


def _holds(condition: Callable[[], bool]) -> bool:
    found: object = condition()
    if inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()
        raise TypeError("until takes an ordinary function, and this one is async: await in a loop of your own instead")
    return bool(found)


class _Process:
    """One runner or client, and how it ends."""

    def __init__(self, cluster: Cluster, stack: AsyncExitStack, transport: MemoryTransport) -> None:
        self.cluster = cluster
        self.stack = stack
        self.transport = transport


class MemoryCluster:
    """Runners and clients in one event loop; leaving the block ends all of them.

    Example:
        async with MemoryCluster(hub) as memory:
            runner = await memory.start_runner()
            client = await memory.client()
            assert await client.client(Orders)("ada").count() == 0
    """

    def __init__(self, hub: Hub, *, settings: Settings | None = None, clock: Clock | None = None) -> None:
        """Prepare an empty cluster.

        Args:
            hub: What runners host and clients call, where no other hub is given.
            settings: Limits, grace and number of shards; default is 16 shards per group and 2 s grace.
            clock: Time and chance; default is the system's.

        Raises:
            TypeError: An argument is of another type. The text names it.
        """
        check_types(
            "MemoryCluster", annotations_of(MemoryCluster.__init__), {"hub": hub, "settings": settings, "clock": clock}
        )
        self.hub = hub
        self.hubs = [hub]
        """Every hub that was given, to the cluster or to one of its runners or clients."""
        self.settings = settings or Settings(shards_per_group=16, grace=timedelta(seconds=2))
        self.clock = clock or SystemClock()
        self.store = MemoryStore(self.clock)
        """What the database would keep."""
        self.network = MemoryNetwork()
        """What connects the processes; `cut`, `hold`, `delay` and `lose_next` are its faults."""
        self._processes: dict[Cluster, _Process] = {}
        self._started = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for cluster in self.clients + self.runners:
            await self.stop(cluster)

    @property
    def runners(self) -> list[Cluster]:
        """The runners that were started and neither stopped nor killed, oldest first."""
        return [cluster for cluster in self._processes if isinstance(part_of(cluster), Runner)]

    @property
    def clients(self) -> list[Cluster]:
        """The clients that were opened and not stopped."""
        return [cluster for cluster in self._processes if isinstance(part_of(cluster), ClientNode)]

    @property
    def cluster(self) -> Cluster:
        """The first of the clients: what a program has that called `hub.connect()`.

        Raises:
            RuntimeError: there is none.
        """
        if not (clients := self.clients):
            raise RuntimeError("this cluster has no client: await client() first")
        return clients[0]

    async def start_runner(
        self, *, hub: Hub | None = None, weight: float = 1.0, groups: tuple[str, ...] | None = None
    ) -> Cluster:
        """Start a runner; when this returns it serves, but may not have its full share of the shards (`settled`)."""
        self._started += 1
        hub = self._known(hub)
        port = HostPort("127.0.0.1", self._started)
        settings = msgspec.structs.replace(
            self.settings, listen=port, weight=weight, groups=groups if groups is not None else self.settings.groups
        )
        transport = self._transport(str(port))
        stack = AsyncExitStack()
        try:
            cluster = await hub.assemble(
                settings,
                stack,
                clock=self.clock,
                storage=MemoryStorage(self.store),
                transport=transport,
                acceptor=LinkAcceptor(),
            )
        except BaseException:
            await stack.aclose()
            raise
        self._processes[cluster] = _Process(cluster, stack, transport)
        return cluster

    async def client(self, *, hub: Hub | None = None) -> Cluster:
        """Open a client that is linked to some runner, or wait for one.

        Raises:
            RunnerUnavailable: no runner answered within 5 s.
        """
        from actorhub.ops import telemetry  # noqa: PLC0415 - gRPC loads when first used: importing the kit stays fast

        specs = self._known(hub).specs
        transport = self._transport("", machine_id_wanted=True)

        async def registered() -> list[str]:
            return [row.info.runner.address for row in self.store.runners()]

        client = ClientNode(
            find_runners=registered,
            specs=specs,
            transport=transport,
            clock=self.clock,
            incarnation=transport.hello.incarnation,
            limits=Limits(
                max_message_bytes=self.settings.max_message_bytes,
                max_entity_id_bytes=self.settings.max_entity_id_bytes,
                max_call_depth=self.settings.max_call_depth,
            ),
        )
        telemetry.observe_client(client, VERSION)
        cluster = Cluster(client, specs)
        stack = AsyncExitStack()
        stack.push_async_callback(client.leave, 1.0)
        try:
            await client.start(_CONNECT_DEADLINE)
        except BaseException:
            await stack.aclose()
            raise
        self._processes[cluster] = _Process(cluster, stack, transport)
        return cluster

    async def stop(self, process: Cluster) -> None:
        """Let a runner or client leave as SIGTERM does: hand over, finish, end."""
        await self._processes.pop(process).stack.aclose()

    async def kill(self, runner: Cluster) -> None:
        """End a runner as SIGKILL does: links break, locks are freed, and it commits and says nothing more."""
        killed = self._processes.pop(runner)
        part = part_of(runner)
        part.node.closed = True
        part.node.connector.want(())
        self.network.drop(killed.transport.name)
        self.store.terminate_sessions(part.node.incarnation)
        part.node.deadlines.close()
        if isinstance(part, Runner):
            part.watch.stop()
            await part.storage.aclose()
            await part.host.carriers.aclose()
        await part.node.supervisor.aclose(1.0)
        await killed.transport.aclose(0.0)

    def cut(self, a: Cluster, b: Cluster) -> None:
        """Break the link between two processes and refuse new ones until `heal`; what was under way is lost."""
        self.network.cut(self.name_of(a), self.name_of(b))

    def heal(self, a: Cluster, b: Cluster) -> None:
        """Undo `cut`; the link comes back by itself."""
        self.network.heal(self.name_of(a), self.name_of(b))

    def name_of(self, process: Cluster) -> str:
        """Return what `network` calls a runner or client."""
        return self._processes[process].transport.name

    async def settled(self, *, deadline: float = 10.0) -> None:
        """Wait until the live runners own all shards in fair shares, nothing moves, and every process knows it.

        Raises:
            TimeoutError: that did not come about within `deadline` seconds.
        """
        await until(self._is_settled, "fair ownership that every process knows", deadline=deadline)

    def owners(self) -> Mapping[ShardId, list[Cluster]]:
        """Return which live runners hold each shard; more than one only while a former owner does not know yet."""
        owners: dict[ShardId, list[Cluster]] = {}
        for cluster in self.runners:
            for shard in _runner(cluster).ownership.owned:
                owners.setdefault(shard, []).append(cluster)
        return owners

    def owner_of(self, shard: ShardId) -> Cluster | None:
        """Return the live runner that the store names as the shard's owner."""
        for row in self.store.shards():
            if row.shard == shard and row.owner is not None:
                for cluster in self.runners:
                    if cluster.runner == row.owner.runner:
                        return cluster
        return None

    def stored(self, entity_type: str, entity_id: str) -> StoredState | None:
        """Return what the store has of an entity."""
        return self.store.load((entity_type, entity_id))

    def overwrite(self, entity_type: str, entity_id: str, state: StoredState) -> None:
        """Write an entity's state past its owner, as somebody with psql can."""
        self.store.overwrite((entity_type, entity_id), state)

    def _known(self, hub: Hub | None) -> Hub:
        check_types("MemoryCluster", annotations_of(MemoryCluster.start_runner), {"hub": hub})
        if hub is None:
            return self.hub
        if hub not in self.hubs:
            self.hubs.append(hub)
        return hub

    def _transport(self, address: str, *, machine_id_wanted: bool = False) -> MemoryTransport:
        hello = Hello(
            PROTOCOL_VERSION,
            self.settings.namespace,
            address,
            self.clock.token(),
            machine_id_wanted=machine_id_wanted,
            relays=bool(address),
        )
        limits = LinkLimits(max_message_bytes=self.settings.max_message_bytes)
        return MemoryTransport(self.network, hello, limits=limits)

    def _is_settled(self) -> bool:
        runners = [_runner(cluster) for cluster in self.runners]
        live = {runner.node.incarnation for runner in runners}
        infos = {
            incarnation: row.info
            for row in self.store.runners()
            if (incarnation := row.info.runner.incarnation) in live
        }
        for runner in runners:
            statistics = runner.ownership.statistics()
            info = infos.get(runner.node.incarnation, runner.info)
            desired = desired_shards(list(infos.values()), (), info, self.settings.shards_per_group).mine
            if statistics.shards_acquiring or statistics.shards_draining or set(desired) != set(runner.ownership.owned):
                return False
        return all(self._knows_all(process, runners) for process in self._processes)

    @staticmethod
    def _knows_all(process: Cluster, runners: Sequence[Runner]) -> bool:
        node = part_of(process).node
        return all(
            runner.node is node
            or (
                runner.node.incarnation in node.peers.linked
                and set(node.table.of_runner(runner.info.runner)) == set(runner.ownership.owned)
            )
            for runner in runners
        )


def _runner(cluster: Cluster) -> Runner:
    part = part_of(cluster)
    assert isinstance(part, Runner)
    return part
