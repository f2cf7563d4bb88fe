"""Routing: every message goes to the owner of its shard, here or elsewhere, or waits until there is one."""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from actorhub.core.address import RunnerAddress, ShardId, ShardOwner
from actorhub.core.clock import Clock
from actorhub.core.envelope import ABOUT_MESSAGES, ANY_RUNNER, ASK, TELL
from actorhub.core.errors import (
    ActorhubError,
    CallTimeout,
    EntityNotAssigned,
    MailboxFull,
    RunnerUnavailable,
    UnknownEntityType,
)
from actorhub.core.logger import get_logger
from actorhub.engine.durable.deposits import Deposits
from actorhub.engine.durable.homes import HomeQuestion
from actorhub.engine.host import Host
from actorhub.engine.model.records import (
    COMMITTING,
    DONE,
    NEW,
    PARKED,
    QUEUED,
    RUNNING,
    SENT,
    Message,
)
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.routing.deadlines import Deadlines
from actorhub.engine.routing.deadlocks import deadlock_of
from actorhub.engine.routing.late_replies import LateReplies
from actorhub.engine.routing.parked import Parked
from actorhub.engine.routing.peers import Peer, Peers
from actorhub.engine.routing.table import RoutingTable
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import MessageStore

_log: Final = get_logger("actorhub.router")

MAX_HOPS: Final = 16
"""How often a call may come back before it waits for an announcement. Two runners that each believe the other one to be
the owner would otherwise send it to and fro."""
_OUTCOME_WAIT: Final = 0.1
"""Seconds that a peer has, after the caller's deadline, to say whether the handler of the call had started."""
MAX_PARKED: Final = 100_000
"""Calls that may wait for owners at once."""


class RouterStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of this process, and how many messages wait now."""

    local: int
    remote: int
    parked: int
    not_owner: int
    """How many calls came back because their receiver did not own the shard."""
    refused_replies: int
    """How many replies of former owners were refused."""


class Router:
    """Sends messages on their way.

    A message waits in one of three places: in `_early` until the number of shards is known, in `_parked` until its
    shard has a reachable owner, or in the `pending` table of the link that it was sent over. Every method is
    synchronous, so none of them sees a message between two places.
    """

    def __init__(
        self,
        *,
        sharding: Sharding,
        peers: Peers,
        host: Host | None,
        clock: Clock,
        store: MessageStore | None,
        supervisor: Supervisor,
        on_stranded: Callable[[], None],
        unreached: Callable[[RunnerAddress | None], str],
    ) -> None:
        """Prepare.

        Args:
            sharding: Maps ids to shards, once the cluster's number of shards is known.
            peers: The open links.
            host: Runs messages here; `None` for a client.
            clock: Deadlines are in its monotonic seconds.
            store: Takes durable tells that find no owner; `None` if a runner must be asked to store them.
            supervisor: Owns the tasks of what takes more than one request to the store.
            on_stranded: Told when a message begins to wait for an owner.
            unreached: Returns, for an error, which runners cannot be reached: that one, or any; empty for none.
        """
        self.sharding = sharding
        self.table = RoutingTable()
        self.host = host
        self.deposits = Deposits(store, self, supervisor)
        self.deadlines: Deadlines[Message] = Deadlines(asyncio.get_running_loop(), clock, self._on_expired)
        self.known_types: frozenset[str] = frozenset()
        """The entity types that living runners host; empty until that is known."""
        self._groups: frozenset[str] = frozenset()
        """The shard groups that living runners host; empty as long as that is not known."""
        self._peers = peers
        self._monotonic = clock.monotonic
        self._on_stranded = on_stranded
        self._unreached = unreached
        self._parked = Parked(clock.monotonic)
        self._ids = itertools.count(1)
        self._early: list[Message] = []
        """Messages that wait until the cluster's number of shards is known."""
        self._closed: ActorhubError | None = None
        self._local = self._remote = self._not_owner = self.refused_replies = 0
        self._late = LateReplies(peers, self.table, supervisor, send_to=self._send, on_lost=self.on_lost)

    def statistics(self) -> RouterStatistics:
        """Return the counters as they are now."""
        return RouterStatistics(self._local, self._remote, self._parked.count, self._not_owner, self.refused_replies)

    def route(self, message: Message) -> None:
        """Deliver the message here, send it to the owner, or park it until there is one. Errors become its reply."""
        host = self.host
        # Most local calls end here: a resident entity is found without hashing its id. Calls of durable handlers do not
        # go straight to the mailbox, because they are stored first.
        if host is not None and message.delivery is None:
            hosted = host.types.get(message.spec.entity_type)
            if hosted is not None and (cell := hosted.cells.get(message.entity_id)) is not None:
                self._local += 1
                host.scheduler.enqueue(cell, message)
                return
        if self.sharding.shards_per_group == 0:
            self._early.append(message)
            message.phase = PARKED
            return
        shard_id = self.sharding.shard_of_target(message)
        if self.deposits.under_way and self.deposits.holds_back(message, shard_id):
            self._park(message, shard_id)
            return
        if host is not None and (shard := host.shards.get(shard_id)) is not None:
            self._local += 1
            if message.delivery is None:
                host.submit(message, shard)
            else:
                host.delivery.accept(message, shard)
            return
        # A known owner without a link is as good as none for now: the link is being opened, and releases what is
        # parked.
        owner = self.table.owner(shard_id)
        peer = self._peers.by_runner(owner.runner) if owner is not None else self._stand_in(message, shard_id)
        if peer is not None and message.hops < MAX_HOPS:
            self._send(message, peer)
        else:
            self._park(message, shard_id)

    def _stand_in(self, message: Message, shard: ShardId) -> Peer | None:
        """Return a runner that may know where the entity is, if nobody hosts the group where it is declared here.

        In that runner's release the entity type may have another group. It passes the message on.
        """
        is_hosted_here = self.host is not None and message.spec.entity_type in self.host.types
        if shard.group in self._groups or not self._groups or is_hosted_here or _is_about_shard(message):
            return None
        runners = self._peers.to_ask()
        return runners[message.hops % len(runners)] if runners else None

    def is_tried_elsewhere(self, message: Message) -> bool:
        """Send a message on of which a peer says that it does not host the type, if that was a stand-in."""
        shard = message.shard_id
        if shard is None or message.hops + 1 >= MAX_HOPS or self._stand_in(message, shard) is None:
            return False
        message.hops += 1
        self._route_again(message)
        return True

    def on_hosted(self, types: frozenset[str], groups: frozenset[str]) -> None:
        """Take in which entity types and shard groups living runners host."""
        self.known_types, self._groups = types, groups

    def send_to(self, message: Message, peer: Peer) -> None:
        """Send the message to that peer, whoever owns the shard."""
        self._send(message, peer)

    def wait_for_owner(self, message: Message) -> None:
        """Park a message until an owner of its shard is announced, or the members of the cluster change."""
        self._park(message, self.sharding.shard_of_target(message))

    def on_cluster_values(self, shards_per_group: int) -> None:
        """Route what was waiting for the number of shards."""
        self.sharding.shards_per_group = shards_per_group
        early, self._early = self._early, []
        for message in early:
            if message.phase == PARKED:
                message.phase = NEW
                self.route(message)

    def release(self, shards: Iterable[ShardId]) -> None:
        """Route again what is parked for `shards`, in the order in which it was parked (invariant G).

        Some of it may be parked again at once. Then the time since which the shard's messages wait stays as it was.
        """
        for shard in shards:
            # Taken out before any of it is routed: what is parked again goes to a new queue, and is not routed twice.
            for message in self._parked.take(shard):
                if message.phase == PARKED:
                    message.phase = NEW
                    self.route(message)
            self._parked.forget_wait(shard)

    def on_owners_changed(self, shards: Iterable[ShardId]) -> None:
        """Route what waits for these shards, and give up what their former owners have not answered.

        Durable messages go to the next owner at once, before what is sent later can overtake them (invariant G): the
        store knows them, so each takes effect once. For other replies there is a grace time.
        """
        self._late.watch(shards)
        for peer, message in self._late.owed(frozenset(shards)):
            # A deposit is stored by any runner, not by the shard's owner.
            if message.delivery is not None and message.kind in (ASK, TELL) and not message.delivery.is_deposit:
                assert message.shard_id is not None
                peer.recall(message)
                if self._comes_back(message, unsure=True):
                    self._parked.add(message, message.shard_id)
        self.release(shards)

    def has_undelivered_tells(self) -> bool:
        """Whether a tell that was accepted here is parked, or on its way to an owner that has not accepted it yet.

        A wake that is parked is not needed: whoever takes the shard polls the store.
        """
        tells = (message for message in self._elsewhere() if message.kind == TELL)
        return any(tell.phase == SENT or (tell.phase == PARKED and not _is_about_shard(tell)) for tell in tells)

    def asks_elsewhere(self) -> list[Message]:
        """Return the asks whose replies are to come through here from other processes."""
        return [message for message in self._elsewhere() if message.kind == ASK]

    def _elsewhere(self) -> Iterable[Message]:
        return itertools.chain(self._parked, *(peer.pending.values() for peer in self._peers.runners()))

    def parked_shards(self) -> list[ShardId]:
        """Return the shards that something is parked for."""
        return self._parked.shards()

    def longest_wait(self) -> float:
        """Return for how many seconds some shard has had messages that wait for its owner."""
        return self._parked.longest_wait()

    def reconsider(self) -> None:
        """Try again everything that is parked; fail what no runner of the cluster can take.

        Called when the members of the cluster have changed or owners were read from the store. Messages that came back
        too often get another `MAX_HOPS` attempts.
        """
        self.table.trust_again()
        for shard in self._parked.shards():
            for message in self._parked.of(shard):
                message.hops = 0
                if not _is_about_shard(message):
                    message.shard_id = None  # It may have waited for the owner of a shard where its entity was before.
                if message.phase == PARKED and (error := self._undeliverable(message)) is not None:
                    self._refuse(message, error)
            self.release([shard])

    def on_not_owner(self, peer: Peer, request_id: int, hint: ShardOwner | None) -> None:
        """Route again a call that a peer sent back: it did not run there, and will not.

        The peer's hint is taken only as far as its epoch is newer than what is known, and never if it names the peer
        itself: an out-of-date hint would lead the message in a circle. One that names another shard says that the peer
        has the entity there, and nothing about who owns the shard that the message was sent to.
        """
        message = peer.pending.pop(request_id, None)
        if message is None:
            return
        if isinstance(message, HomeQuestion):
            message.on_sent_back(hint)
            return
        self._not_owner += 1
        shard = message.shard_id
        assert shard is not None
        if hint is None or hint.shard == shard:
            self.table.doubt(shard, peer.runner)
        changed: list[ShardId] = []
        owner = hint if hint is not None and hint.runner.address else None
        if owner is not None and owner.runner != peer.runner:
            changed = self.table.learn([owner], self._monotonic())
        message.hops += 1
        if not _is_about_shard(message):
            # A peer that has declared the entity for another shard names that and its owner. Without them the message
            # goes its own way again, also if it was sent to an entity's home before.
            message.shard_id = None if owner is None else owner.shard
        # The peer may have stored a durable one before it lost the shard. Then the next owner runs it, whoever asks.
        if self._comes_back(message, unsure=message.delivery is not None):
            if changed and message.delivery is not None:
                self._parked.add(message, changed[0])  # to be routed in its place among those that come back as well
            else:
                self.route(message)
        self.on_owners_changed(changed)

    def on_link_lost(self, peer: Peer, unsent: Iterable[int], reason: str) -> None:
        """Route again what never left this process, and treat as lost what may have been executed."""
        never_left = set(unsent)
        # Taken out first: settling one call may send others, or call back one that is in the same table.
        pending, peer.pending = peer.pending, {}
        for request_id, message in pending.items():
            if message.phase != SENT:
                continue
            if request_id in never_left:
                self._route_again(message)
            else:
                self.on_lost(message, peer, f"the link broke before the reply came: {reason}")

    def on_lost(self, message: Message, peer: Peer, reason: str) -> None:
        """Settle a call that the peer may or may not have run, and whose answer will not come or does not count.

        A durable call is sent again: the store knows it by its id, so it takes effect once. Any other call fails, and
        the error says that it may have been executed; only the caller can know whether repeating it does harm.
        """
        # Durable calls first: `try_resume` prepares a stream to go on elsewhere, and is asked once per loss.
        if message.delivery is not None or message.try_resume():
            self._route_again(message, unsure=True)
            return
        message.phase = DONE
        message.on_failed(RunnerUnavailable(f"{message.address} on {peer.runner}: {reason}", possibly_executed=True))

    def _on_expired(self, message: Message) -> None:
        """End a call whose deadline has passed, and tell the caller whether its handler may have run (invariant F).

        A call that waits here has certainly not run. Of one that was sent, the peer alone knows: it is asked, and the
        answer, or a second deadline shortly after the first, settles the call.
        """
        phase = message.phase
        left = message.what + "(" + message.entity_id + ")"
        if phase in (NEW, PARKED):
            message.phase = DONE
            text = f"{left}: {self._why_parked(message.shard_id)}"
            message.on_failed(EntityNotAssigned(text, possibly_executed=message.was_sent_before))
        elif phase == QUEUED:
            # It is in a mailbox of this process and has not started, so it can be taken out for certain.
            where = "in the mailbox" if message.cell is not None else "for a place in memory"
            self.withdraw(message, self._timed_out(message, f"{left}: it waited {where} until the deadline"))
        elif phase == SENT and message.abandoned_for is None and message.peer is not None:
            message.abandoned_for = CallTimeout(f"{left}: no reply before the deadline", possibly_executed=True)
            message.peer.ask_outcome(message)
            message.deadline = self._monotonic() + _OUTCOME_WAIT
            self.deadlines.add(message)
        elif phase in (SENT, RUNNING, COMMITTING):
            # The peer did not say in time, or the handler runs here. A commit that is under way goes on, and only its
            # reply is dropped: it cannot be called back, and its outcome is still unknown.
            error = message.abandoned_for or self._timed_out(message, f"{left}: no reply before the deadline")
            error.possibly_executed = True
            message.on_failed(error)
            self.withdraw(message, error)

    def _why_parked(self, shard: ShardId | None) -> str:
        owner = None if shard is None else self.table.owner(shard)
        unreached = self._unreached(None if owner is None else owner.runner)
        if owner is not None and unreached:
            return (
                f"the owner of its shard {shard} was not reached before the deadline, neither directly nor through "
                f"another runner: {unreached}"
            )
        text = f"no runner owned its shard {shard} before the deadline"
        return f"{text}, as far as runners were reached, but for {unreached}" if unreached else text

    def _timed_out(self, message: Message, text: str) -> CallTimeout:
        return CallTimeout(text if self.host is None else text + deadlock_of(message, self.host.types))

    def withdraw(self, message: Message, error: ActorhubError) -> None:
        """Take back a message whose caller no longer waits: dequeue it or cancel its run, wherever it is."""
        if message.phase == SENT:
            message.phase = DONE
            if message.peer is not None:
                message.peer.recall(message)
        elif message.phase in (NEW, PARKED):
            message.phase = DONE
        elif self.host is not None:
            self.host.scheduler.abandon(message, error)

    def close(self, error: ActorhubError) -> None:
        """Fail everything that is parked, and everything that would be parked from now on."""
        # From here on nothing is parked: what is routed again because its link ends is refused at once.
        self._closed = error
        self.deadlines.close()
        self._late.close()
        waiting = [*self._early, *self._parked]
        self._early.clear()
        self._parked.clear()
        for message in waiting:
            if message.phase == PARKED:
                self._refuse(message, error)

    def give_up_asks(self, error: ActorhubError) -> None:
        """Fail every call that waits for an owner; tells go on waiting."""
        for message in self._parked:
            if message.phase == PARKED and message.kind != TELL:
                self._refuse(message, error)

    def _route_again(self, message: Message, *, unsure: bool = False) -> None:
        """Route a message that came back, unless its caller has given up; `unsure`: it may have been executed."""
        if self._comes_back(message, unsure=unsure):
            self.route(message)

    def _comes_back(self, message: Message, *, unsure: bool) -> bool:
        """Make a message that came back ready to be routed; return `False` if it has ended instead."""
        if (error := message.abandoned_for) is not None:
            message.phase = DONE
            error.possibly_executed = unsure or message.was_sent_before
            message.on_failed(error)
            return False
        if message.kind in ANY_RUNNER or isinstance(message, HomeQuestion):
            # There is no shard to route it by. Whoever asks knows which other runner to try.
            message.phase = DONE
            message.on_failed(RunnerUnavailable(f"{message.address}: the link broke before the request was sent"))
            return False
        message.phase = NEW
        message.peer = None
        if message.delivery is not None:
            durable = message.delivery
            # `is_repeated` has the store look among settled messages, too: the first sending may have run to its end. A
            # tell that was to be deposited goes the usual way again, since there may be an owner by now.
            message.delivery = msgspec.structs.replace(durable, is_repeated=True, is_deposit=durable.is_wake)
        return True

    def _send(self, message: Message, peer: Peer) -> None:
        try:
            peer.check_room()
        except MailboxFull as error:
            self._refuse(message, error)
            return
        self._remote += 1
        message.request_id = next(self._ids)
        peer.send(message, self._monotonic())

    def _park(self, message: Message, shard: ShardId) -> None:
        error = self._closed or self._undeliverable(message)
        if error is None and self._parked.count >= MAX_PARKED:
            text = f"{message.address}: {self._parked.count} calls already wait for the owners of their shards"
            error = MailboxFull(text)
        if error is not None:
            self._refuse(message, error)
            return
        self._parked.add(message, shard)
        # A durable tell does not need an owner to be accepted. If none comes soon, it is stored for whoever will be it.
        if message.kind == TELL and message.delivery is not None and not message.delivery.is_stored:
            self.deposits.on_parked(message)
        self._on_stranded()

    def _refuse(self, message: Message, error: ActorhubError) -> None:
        """Fail a message that waits here. One that was sent before may have run elsewhere, and its error says so."""
        message.phase = DONE
        message.on_failed(message.own_error(error))

    def can_reach_owner(self, shard: ShardId) -> bool:
        """Return whether the shard has a known owner, here or over a link."""
        if self.host is not None and shard in self.host.shards:
            return True
        owner = self.table.owner(shard)
        return owner is not None and self._peers.by_runner(owner.runner) is not None

    def unpark(self, message: Message) -> list[Message]:
        """Remove a durable tell that is parked, with the durable messages to its entity that were sent before it."""
        assert message.shard_id is not None
        return self._parked.take_up_to(message, message.shard_id)

    def can_ask_a_runner(self) -> bool:
        """Return whether there is a runner that can store a durable message."""
        return bool(self._peers.runners())

    def ask_a_runner(self, message: Message) -> None:
        """Have some runner store a durable message that this process cannot store."""
        self._send(message, self._peers.runners()[0])

    def _undeliverable(self, message: Message) -> ActorhubError | None:
        """Return the error of a message whose entity type no runner hosts; `None` if one does, or that is not known."""
        name = message.spec.entity_type
        if not self.known_types or name in self.known_types or message.kind in ABOUT_MESSAGES:
            return None
        return UnknownEntityType(
            f"no live runner hosts entity type {name!r}: they host {', '.join(sorted(self.known_types))}"
        )


def _is_about_shard(message: Message) -> bool:
    """Whether a message is for the owner of the shard that it names, wherever its entity is by now."""
    return message.kind in ABOUT_MESSAGES or (message.delivery is not None and message.delivery.is_wake)
