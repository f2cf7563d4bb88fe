"""A runner: hosts shards, and joins ownership, host and routing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
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
from actorhub.engine.anycast.runner_requests import DeferredOutcome, RunnerRequests
from actorhub.engine.blocking import BlockedLoopWatch
from actorhub.engine.host import Host, Surroundings
from actorhub.engine.ids import MACHINE_LEASE, RENEW_MACHINE, ProcessIds
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import HostedType, Message
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.engine.node import Node, Process, Serving
from actorhub.engine.ownership.loop import Ownership
from actorhub.engine.routing.peers import Peer
from actorhub.engine.singletons.health import RunnerHealth, SingletonHealth
from actorhub.engine.supervision import Supervisor
from actorhub.storage.key_value_ports import KeyValues
from actorhub.storage.ports import LiveRunner, Storage
from actorhub.transport.ports import Link, LinkEvents, Transport

_log: Final = logging.getLogger("actorhub.runner")

_REFRESH: Final = 0.5
"""Seconds between looks at the store while calls wait for an owner: the safety net under the peers' news."""
_FORWARDING: Final = 2.0
"""Seconds that a leaving runner waits at most for the next owners to take what was queued here."""
_POLL: Final = 10.0
"""Seconds between scans of the store for messages that nobody told this runner of: the safety net."""
_FORGET_STEP: Final = 1000
_ORPHAN_AGE: Final = 3600.0
"""Seconds after which checkpoints of a message that has ended are forgotten."""
_FORGET_PAUSE: Final = 0.02
_FORGET_LOOK: Final = 10.0
"""Seconds between looks for settled messages whose retention is over, and for expired values."""


class LinkAcceptor:
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
    """Hosts shards: joins ownership, host and routing. Ownership and routing tell it what happens to them."""

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
        self.storage = storage
        self.shards_per_group = shards_per_group
        self.is_leaving = False
        self.known_runners: Sequence[LiveRunner] = ()
        self._refreshing: asyncio.Task[None] | None = None
        incarnation = info.runner.incarnation
        lease = Lease(clock)
        supervisor = Supervisor(clock)
        sharding = Sharding(specs)
        self.ids = ProcessIds(clock)
        self.host = Host(
            Surroundings(
                address=info.runner.address,
                incarnation=incarnation,
                types=types,
                limits=limits,
                sharding=sharding,
                storage=storage,
                clock=clock,
                lease=lease,
                supervisor=supervisor,
                route=self._route,
                reroute=self._reroute,
                mistrust=self._mistrust,
                new_id=self.ids.new_id,
            )
        )
        process = Process(
            incarnation=incarnation,
            clock=clock,
            limits=limits,
            supervisor=supervisor,
            ids=self.ids,
            transport=transport,
            sharding=sharding,
            store=storage.messages,
        )
        serving = Serving(host=self.host, lease=lease, is_coming=self._is_coming, serve=self._serve)
        self.node = Node(process, news=self, serving=serving)
        self.ownership = Ownership(
            storage=storage,
            clock=clock,
            info=info,
            shards_per_group=shards_per_group,
            lease=lease,
            host=self,
            supervisor=supervisor,
        )
        self._key_value_requests = KeyValueRequests(storage.key_values, supervisor)
        self._requests = RunnerRequests(node=self.node, store=storage.checkpoints, host=self.host, health=self.health)
        self._served: Mapping[int, Callable[[Message], None]] = {
            FIND_MESSAGE: self.host.delivery.requests.find,
            KEY_VALUE: self._key_value_requests.serve,
            **dict.fromkeys((POLL_STORAGE, COMPLETE, COMPLETED, HEALTH), self._requests.serve),
        }
        self.watch = BlockedLoopWatch(self.node.loop, clock)

    @property
    def address(self) -> RunnerAddress:
        """This process as a runner."""
        return self.info.runner

    @property
    def key_values(self) -> KeyValues:
        """The key-value store."""
        return self.storage.key_values

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
            _ = self.node.supervisor.loop("backlog", self.host.delivery.loader.run)
            _ = self.node.supervisor.loop("schedule", self.host.delivery.due.run)
            _ = self.node.supervisor.loop("scan the store", self._keep_polling)
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
        await self._key_value_requests.leave(min(grace, _FORWARDING))
        await self.host.carriers.aclose()
        await self.host.singletons.aclose(1.0)
        await self.node.aclose(1.0)
        try:
            async with asyncio.timeout(2):
                await self.storage.release_machine_id(self.info.runner.incarnation)
        except (PersistenceError, TimeoutError) as error:
            _log.warning("machine id %d was not given back: %s; its lease runs out", self.ids.machine, error)

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
        if self.ids.machine < 0:
            return "it is starting"
        if self.is_leaving:
            return "it is leaving the cluster"
        if not self.ownership.is_fresh():
            return "it cannot prove its ownership: the database does not answer"
        if stale := [singleton.name for singleton in singletons if singleton.is_stale]:
            return f"it leads singletons that show no sign of life: {', '.join(stale)}"
        return ""

    async def runner_healths(self) -> Sequence[RunnerHealth]:
        """Return how this runner is."""
        return [self.health()]

    def owns(self, shard: ShardId) -> bool:
        """Whether this runner owns the shard."""
        return shard in self.ownership.owned

    def poll(self) -> None:
        """Scan the store for messages and schedules that this runner was not told of."""
        self.host.poll()

    def broadcast_here(self, spec: HandlerSpec, body: bytes) -> int:
        """Tell every entity of the type that is resident here; return how many."""
        if self.node.inbound is None or spec.entity_type not in self.host.types:
            return 0
        return self.node.inbound.broadcast_here(spec, body, 0)

    async def complete(self, outcome: DeferredOutcome) -> bool:
        """Store the outcome of a deferred value unless there is one; return whether it is this one."""
        return await self._requests.complete(outcome)

    def accept(self, link: Link) -> LinkEvents:
        """Take an incoming link."""
        return self.node.connector.accept(link)

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
        self.node.router.known_types = frozenset(name for info in (*live, self.info) for name in info.entity_types)
        own = self.info.runner
        self.node.connector.want([i.runner.address for i in live if i.runner.incarnation != own.incarnation])
        self._tell_members([peer for peer in self.node.peers.linked.values() if not peer.is_runner])
        self.node.router.reconsider()

    def on_linked(self, peer: Peer) -> None:
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

    def on_lost(self, peer: Peer) -> None:
        """A broken link may be a dead runner: its locks will tell."""
        if peer.is_runner and self.node.peers.by_runner(peer.runner) is None:
            self.ownership.suspect(peer.runner.incarnation)
            self.host.delivery.on_sender_lost()

    def on_owners(self, peer: Peer, news: Owners) -> None:
        """Shards were released: perhaps for us."""
        if news.released:
            self.ownership.nudge(news.released)

    def on_members(self, peer: Peer, news: Members) -> None:
        """Runners learn of members from the store, not from each other."""

    def _is_coming(self, shard: ShardId) -> bool:
        return self.ownership.state(shard) == "acquiring"

    def _route(self, message: Message) -> None:
        self.node.router.route(message)

    def _reroute(self, message: Message) -> None:
        assert self.node.inbound is not None
        self.node.inbound.give_back(message)

    def _serve(self, message: Message) -> None:
        self._served[message.kind](message)

    async def _keep_polling(self) -> None:
        while True:
            await asyncio.sleep(_POLL * (0.5 + self.node.clock.random()))
            self.host.poll()

    async def _keep_forgetting(self, remove_expired: Callable[[int], Awaitable[int]]) -> None:
        """Forget what is kept for a time only, in small steps, so that nobody waits for it."""
        while True:
            removed = await remove_expired(_FORGET_STEP)
            # One runner at work is enough, but any may be it: with full steps it goes on, else all look rarely.
            full = removed >= _FORGET_STEP
            await asyncio.sleep(_FORGET_PAUSE if full else _FORGET_LOOK * (0.5 + self.node.clock.random()))

    async def _forget_singletons(self, limit: int) -> int:
        return await self.storage.singletons.remove_abandoned()

    def _mistrust(self, shard: ShardId) -> None:
        self.ownership.mistrust(shard)

    def on_refused(self, address: str, error: ActorhubError) -> None:
        """A registered runner cannot be reached: perhaps it is dead, and was so before this one started."""
        for known in self.known_runners:
            if known.info.runner.address == address:
                self.ownership.suspect(known.info.runner.incarnation)

    def _tell_members(self, peers: Sequence[Peer]) -> None:
        live = [runner.info.runner for runner in self.known_runners] or [self.info.runner]
        types = sorted(self.node.router.known_types or self.info.entity_types)
        for peer in peers:
            peer.link.send(Members(live, self.shards_per_group, types))

    def on_stranded(self) -> None:
        """While calls wait for owners, look for them in the store, too."""
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
        machine = await self.storage.lease_machine_id(self.info.runner.incarnation, MACHINE_LEASE)
        self.ids.leased(machine, asked + MACHINE_LEASE.total_seconds())

    async def _lend_machine_id(self, peer: Peer) -> None:
        machine_id = await self.storage.lease_machine_id(peer.runner.incarnation, MACHINE_LEASE)
        peer.link.send(Members([], 0, [], machine_id))


Door = LinkAcceptor
