"""One process's part in the cluster: a runner hosts shards and calls, a client only calls."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Final

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId, ShardOwner
from actorhub.core.clock import Clock
from actorhub.core.envelope import Leaving, Members, Owners
from actorhub.core.errors import (
    ActorhubError,
    PersistenceError,
    RunnerUnavailable,
    ShuttingDown,
    UnknownEntityType,
)
from actorhub.engine.cell import HostedType
from actorhub.engine.deadlines import Deadlines
from actorhub.engine.exchange import Exchange
from actorhub.engine.host import Host
from actorhub.engine.inbound import Inbound, Limits
from actorhub.engine.message import Message
from actorhub.engine.ownership import Ownership
from actorhub.engine.peers import Peer, Peers
from actorhub.engine.router import Router
from actorhub.engine.spec import EntitySpec
from actorhub.engine.supervision import Supervisor
from actorhub.engine.table import RoutingTable
from actorhub.storage.ports import LiveRunner, Storage
from actorhub.transport.ports import Link, LinkEvents, Transport

_log: Final = logging.getLogger("actorhub.node")

_REFRESH: Final = 0.5
"""Seconds between looks at the store while calls wait for an owner: the safety net under the peers' news."""
_FORWARDING: Final = 2.0
"""Seconds that a leaving runner waits at most for the next owners to take what was queued here."""
_FORWARDING_LOOK: Final = 0.005
_MACHINE_LEASE: Final = timedelta(seconds=60)
_RENEW_MACHINE: Final = 15.0


class Node:
    """What runners and clients share: links, routing, deadlines."""

    def __init__(
        self,
        *,
        specs: Mapping[str, EntitySpec],
        transport: Transport,
        clock: Clock,
        incarnation: str,
        limits: Limits,
        news: "Runner | Client",
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.incarnation = incarnation
        self.transport = transport
        self.supervisor = Supervisor(clock)
        self.exchange = Exchange(clock=clock, news=news)
        self.peers = Peers(transport, self.exchange, self.supervisor, clock)
        self.table = RoutingTable()
        self.router = Router(specs=specs, table=self.table, peers=self.peers, host=None, clock=clock)
        self.loop = asyncio.get_running_loop()
        self.deadlines: Deadlines[Message] = Deadlines(self.loop, clock, self.router.expire)
        self.router.watch = self.deadlines.add
        self.exchange.peers = self.peers
        self.exchange.router = self.router
        self.router.undeliverable = self._undeliverable
        self.closed = False
        self.failed_tells = 0
        """Tells that were accepted and ended in an error, or never left."""
        self.known_types: frozenset[str] = frozenset()
        """Entity types that live runners host; empty until somebody said."""

    def tell_failed(self, message: Message, error: ActorhubError) -> None:
        """Log and count a tell whose error nobody waits for."""
        self.failed_tells += 1
        _log.warning("tell of %s(%s) failed: %s: %s", message.what, message.entity_id, type(error).__name__, error)

    def _undeliverable(self, message: Message) -> ActorhubError | None:
        name = message.spec.entity_type
        if not self.known_types or name in self.known_types:
            return None
        return UnknownEntityType(
            f"no live runner hosts entity type {name!r}: they host {', '.join(sorted(self.known_types))}"
        )

    async def forward(self, limit: float) -> None:
        """Wait until what was queued here is with its next owners, if there are any, for at most `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                while self.peers.runners() and self.router.has_undelivered_tells():  # noqa: ASYNC110 - once per life
                    await asyncio.sleep(_FORWARDING_LOOK)
        except TimeoutError:
            _log.warning("messages that waited here could not be handed over within %.1f s", limit)

    async def aclose(self, grace: float) -> None:
        """End every link and task; what still waits fails with `ShuttingDown`."""
        self.closed = True
        self.router.close(ShuttingDown("this process is leaving the cluster"))
        self.deadlines.close()
        self.peers.want(())
        await self.transport.aclose(grace)
        await self.supervisor.aclose(1.0)


class Door:
    """Takes links for a runner that is still being made: they are refused, and try again, until it is there."""

    def __init__(self) -> None:
        self.runner: Runner | None = None

    def accept(self, link: Link) -> LinkEvents:
        """Pass the link on.

        Raises:
            RunnerUnavailable: the runner is not ready yet.
        """
        if self.runner is None:
            raise RunnerUnavailable("this runner is starting")
        return self.runner.accept(link)


class Runner:
    """Hosts shards: joins ownership, host and routing. Implements what `Ownership` and `Exchange` tell."""

    def __init__(
        self,
        *,
        info: RunnerInfo,
        types: Mapping[str, HostedType],
        specs: Mapping[str, EntitySpec],
        storage: Storage,
        transport: Transport,
        clock: Clock,
        limits: Limits,
        shards_per_group: int,
        max_resident: int,
    ) -> None:
        self.info = info
        self.storage = storage
        self.node = node = Node(
            specs=specs,
            transport=transport,
            clock=clock,
            incarnation=info.runner.incarnation,
            limits=limits,
            news=self,
        )
        node.router.stranded = self._start_refresh
        self.shards_per_group = shards_per_group
        self.ownership = Ownership(
            storage=storage,
            clock=clock,
            info=info,
            shards_per_group=shards_per_group,
            host=self,
            supervisor=node.supervisor,
        )
        self.host = node.router.host = Host(
            types=types,
            storage=storage,
            clock=clock,
            lease=self.ownership,
            supervisor=node.supervisor,
            incarnation=info.runner.incarnation,
            max_message_bytes=limits.max_message_bytes,
            max_resident=max_resident,
        )
        inbound = Inbound(host=self.host, router=node.router, lease=self.ownership, clock=clock, limits=limits)
        self.inbound = node.exchange.inbound = inbound
        inbound.is_coming = self._is_coming
        inbound.dropped = node.tell_failed
        self.host.turns.send = node.router.route
        self.host.reroute = inbound.give_back
        self.host.mistrusted = self._mistrusted
        self.known_runners: Sequence[LiveRunner] = ()
        self.machine_id = -1
        self.machine_id_until = 0.0
        """Monotonic seconds until which the machine id is surely ours."""
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register, and own a first share of the shards. The transport listens already."""
        self.node.router.cluster_values_known(self.shards_per_group)
        await self._renew_machine_id()
        await self.ownership.start()
        _ = self.node.supervisor.loop("residency", self.host.residency.run)
        _ = self.node.supervisor.loop("machine id", self._keep_machine_ids)

    async def leave(self, grace: float) -> None:
        """Hand every shard over, then end. Bounded by about `grace` seconds, after which the rest is cut off."""
        self.node.peers.send_to_all(Leaving("shutdown"))
        await self.ownership.leave(grace)
        await self.node.forward(min(grace, _FORWARDING))
        await self.host.turns.aclose()
        await self.node.aclose(1.0)
        try:
            async with asyncio.timeout(2):
                await self.storage.release_machine_id(self.info.runner.incarnation)
        except (PersistenceError, TimeoutError) as error:
            _log.warning("machine id %d was not given back: %s; its lease runs out", self.machine_id, error)

    def accept(self, link: Link) -> LinkEvents:
        """Take an incoming link."""
        return self.node.peers.accept(link)

    def granted(self, shards: Mapping[ShardId, int]) -> None:
        """Serve these shards from now on."""
        owned = [ShardOwner(shard, self.info.runner, epoch) for shard, epoch in shards.items()]
        self.node.table.learn(owned, self.node.clock.monotonic())
        self.host.granted(shards)
        self.node.peers.send_to_all(Owners(owned))
        self.node.router.owners_changed(shards)

    def revoked(self, shards: Collection[ShardId], reason: str) -> None:
        """Stop these shards now."""
        for shard in shards:
            self.node.table.forget(shard, self.info.runner)
        self.host.revoked(shards, reason)
        self.node.peers.send_to_all(Owners([], list(shards)))

    async def drain(self, shard: ShardId, grace: float) -> None:
        """Let the shard's runs finish and passivate its entities."""
        await self.host.drain(shard, grace)

    def released(self, shards: Mapping[ShardId, RunnerAddress | None]) -> None:
        """Tell everybody, the next owner among them, that these shards are free."""
        for shard in shards:
            self.node.table.forget(shard, self.info.runner)
        self.node.peers.send_to_all(Owners([], list(shards)))

    def members_changed(self, runners: Sequence[LiveRunner]) -> None:
        """Link to who lives, and tell the clients."""
        self.known_runners = runners
        live = [runner.info for runner in runners]
        self.node.known_types = frozenset(name for info in (*live, self.info) for name in info.entity_types)
        own = self.info.runner
        self.node.peers.want([i.runner.address for i in live if i.runner.incarnation != own.incarnation])
        self._tell_members([peer for peer in self.node.peers.linked.values() if not peer.is_runner])
        self.node.router.reconsider()

    def peer_linked(self, peer: Peer) -> None:
        """Say what we own; to a client also who there is."""
        owned = [ShardOwner(shard, self.info.runner, epoch) for shard, epoch in self.ownership.owned.items()]
        if peer.is_runner:
            self.ownership.trust(peer.runner.incarnation)
            if all(known.info.runner != peer.runner for known in self.known_runners):
                self.ownership.refresh()
        else:
            self._tell_members([peer])
            if peer.link.peer.machine_id_wanted:
                _ = self.node.supervisor.spawn(self._lend_machine_id(peer), "lend machine id")
        peer.link.send(Owners(owned, complete=True))

    def peer_lost(self, peer: Peer) -> None:
        """A broken link may be a dead runner: its locks will tell."""
        if peer.is_runner and self.node.peers.by_runner(peer.runner) is None:
            self.ownership.suspect(peer.runner.incarnation)

    def owners(self, peer: Peer, news: Owners) -> None:
        """Shards were released: perhaps for us."""
        if news.released:
            self.ownership.nudge(news.released)

    def members(self, peer: Peer, news: Members) -> None:
        """Runners learn of members from the store, not from each other."""

    def _is_coming(self, shard: ShardId) -> bool:
        return self.ownership.state(shard) == "acquiring"

    def _mistrusted(self, shard: ShardId) -> None:
        self.ownership.mistrust(shard)

    def _tell_members(self, peers: Sequence[Peer]) -> None:
        live = [runner.info.runner for runner in self.known_runners] or [self.info.runner]
        types = sorted(self.node.known_types or self.info.entity_types)
        for peer in peers:
            peer.link.send(Members(live, self.shards_per_group, types))

    def _start_refresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self.node.supervisor.spawn(self._refresh(), "refresh owners")

    async def _refresh(self) -> None:
        """While calls wait for owners, look into the store now and then in case a peer's news went astray."""
        while True:
            await asyncio.sleep(_REFRESH)
            if not self.node.router.parked_shards():
                return
            try:
                rows = await self.storage.shards()
            except PersistenceError as error:
                _log.warning("cannot read the shards' owners: %s", error)
                continue
            now = self.node.clock.monotonic()
            own = self.info.runner.incarnation
            self.node.table.learn([r.owner for r in rows if r.owner and r.owner.runner.incarnation != own], now)
            self.node.router.reconsider()

    async def _keep_machine_ids(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_MACHINE)
            await self._renew_machine_id()
            for peer in list(self.node.peers.linked.values()):
                if not peer.is_runner and peer.link.peer.machine_id_wanted:
                    await self.storage.lease_machine_id(peer.runner.incarnation, _MACHINE_LEASE)

    async def _renew_machine_id(self) -> None:
        asked = self.node.clock.monotonic()
        self.machine_id = await self.storage.lease_machine_id(self.info.runner.incarnation, _MACHINE_LEASE)
        self.machine_id_until = asked + _MACHINE_LEASE.total_seconds()

    async def _lend_machine_id(self, peer: Peer) -> None:
        machine_id = await self.storage.lease_machine_id(peer.runner.incarnation, _MACHINE_LEASE)
        peer.link.send(Members([], 0, [], machine_id))


class Client:
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
    ) -> None:
        """Prepare a client.

        Args:
            find_runners: Returns addresses to try while no runner is linked: the given gateways, or the store's table.
            specs: The entity types that may be called.
            transport: A transport that does not listen.
            clock: Time and chance.
            incarnation: Random id of this process.
            limits: Message limits.
        """
        self._find_runners = find_runners
        self.node = Node(
            specs=specs, transport=transport, clock=clock, incarnation=incarnation, limits=limits, news=self
        )
        self.node.peers.refused = self._refused
        self.machine_id = -1
        self.machine_id_until = 0.0
        self._runners: list[str] = []
        self._ready = asyncio.Event()
        self._last_error = "no runner is registered"

    async def start(self, deadline: float) -> None:
        """Link to the cluster.

        Raises:
            RunnerUnavailable: no runner answered within `deadline` seconds; names the last failure.
        """
        _ = self.node.supervisor.loop("find runners", self._keep_linked)
        try:
            async with asyncio.timeout(deadline):
                await self._ready.wait()
        except TimeoutError:
            raise RunnerUnavailable(f"no runner answered within {deadline:g} s: {self._last_error}") from None

    async def leave(self, grace: float) -> None:
        """End every link."""
        await self.node.aclose(min(grace, 1.0))

    def peer_linked(self, peer: Peer) -> None:
        """The runner will say what it owns and who there is."""

    def peer_lost(self, peer: Peer) -> None:
        """What it owned is unknown until its next owner says so."""
        self.node.table.forget_runner(peer.runner)

    def owners(self, peer: Peer, news: Owners) -> None:
        """The routing table has it already."""

    def members(self, peer: Peer, news: Members) -> None:
        """Link to every runner named, and let calls go."""
        if news.machine_id >= 0:
            self.machine_id = news.machine_id
            self._extend_machine_lease()
        if news.shards_per_group:
            self._join(news)
        if self._runners and self.machine_id >= 0:
            self._ready.set()

    def _join(self, news: Members) -> None:
        self._runners = [runner.address for runner in news.runners]
        self.node.known_types = frozenset(news.entity_types)
        self.node.peers.want(self._runners)
        if self.node.router.shards_per_group == 0:
            self.node.router.cluster_values_known(news.shards_per_group)
        self.node.router.reconsider()

    def _extend_machine_lease(self) -> None:
        """The runners renew the lease of a linked client."""
        lasts = _MACHINE_LEASE.total_seconds() - 2 * _RENEW_MACHINE
        self.machine_id_until = self.node.clock.monotonic() + lasts

    def _refused(self, address: str, error: ActorhubError) -> None:
        self._last_error = str(error)

    async def _keep_linked(self) -> None:
        while True:
            if not self.node.peers.runners():
                try:
                    found = await self._find_runners()
                except PersistenceError as error:
                    self._last_error = str(error)
                    found = ()
                self.node.peers.want({*found, *self._runners})
            else:
                self._extend_machine_lease()
            if self.node.router.parked_shards():
                self.node.router.reconsider()
            await asyncio.sleep(_REFRESH)
