"""A runner: it hosts shards, and connects ownership, host and routing."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId, ShardOwner
from actorhub.core.clock import Clock
from actorhub.core.envelope import (
    COMPLETE,
    COMPLETED,
    DIAL,
    ECHO,
    FIND_MESSAGE,
    HEALTH,
    KEY_VALUE,
    LET_GO,
    POLL_STORAGE,
    Leaving,
    Members,
    Owners,
)
from actorhub.core.errors import ActorhubError, PersistenceError, ShuttingDown
from actorhub.core.logger import get_logger
from actorhub.engine.anycast.ask import ask_home
from actorhub.engine.anycast.key_value_requests import KeyValueRequests
from actorhub.engine.anycast.letting_go import FormerOwnerRequests
from actorhub.engine.anycast.own_address import OwnAddress
from actorhub.engine.anycast.runner_requests import DeferredOutcome, RunnerRequests
from actorhub.engine.blocking import BlockedLoopWatch
from actorhub.engine.durable.homes import HomeQuestion
from actorhub.engine.durable.server_clock import ServerClock
from actorhub.engine.eras import EraWatch
from actorhub.engine.host import Host
from actorhub.engine.ids import MACHINE_LEASE, RENEW_MACHINE, ProcessIds
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import HostedType, Message
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.engine.node import Node, Process, Serving
from actorhub.engine.owner_reader import OwnerReader
from actorhub.engine.ownership.loop import Ownership
from actorhub.engine.retention import Retention
from actorhub.engine.routing.peers import Peer
from actorhub.engine.singletons.health import RunnerHealth, SingletonHealth
from actorhub.engine.supervision import Supervisor
from actorhub.engine.surroundings import Surroundings
from actorhub.storage.key_value_ports import KeyValues
from actorhub.storage.ports import ClusterValues, LiveRunner, Storage
from actorhub.transport.ports import Link, LinkEvents, Transport

_log: Final = get_logger("actorhub.runner")

_FINISHING: Final = 0.9
"""Share of the grace time in which what runs may finish where no other runner takes the shards over."""
_FORWARDING: Final = 2.0
"""Seconds that a leaving runner waits at most for the next owners to accept what was queued here."""
_POLL: Final = 10.0
"""Seconds between scans of the store, in case this runner was not told of a message."""


class Runner:
    """Hosts shards. Ownership and routing tell it what happens (`on_…`), and it passes that on to the other parts."""

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
        values: ClusterValues,
    ) -> None:
        self.info, self.storage = info, storage
        self.values = values
        self.is_leaving = False
        self.known_runners: Sequence[LiveRunner] = ()
        lease, supervisor = Lease(clock), Supervisor(clock)
        sharding = Sharding(specs)
        self._server = ServerClock(clock)
        self.ids = ProcessIds(clock, self._server.now)
        self.host = Host(
            Surroundings(
                address=info.runner.address,
                incarnation=info.runner.incarnation,
                types=types,
                limits=limits,
                sharding=sharding,
                storage=storage,
                clock=clock,
                lease=lease,
                supervisor=supervisor,
                route=self._route,
                reroute=self._reroute,
                hosted_elsewhere=self._hosted_elsewhere,
                mistrust=self._mistrust,
                new_id=self.ids.new_id,
                server=self._server,
                hosted_groups=self._hosted_groups,
                ask_home=self._ask_home,
                wake=self._wake,
            )
        )
        process = Process(
            incarnation=info.runner.incarnation,
            clock=clock,
            limits=limits,
            supervisor=supervisor,
            ids=self.ids,
            transport=transport,
            sharding=sharding,
            store=storage.messages,
        )
        serving = Serving(host=self.host, lease=lease, is_coming=self._is_coming, serve=self._serve)
        self.node = Node(process, events=self, serving=serving)
        self._former_owners = FormerOwnerRequests(self.node)
        self._owner_reader = OwnerReader(self.node, storage)
        self.ownership = Ownership(
            storage=storage,
            clock=clock,
            info=info,
            shards_per_group=values.shards_per_group,
            lease=lease,
            host=self,
            supervisor=supervisor,
        )
        self.node.on_aborted.append(self.ownership.let_everything_go)
        self.eras = EraWatch(self.node, storage, lease_machine_id=self._renew_machine_id, on_ended=self._on_era_ended)
        self._key_value_requests = KeyValueRequests(storage.key_values, supervisor)
        self._requests = self._make_requests()
        self._own_address = OwnAddress(self.node)
        self._served = self._make_served()
        self.watch = BlockedLoopWatch(self.node.loop, clock)

    def _make_requests(self) -> RunnerRequests:
        return RunnerRequests(
            node=self.node,
            store=self.storage.checkpoints,
            host=self.host,
            health=self.health,
            let_go=self.ownership.let_go,
            is_member=self._is_member,
        )

    def _make_served(self) -> Mapping[int, Callable[[Message], None]]:
        return {
            FIND_MESSAGE: self.host.delivery.requests.find,
            KEY_VALUE: self._key_value_requests.serve,
            **dict.fromkeys((POLL_STORAGE, COMPLETE, COMPLETED, HEALTH, ECHO, LET_GO, DIAL), self._requests.serve),
        }

    @property
    def address(self) -> RunnerAddress:
        """This runner's address and incarnation."""
        return self.info.runner

    @property
    def key_values(self) -> KeyValues:
        """The key-value store."""
        return self.storage.key_values

    async def start(self) -> None:
        """Register, and acquire a first share of the shards. The transport must listen already."""
        await self.prepare()
        self.node.router.on_cluster_values(self.values.shards_per_group)
        await self.ownership.start()
        self.watch.start()
        self._own_address.start()
        _ = self.node.supervisor.loop("waits", self.host.lookout.run)
        _ = self.node.supervisor.loop("residency", self.host.residency.run)
        _ = self.node.supervisor.loop("machine id", self._keep_machine_ids)
        # Also where no handler is durable: the release before may have left messages.
        _ = self.node.supervisor.loop("backlog", self.host.delivery.loader.run)
        _ = self.node.supervisor.loop("schedule", self.host.delivery.due.run)
        _ = self.node.supervisor.loop("scan the store", self._keep_polling)
        _ = self.node.supervisor.loop("bring in strays", self.host.homes.run)
        Retention(self.storage, self.node.supervisor, self.node.clock).start(
            with_singletons=self.host.singletons.has_any
        )

    async def prepare(self) -> None:
        """Have what handlers and singletons need, which start with the first shard that is granted: ids and tokens.

        Raises:
            ConfigurationError: The cluster has agreed on other values.
            PersistenceError: The store failed.
        """
        era = self.storage.era
        if not self.is_prepared():
            await self.storage.agree(self.values, groups=len(self.info.groups))
            await self._renew_machine_id()
            self.host.deferrals.secret = await self.storage.secret()
            self.eras.prepared = era

    def is_prepared(self) -> bool:
        """Whether `prepare` was called in the present era."""
        return self.eras.prepared == self.storage.era

    def _on_era_ended(self, reason: str) -> None:
        self.ownership.let_everything_go(reason)
        self._server.distrust()

    async def leave(self, grace: float) -> None:
        """Hand over every shard, then end, within about `grace` seconds. What is left by then is cut off.

        The links end last. Until then peers send to their next owners what they would have sent here, callers get the
        replies of runs that are still finishing, and tells that were accepted here reach their next mailbox.
        """
        self.is_leaving = True
        self.watch.stop()
        self._own_address.stop()
        # First of all, so that peers no longer choose this runner for what any runner can do.
        self.node.peers.send_to_all(Leaving("shutdown"))
        until = self.node.clock.monotonic() + grace
        successors = self._successors()
        if not all(any(group in info.groups for info in successors) for group in self.info.groups):
            await self.host.finish(grace * _FINISHING)
        grace = self._left(until)
        await self.ownership.leave(grace)
        # Now nothing is owned. What was left in mailboxes has been routed, and is on its way to the next owners.
        await self.node.forward(min(grace, _FORWARDING))
        await self._key_value_requests.leave(min(grace, _FORWARDING))
        # Asks of this process, of its admin RPC's callers among others: who made them was promised a reply.
        await self.node.until_answered(self._left(until))
        # Those whose calls to each other go through here have been told, and look for another way.
        await self.node.relays.until_unused(min(self._left(until), _FORWARDING))
        await self.node.until_heard(self._left(until))
        await self.host.carriers.aclose()
        await self.host.singletons.aclose(1.0)
        await self.node.aclose(1.0)
        try:
            async with asyncio.timeout(2):
                await self.storage.release_machine_id(self.info.runner.incarnation)
        except (PersistenceError, TimeoutError) as error:
            _log.warning(
                "machine id %d could not be given back and stays taken until its lease runs out: %s",
                self.ids.machine,
                error,
            )

    def _left(self, until: float) -> float:
        return max(0.0, until - self.node.clock.monotonic())

    def _successors(self) -> list[RunnerInfo]:
        """Return the runners that may take over what this one lets go of."""
        own, peers = self.info.runner, self.node.peers
        others = [known.info for known in self.known_runners if known.info.runner != own and not known.info.draining]
        return [info for info in others if (peer := peers.by_runner(info.runner)) is None or not peer.is_leaving]

    def _give_up_if_last(self) -> None:
        """Fail what handlers here ask others if the whole cluster leaves: nobody will answer, and they hold it up."""
        if self.is_leaving and not self._successors():
            self.node.router.give_up_asks(ShuttingDown("no runner is left that does not leave the cluster"))

    def health(self) -> RunnerHealth:
        """Return the health of this runner and of the singletons that it leads."""
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
            unreached=self.node.connector.unreached.reported(),
            lost=self.eras.last_loss,
            address_problem=self._own_address.problem,
        )

    def _obstacle(self, singletons: Sequence[SingletonHealth]) -> str:
        if self.ids.machine < 0:
            return "it is starting"
        if self.is_leaving or self.node.closed:
            return "it is leaving the cluster" if self.is_leaving else self.node.why_closed
        if not self.ownership.is_fresh():
            return f"it cannot prove its ownership: {self.storage.obstacle or 'the database does not answer'}"
        if stale := [singleton.name for singleton in singletons if singleton.is_stale]:
            return f"it leads singletons that show no sign of life: {', '.join(stale)}"
        return ""

    def _living(self) -> tuple[RunnerInfo, ...]:
        return (*(known.info for known in self.known_runners), self.info)

    def _hosted_elsewhere(self, entity_type: str) -> bool:
        return entity_type in self.node.router.known_types

    def _hosted_groups(self) -> frozenset[str]:
        return frozenset(group for info in self._living() for group in info.groups)

    async def _ask_home(self, question: HomeQuestion) -> str:
        return await ask_home(self.node, question, self._owner_reader.read_soon)

    def _wake(self, message: Message, shard: ShardId) -> None:
        self.node.router.deposits.wake(message, shard)

    async def runner_healths(self) -> Sequence[RunnerHealth]:
        """Return the health of this runner."""
        return [self.health()]

    def owns(self, shard: ShardId) -> bool:
        """Whether this runner owns the shard."""
        return shard in self.ownership.owned

    def poll(self) -> None:
        """Scan the store for messages and changes of schedules that this runner was not told of."""
        self.host.poll()

    def broadcast_here(self, spec: HandlerSpec, body: bytes) -> int:
        """Tell every entity of the type that is resident here; return how many there are."""
        if self.node.inbound is None or spec.entity_type not in self.host.types:
            return 0
        return self.node.inbound.broadcast_here(spec, body, 0)

    async def complete(self, outcome: DeferredOutcome) -> bool:
        """Store an outcome of a deferred value unless there is one; return whether the stored outcome is this one."""
        return await self._requests.complete(outcome)

    def accept(self, link: Link) -> LinkEvents:
        """Take a link that a peer has opened."""
        return self.node.accept(link)

    def on_granted(self, shards: Mapping[ShardId, int]) -> None:
        """Start to serve these shards, at these epochs.

        The host comes before the announcement: a peer that learns of the new owner sends at once what it has parked.
        """
        owned = [ShardOwner(shard, self.info.runner, epoch) for shard, epoch in shards.items()]
        self.node.table.learn(owned, self.node.clock.monotonic())
        self.host.on_granted(shards)
        self.node.peers.send_to_all(Owners(owned))
        self.node.router.on_owners_changed(shards)

    def on_revoked(self, shards: Collection[ShardId], reason: str) -> None:
        """Stop serving these shards, which are already lost.

        The routing table comes first: the host sends back what has not started, and peers must not be told in the same
        breath that this runner is the owner.
        """
        for shard in shards:
            self.node.table.forget(shard, self.info.runner)
        self.host.on_revoked(shards, reason)
        self.node.peers.send_to_all(Owners([], list(shards)))

    async def drain(self, shard: ShardId, grace: float) -> None:
        """Let the shard's runs finish, and passivate its entities."""
        await self.host.drain(shard, grace)

    def hasten(self, shard: ShardId, grace: float) -> None:
        """Have a drain that is under way end within `grace` seconds."""
        self.host.hasten(shard, grace)

    async def spare(self, shards: Collection[ShardId]) -> None:
        """Have runs that are about to be cut short not count as attempts."""
        hosted = [found for shard in shards if (found := self.host.shards.get(shard)) is not None]
        async with asyncio.TaskGroup() as tasks:
            for shard in hosted:
                tasks.create_task(self.host.delivery.attempts.give_back(shard))

    def on_released(self, shards: Mapping[ShardId, RunnerAddress | None]) -> None:
        """Announce to all peers, the next owners among them, that these shards are free."""
        for shard in shards:
            self.node.table.forget(shard, self.info.runner)
        self.node.peers.send_to_all(Owners([], list(shards)))

    def observe_time(self, now: float) -> None:
        """Take note of the store's time, which a heartbeat has brought."""
        self._server.observe_time(now)

    def on_members_changed(self, runners: Sequence[LiveRunner]) -> None:
        """Link to the runners that are alive, tell the clients, and route what is parked."""
        self.known_runners = runners
        live = [runner.info.runner for runner in runners]
        self._former_owners.forget_others([runner.incarnation for runner in live])
        hosted = frozenset(name for info in self._living() for name in info.entity_types)
        self.node.router.on_hosted(hosted, self._hosted_groups())
        self.node.connector.want([runner for runner in live if runner.incarnation != self.info.runner.incarnation])
        self._tell_members([peer for peer in self.node.peers.linked.values() if not peer.is_runner])
        self.node.router.reconsider()
        self._give_up_if_last()

    def on_linked(self, peer: Peer) -> None:
        """Announce what this runner owns, and to a client also who is in the cluster.

        If the peer is a runner that the runner table did not show yet, the table is read now, so that a newcomer gets
        its shards without waiting for the next heartbeat.
        """
        owned = [ShardOwner(shard, self.info.runner, epoch) for shard, epoch in self.ownership.owned.items()]
        if peer.is_runner:
            self.ownership.trust(peer.runner.incarnation)
            _ = self.node.supervisor.spawn(self._former_owners.check_address(peer), "check address")
            if not self._is_member(peer.runner):
                self.ownership.refresh()
        else:
            self._tell_members([peer])
            if peer.link.peer.machine_id_wanted:
                _ = self.node.supervisor.spawn(self._lend_machine_id(peer), "lend machine id")
        peer.link.send(Owners(owned, complete=True))

    def on_lost(self, peer: Peer) -> None:
        """Suspect the peer if it is a runner that no other link leads to: its locks will tell whether it is dead."""
        if not peer.is_runner:
            return
        # Also if there is another link: what was told over the lost one may be stored, and this runner not know of it.
        self.host.on_new_senders()
        if self.node.peers.by_runner(peer.runner) is None:
            self.ownership.suspect(peer.runner.incarnation)
            self._give_up_if_last()

    def on_owners(self, peer: Peer, news: Owners) -> None:
        """Be ready for what new owners tell, and try to acquire what a peer has released; it may be for this runner."""
        if news.owned:
            self.host.on_new_senders()
        if news.released:
            self.ownership.nudge(news.released)

    def on_members(self, peer: Peer, news: Members) -> None:
        """Do nothing: runners learn of members from the store, not from each other."""

    def _is_member(self, runner: RunnerAddress) -> bool:
        return any(known.info.runner == runner for known in self.known_runners)

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

    def _mistrust(self, shard: ShardId) -> None:
        self.ownership.mistrust(shard)

    async def has_let_go(self, owner: RunnerAddress, tenures: Sequence[ShardOwner], seconds: float) -> bool:
        """Return whether a former owner is known to act for none of `tenures`, or to be dead."""
        return await self._former_owners.has_let_go(owner, tenures, seconds)

    async def is_dead(self, runner: RunnerAddress) -> bool:
        """Return whether a runner is known to be dead, though its session has not ended."""
        return await self._former_owners.is_dead(runner)

    def on_refused(self, runner: RunnerAddress, error: ActorhubError, is_first: bool) -> None:
        """Suspect a registered runner that cannot be reached.

        It may have died before this runner started, so that there never was a link whose end would have told. Later
        attempts say nothing new: its heartbeats tell whether it lives, and the locks of one that lives need not be
        tried again and again.
        """
        if is_first and self.node.peers.by_runner(runner) is None:
            self.ownership.suspect(runner.incarnation)

    def on_leaving(self, peer: Peer) -> None:
        """Have links that go through the runner replaced."""
        self.node.connector.on_leaving(peer)

    def _tell_members(self, peers: Sequence[Peer]) -> None:
        live = [runner.info.runner for runner in self.known_runners] or [self.info.runner]
        types = sorted(self.node.router.known_types or self.info.entity_types)
        for peer in peers:
            peer.link.send(Members(live, self.values.shards_per_group, types, groups=sorted(self._hosted_groups())))

    def on_stranded(self) -> None:
        """Read the owners from the store as well, while calls wait for owners."""
        self._give_up_if_last()
        self._owner_reader.begin()

    async def _keep_machine_ids(self) -> None:
        while True:
            await asyncio.sleep(RENEW_MACHINE)
            await self._renew_machine_id()
            # A client without a database cannot renew its own lease. All runners that it is linked to do, which is
            # harmless.
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
