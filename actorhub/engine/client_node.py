"""A client: it calls entities and hosts none."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final

from actorhub.core.address import RunnerAddress, ShardId
from actorhub.core.clock import Clock
from actorhub.core.envelope import Members, Owners
from actorhub.core.errors import ActorhubError, PersistenceError, RunnerUnavailable
from actorhub.core.logger import get_logger
from actorhub.engine.anycast.remote_key_values import RemoteKeyValues
from actorhub.engine.anycast.runner_requests import DeferredOutcome, ask_health, ask_to_complete
from actorhub.engine.eras import EraWatch
from actorhub.engine.ids import MACHINE_LEASE, RENEW_MACHINE, ProcessIds
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.engine.node import Node, Process
from actorhub.engine.routing.peers import Peer
from actorhub.engine.runs.deferred import completion
from actorhub.engine.singletons.health import RunnerHealth
from actorhub.engine.supervision import Supervisor
from actorhub.storage.key_value_ports import KeyValues
from actorhub.storage.ports import Storage
from actorhub.transport.ports import Transport

_log: Final = get_logger("actorhub.caller")

_STORE_PATIENCE: Final = 2.0
"""Seconds that a client with the cluster's store waits for a first runner. It can do something without one."""
_ERA_PATIENCE: Final = 5.0
"""Seconds without a link to a runner of an era after which the database may be back in an earlier one. Whoever has not
noticed a restart notices it sooner."""
_REFRESH: Final = 0.5
"""Seconds between searches for runners while none is linked, and between checks of calls that wait for an owner."""


class ClientNode:
    """Calls entities without hosting any. It knows the cluster through its links to the runners."""

    def __init__(
        self,
        *,
        find_runners: Callable[[], Awaitable[Collection[str]]],
        specs: Mapping[str, EntitySpec],
        transport: Transport,
        clock: Clock,
        incarnation: str,
        limits: Limits,
        storage: Storage | None = None,
    ) -> None:
        """Prepare a client.

        Args:
            find_runners: Returns addresses to try while no runner is linked: given gateways, or those in the store.
            specs: The entity types that may be called.
            transport: Opens links; it does not listen.
            clock: Source of time and randomness.
            incarnation: The random id of this process.
            limits: Limits of messages.
            storage: The cluster's store, opened, if this program can reach it. Then durable messages are accepted and
                looked up even while there is no runner.
        """
        self._find_runners = find_runners
        self._storage = storage
        self.ids = ProcessIds(clock)
        process = Process(
            incarnation=incarnation,
            clock=clock,
            limits=limits,
            supervisor=Supervisor(clock),
            ids=self.ids,
            transport=transport,
            sharding=Sharding(specs),
            store=None if storage is None else storage.messages,
        )
        self.node = Node(process, events=self)
        self.key_values: KeyValues = RemoteKeyValues(self.node) if storage is None else storage.key_values
        """The key-value store, reached directly or through a runner."""
        if storage is not None:
            _ = EraWatch(self.node, storage, lease_machine_id=partial(self._lease_machine_id, storage))
        self._era = ""
        """The latest that a runner was in; without a database of its own, a client knows no other."""
        self._era_left_at = 0.0
        """When the last link to a runner of that era ended, in monotonic seconds."""
        self._is_doubtful = False
        """Whether a runner was lost, or refused this client: it may be in another era."""
        self._runners: Sequence[RunnerAddress] = ()
        self._ready = asyncio.Event()
        self._last_error = "no runner is registered"

    @property
    def address(self) -> None:
        """`None`: a client is not a runner."""
        return

    def owns(self, shard: ShardId) -> bool:
        """Return `False`: a client owns no shards."""
        return False

    def poll(self) -> None:
        """Do nothing: a client has no shards to scan for."""

    def broadcast_here(self, spec: HandlerSpec, body: bytes) -> int:
        """Return 0: a client hosts no entities."""
        return 0

    async def complete(self, outcome: DeferredOutcome) -> bool:
        """Have a runner store an outcome of a deferred value; store it directly if no runner is linked.

        A runner is preferred because it tells the others, so that the run that waits goes on at once. Without that, the
        run finds the outcome when it next polls the store.
        """
        storage = self._storage
        if storage is not None and not self.node.peers.runners():
            made = completion(outcome.token, await storage.secret(), outcome.kind, outcome.data)
            return await storage.checkpoints.complete(made)
        return await ask_to_complete(self.node, outcome)

    async def runner_healths(self) -> Sequence[RunnerHealth]:
        """Return the health of each runner that this client is linked to and that answers."""
        return await ask_health(self.node)

    async def start(self, deadline: float) -> None:
        """Link to the cluster.

        With the store of a cluster that had runners before, this returns without a runner after two seconds.

        Raises:
            RunnerUnavailable: No runner answered within `deadline` seconds. The text names the last failure.
        """
        _ = self.node.supervisor.loop("find runners", self._keep_linked)
        if self._storage is not None and await self._know_cluster(self._storage):
            deadline = min(deadline, _STORE_PATIENCE)
        try:
            async with asyncio.timeout(deadline):
                await self._ready.wait()
        except TimeoutError:
            if self.node.router.sharding.shards_per_group and self.ids.machine >= 0:
                _log.warning("no runner answered within %g s: durable tells are stored until there is one", deadline)
                return
            raise RunnerUnavailable(f"no runner answered within {deadline:g} s: {self._last_error}") from None

    async def leave(self, grace: float) -> None:
        """End every link."""
        await self.node.aclose(min(grace, 1.0))

    async def _know_cluster(self, storage: Storage) -> bool:
        """Lease a machine id and read the cluster's values; return `False` if the cluster never had a runner."""
        await self._lease_machine_id(storage)
        _ = self.node.supervisor.loop("machine id", self._keep_machine_id)
        values = await storage.cluster_values()
        if values is None:
            return False
        self.node.router.on_cluster_values(values.shards_per_group)
        return True

    async def _keep_machine_id(self) -> None:
        assert self._storage is not None
        while True:
            await asyncio.sleep(RENEW_MACHINE)
            await self._lease_machine_id(self._storage)

    async def _lease_machine_id(self, storage: Storage) -> None:
        asked = self.node.clock.monotonic()
        machine = await storage.lease_machine_id(self.node.incarnation, MACHINE_LEASE)
        self.ids.leased(machine, asked + MACHINE_LEASE.total_seconds())

    def on_linked(self, peer: Peer) -> None:
        """Have the runner announce what it owns and who is in the cluster, which it does by itself.

        Raises:
            RunnerUnavailable: The runner has not noticed yet that the database was restarted.
        """
        era = peer.link.peer.era
        if self._storage is not None or not era or era == self._era:
            return
        if era < self._era and not self._is_over(self._era):
            raise RunnerUnavailable(f"{peer.runner} is still in era {era} of the database, others are in {self._era}")
        before, self._era = self._era, era
        if before:
            self.node.forget_era(f"era {era} of the database began", keep=peer)

    def _is_over(self, era: str) -> bool:
        """Whether no runner of the era has been linked for a while: the database may have come back without it."""
        if any(peer.link.peer.era == era for peer in self.node.peers.every()):
            return False
        return self.node.clock.monotonic() - self._era_left_at > _ERA_PATIENCE

    def on_lost(self, peer: Peer) -> None:
        """Forget what the peer owned, until the next owners announce themselves."""
        if peer.link.peer.era == self._era:
            self._era_left_at = self.node.clock.monotonic()
        if self.node.peers.by_runner(peer.runner) is None:
            self.node.table.forget_runner(peer.runner)
        self._is_doubtful = True

    def on_owners(self, peer: Peer, news: Owners) -> None:
        """Do nothing: the routing table knows already."""

    def on_members(self, peer: Peer, news: Members) -> None:
        """Link to every runner that is named, and route what is parked."""
        if news.machine_id >= 0 and self._storage is None:
            self.ids.leased(news.machine_id, self._lease_end())
        if news.shards_per_group:
            self._join(news)
        if self._runners and self.ids.machine >= 0:
            self._ready.set()

    def _join(self, news: Members) -> None:
        self._runners = news.runners
        self.node.router.on_hosted(frozenset(news.entity_types), frozenset(news.groups))
        self.node.connector.want(self._runners)
        if self.node.router.sharding.shards_per_group == 0:
            self.node.router.on_cluster_values(news.shards_per_group)
        self.node.router.reconsider()

    def _lease_end(self) -> float:
        """Return until when the machine id is certainly ours, in monotonic seconds.

        The runners renew the leases of linked clients, and do not report each renewal. So a linked client counts from
        now, minus the time that the last two renewals may be late.
        """
        return self.node.clock.monotonic() + MACHINE_LEASE.total_seconds() - 2 * RENEW_MACHINE

    def on_refused(self, runner: RunnerAddress, error: ActorhubError, is_first: bool) -> None:
        """Keep the reason, for the error of a start that fails."""
        self._last_error = str(error)
        self._is_doubtful = True

    def on_leaving(self, peer: Peer) -> None:
        """Have links that go through the runner replaced."""
        self.node.connector.on_leaving(peer)

    def on_stranded(self) -> None:
        """Do nothing: the loop that finds runners also routes parked calls again."""

    async def _keep_linked(self) -> None:
        while True:
            await self._remove_doubts()
            if not self.node.peers.runners():
                try:
                    found = await self._find_runners()
                except PersistenceError as error:
                    self._last_error = str(error)
                    found = ()
                known = {runner.address for runner in self._runners}
                others = [RunnerAddress(address, "") for address in found if address not in known]
                self.node.connector.want([*self._runners, *others])
            elif self._storage is None:
                self.ids.extended(self._lease_end())
            if self.node.router.parked_shards():
                self.node.router.reconsider()
            await asyncio.sleep(_REFRESH)

    async def _remove_doubts(self) -> None:
        """Look whether the database is still the one that it was, if there is a reason to."""
        if self._storage is None or not self._is_doubtful:
            return
        self._is_doubtful = False
        try:
            await self._storage.check_era()
        except PersistenceError as error:
            self._is_doubtful = True
            self._last_error = str(error)
