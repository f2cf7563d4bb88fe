"""A runner: hosts shards, and joins ownership, host and routing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId, ShardOwner
from actorhub.core.clock import Clock
from actorhub.core.envelope import (
    COMPLETE,
    COMPLETED,
    FIND_MESSAGE,
    HEALTH,
    KEY_VALUE,
    POLL_STORAGE,
    Leaving,
    Members,
    Owners,
)
from actorhub.core.errors import (
    ActorhubError,
    PersistenceError,
    RunnerUnavailable,
)
from actorhub.engine.anycast.key_value_requests import KeyValueRequests
from actorhub.engine.anycast.runner_requests import RunnerRequests
from actorhub.engine.blocking import BlockedLoopWatch
from actorhub.engine.host import Host
from actorhub.engine.model.cell import HostedType
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.message import Message
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.node import Node
from actorhub.engine.ownership.loop import Ownership
from actorhub.engine.routing.inbound import Inbound
from actorhub.engine.routing.peers import Peer
from actorhub.engine.singletons.health import RunnerHealth, SingletonHealth
from actorhub.storage.ports import LiveRunner, Storage
from actorhub.transport.ports import Link, LinkEvents, Transport

_log: Final = logging.getLogger("actorhub.runner")

_REFRESH: Final = 0.5
"""Seconds between looks at the store while calls wait for an owner: the safety net under the peers' news."""
_FORWARDING: Final = 2.0
"""Seconds that a leaving runner waits at most for the next owners to take what was queued here."""
MACHINE_LEASE: Final = timedelta(seconds=60)
"""How long a machine id is leased for; runners renew their own and their clients'."""
RENEW_MACHINE: Final = 15.0
"""Seconds between renewals."""
_LOOK: Final = 10.0
"""Seconds between looks into the store for messages that nobody told this runner of: the safety net."""
_FORGET_STEP: Final = 1000
_ORPHAN_AGE: Final = 3600.0
"""Seconds after which checkpoints of a message that has ended are forgotten."""
_FORGET_PAUSE: Final = 0.02
_FORGET_LOOK: Final = 10.0
"""Seconds between looks for settled messages whose retention is over, and for expired values."""


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
    ) -> None:
        self.info = info
        self._specs = specs
        self.storage = storage
        self.node = node = Node(
            specs=specs,
            transport=transport,
            clock=clock,
            incarnation=info.runner.incarnation,
            limits=limits,
            news=self,
            store=storage.messages,
        )
        node.router.stranded = self._start_refresh
        node.peers.refused = self._unreachable
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
            limits=limits,
        )
        inbound = Inbound(host=self.host, router=node.router, lease=self.ownership, clock=clock, limits=limits)
        self.inbound = node.exchange.inbound = inbound
        inbound.is_coming = self._is_coming
        inbound.dropped = node.tell_failed
        self._key_values = KeyValueRequests(storage.key_values, node.supervisor)
        self.requests = RunnerRequests(node=node, store=storage.checkpoints, host=self.host, health=self.health)
        inbound.served = {
            FIND_MESSAGE: self.host.requests.find,
            KEY_VALUE: self._key_values.serve,
            **dict.fromkeys((POLL_STORAGE, COMPLETE, COMPLETED, HEALTH), self.requests.serve),
        }
        self.host.address = info.runner.address
        self.host.singletons.shard_of = node.router.shard_of
        self.is_leaving = False
        self.host.turns.send = node.router.route
        self.host.reroute = inbound.give_back
        self.host.mistrusted = self._mistrusted
        self.host.runs.shard_of = self._shard_of
        self.known_runners: Sequence[LiveRunner] = ()
        self.machine_id = -1
        self.machine_id_until = 0.0
        """Monotonic seconds until which the machine id is surely ours."""
        self.watch = BlockedLoopWatch(node.loop, clock)
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register, and own a first share of the shards. The transport listens already."""
        self.node.router.cluster_values_known(self.shards_per_group)
        await self._renew_machine_id()
        self.host.deferrals.secret = await self.storage.secret()
        await self.ownership.start()
        self.watch.start()
        _ = self.node.supervisor.loop("residency", self.host.residency.run)
        _ = self.node.supervisor.loop("machine id", self._keep_machine_ids)
        if self.host.has_durable:
            _ = self.node.supervisor.loop("backlog", self.host.delivery.backlog.run)
            _ = self.node.supervisor.loop("schedule", self.host.delivery.schedule.run)
            _ = self.node.supervisor.loop("look into the store", self._keep_looking)
            forget_messages = partial(self._keep_forgetting, self.storage.messages.remove_expired)
            _ = self.node.supervisor.loop("retention", forget_messages)
            forget_checkpoints = partial(self.storage.checkpoints.remove_orphans, _ORPHAN_AGE)
            _ = self.node.supervisor.loop("checkpoint retention", partial(self._keep_forgetting, forget_checkpoints))
        if self.host.singletons.has_any:
            _ = self.node.supervisor.loop(
                "singleton retention", partial(self._keep_forgetting, self._forget_singletons)
            )
        forget_values = partial(self._keep_forgetting, self.storage.key_values.remove_expired)
        _ = self.node.supervisor.loop("value expiry", forget_values)

    async def leave(self, grace: float) -> None:
        """Hand every shard over, then end. Bounded by about `grace` seconds, after which the rest is cut off."""
        self.is_leaving = True
        self.watch.stop()
        self.node.peers.send_to_all(Leaving("shutdown"))
        await self.ownership.leave(grace)
        await self.node.forward(min(grace, _FORWARDING))
        await self._key_values.leave(min(grace, _FORWARDING))
        await self.host.turns.aclose()
        await self.host.singletons.aclose(1.0)
        await self.node.aclose(1.0)
        try:
            async with asyncio.timeout(2):
                await self.storage.release_machine_id(self.info.runner.incarnation)
        except (PersistenceError, TimeoutError) as error:
            _log.warning("machine id %d was not given back: %s; its lease runs out", self.machine_id, error)

    def health(self) -> RunnerHealth:
        """Return how this runner and the singletons that it leads are."""
        singletons = self.host.singletons.report()
        reason = self._obstacle(singletons)
        return RunnerHealth(
            serving=not reason,
            reason=reason,
            runner=self.info.runner.address,
            incarnation=self.info.runner.incarnation,
            version=self.info.version,
            shards_owned=len(self.ownership.owned),
            live_runners=len(self.ownership.members),
            singletons=singletons,
        )

    def _obstacle(self, singletons: Sequence[SingletonHealth]) -> str:
        if self.machine_id < 0:
            return "it is starting"
        if self.is_leaving:
            return "it is leaving the cluster"
        if not self.ownership.is_fresh():
            return "it cannot prove its ownership: the database does not answer"
        if stale := [singleton.name for singleton in singletons if singleton.is_stale]:
            return f"it leads singletons that show no sign of life: {', '.join(stale)}"
        return ""

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
            self.host.delivery.sender_lost()

    def owners(self, peer: Peer, news: Owners) -> None:
        """Shards were released: perhaps for us."""
        if news.released:
            self.ownership.nudge(news.released)

    def members(self, peer: Peer, news: Members) -> None:
        """Runners learn of members from the store, not from each other."""

    def _is_coming(self, shard: ShardId) -> bool:
        return self.ownership.state(shard) == "acquiring"

    def _shard_of(self, message: Message) -> ShardId:
        return self.node.router.shard_of(self._specs[message.spec.entity_type], message.entity_id)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK * (0.5 + self.node.clock.random()))
            self.host.delivery.poll()

    async def _keep_forgetting(self, remove_expired: Callable[[int], Awaitable[int]]) -> None:
        """Forget what is kept for a time only, in small steps, so that nobody waits for it."""
        while True:
            removed = await remove_expired(_FORGET_STEP)
            # One runner at work is enough, but any may be it: with full steps it goes on, else all look rarely.
            full = removed >= _FORGET_STEP
            await asyncio.sleep(_FORGET_PAUSE if full else _FORGET_LOOK * (0.5 + self.node.clock.random()))

    async def _forget_singletons(self, limit: int) -> int:
        return await self.storage.singletons.remove_abandoned()

    def _mistrusted(self, shard: ShardId) -> None:
        self.ownership.mistrust(shard)

    def _unreachable(self, address: str, error: ActorhubError) -> None:
        """A registered runner cannot be reached: perhaps it is dead, and was so before this one started."""
        for known in self.known_runners:
            if known.info.runner.address == address:
                self.ownership.suspect(known.info.runner.incarnation)

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
            await asyncio.sleep(RENEW_MACHINE)
            await self._renew_machine_id()
            for peer in list(self.node.peers.linked.values()):
                if not peer.is_runner and peer.link.peer.machine_id_wanted:
                    await self.storage.lease_machine_id(peer.runner.incarnation, MACHINE_LEASE)

    async def _renew_machine_id(self) -> None:
        asked = self.node.clock.monotonic()
        self.machine_id = await self.storage.lease_machine_id(self.info.runner.incarnation, MACHINE_LEASE)
        self.machine_id_until = asked + MACHINE_LEASE.total_seconds()

    async def _lend_machine_id(self, peer: Peer) -> None:
        machine_id = await self.storage.lease_machine_id(peer.runner.incarnation, MACHINE_LEASE)
        peer.link.send(Members([], 0, [], machine_id))
