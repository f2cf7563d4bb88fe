"""A client's part: it calls entities and hosts none."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.envelope import Members, Owners
from actorhub.core.errors import ActorhubError, PersistenceError, RunnerUnavailable
from actorhub.engine.anycast.remote_key_values import RemoteKeyValues
from actorhub.engine.anycast.runner_requests import DeferredOutcome, ask_health, ask_to_complete
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

_log: Final = logging.getLogger("actorhub.caller")

_STORE_PATIENCE: Final = 2.0
"""Seconds that a program with the cluster's store waits for a first runner: it can do something without one."""
_REFRESH: Final = 0.5
"""Seconds between looks at the store while no runner is linked, or calls wait for an owner."""


class ClientNode:
    """Calls entities without hosting any: knows the cluster through its links to the runners."""

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
            find_runners: Returns addresses to try while no runner is linked: the given gateways, or the store's table.
            specs: The entity types that may be called.
            transport: A transport that does not listen.
            clock: Time and chance.
            incarnation: Random id of this process.
            limits: Message limits.
            storage: The cluster's store, open, where this program reaches it: then durable messages are accepted, and
                looked up, also while no runner is there.
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
        """The key-value store, or the way to it."""
        self._runners: list[str] = []
        self._ready = asyncio.Event()
        self._last_error = "no runner is registered"

    @property
    def address(self) -> None:
        """A client is no runner."""
        return

    def owns(self, shard: ShardId) -> bool:
        """A client owns nothing."""
        return False

    def poll(self) -> None:
        """A client has nothing to scan for."""

    def broadcast_here(self, spec: HandlerSpec, body: bytes) -> int:
        """A client hosts nothing."""
        return 0

    async def complete(self, outcome: DeferredOutcome) -> bool:
        """Have some runner store the outcome of a deferred value; without one, store it, where the store is there."""
        storage = self._storage
        if storage is not None and not self.node.peers.runners():
            made = completion(outcome.token, await storage.secret(), outcome.kind, outcome.data)
            return await storage.checkpoints.complete(made)
        return await ask_to_complete(self.node, outcome)

    async def runner_healths(self) -> Sequence[RunnerHealth]:
        """Return how each runner is that this client is linked to and that answers."""
        return await ask_health(self.node)

    async def start(self, deadline: float) -> None:
        """Link to the cluster.

        Raises:
            RunnerUnavailable: no runner answered within `deadline` seconds; names the last failure.
        """
        _ = self.node.supervisor.loop("find runners", self._keep_linked)
        if self._storage is not None and await self._know_cluster(self._storage):
            deadline = min(deadline, _STORE_PATIENCE)
        try:
            async with asyncio.timeout(deadline):
                await self._ready.wait()
        except TimeoutError:
            if self.node.router.sharding.shards_per_group and self.ids.machine >= 0:
                _log.warning("no runner answered within %g s: what is told is stored until one is there", deadline)
                return
            raise RunnerUnavailable(f"no runner answered within {deadline:g} s: {self._last_error}") from None

    async def leave(self, grace: float) -> None:
        """End every link."""
        await self.node.aclose(min(grace, 1.0))

    async def _know_cluster(self, storage: Storage) -> bool:
        """Read what the cluster agreed on and lease a machine id; `False` if the cluster never had a runner."""
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
        """The runner will say what it owns and who there is."""

    def on_lost(self, peer: Peer) -> None:
        """What it owned is unknown until its next owner says so."""
        self.node.table.forget_runner(peer.runner)

    def on_owners(self, peer: Peer, news: Owners) -> None:
        """The routing table has it already."""

    def on_members(self, peer: Peer, news: Members) -> None:
        """Link to every runner named, and let calls go."""
        if news.machine_id >= 0 and self._storage is None:
            self.ids.leased(news.machine_id, self._lease_end())
        if news.shards_per_group:
            self._join(news)
        if self._runners and self.ids.machine >= 0:
            self._ready.set()

    def _join(self, news: Members) -> None:
        self._runners = [runner.address for runner in news.runners]
        self.node.router.known_types = frozenset(news.entity_types)
        self.node.connector.want(self._runners)
        if self.node.router.sharding.shards_per_group == 0:
            self.node.router.on_cluster_values(news.shards_per_group)
        self.node.router.reconsider()

    def _lease_end(self) -> float:
        """Return until when the machine id is ours: the runners renew the lease of a linked client."""
        return self.node.clock.monotonic() + MACHINE_LEASE.total_seconds() - 2 * RENEW_MACHINE

    def on_refused(self, address: str, error: ActorhubError) -> None:
        """Note why there is no link, for whoever waits for one."""
        self._last_error = str(error)

    def on_stranded(self) -> None:
        """The loop that finds runners looks for waiting calls as it is."""

    async def _keep_linked(self) -> None:
        while True:
            if not self.node.peers.runners():
                try:
                    found = await self._find_runners()
                except PersistenceError as error:
                    self._last_error = str(error)
                    found = ()
                self.node.connector.want({*found, *self._runners})
            elif self._storage is None:
                self.ids.extended(self._lease_end())
            if self.node.router.parked_shards():
                self.node.router.reconsider()
            await asyncio.sleep(_REFRESH)
