"""Routing: every message goes to its shard's owner, here or elsewhere, and waits for one where there is none."""

import asyncio
import copy
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from actorhub.core.address import ShardId, ShardOwner
from actorhub.core.clock import Clock
from actorhub.core.envelope import ANY_RUNNER, TELL, Cancel, Request
from actorhub.core.errors import (
    ActorhubError,
    CallTimeout,
    EntityNotAssigned,
    MailboxFull,
    RunnerUnavailable,
    UnknownEntityType,
)
from actorhub.engine.durable.deposits import Deposits
from actorhub.engine.host import Host
from actorhub.engine.model.records import (
    COMMITTING,
    DONE,
    FOREVER,
    NEW,
    PARKED,
    QUEUED,
    RUNNING,
    SENT,
    Message,
)
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.routing.deadlines import Deadlines
from actorhub.engine.routing.peers import Peer, Peers
from actorhub.engine.routing.table import RoutingTable
from actorhub.storage.message_ports import MessageStore

_log: Final = logging.getLogger("actorhub.router")

MAX_HOPS: Final = 16
"""How often a call may be sent on before it only waits for news."""
_LAST_WORD: Final = 0.1
"""Seconds that a peer has, once the caller's deadline passed, to say whether the call's handler ever started."""
MAX_PARKED: Final = 100_000
_PATIENCE: Final = 1.1
"""Seconds that a former owner's replies may still be on their way: a little more than the routing table allows them."""
_LONGEST_TIMEOUT_MS: Final = 2**31 - 1


class RouterStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of this process, and how much waits now."""

    local: int
    remote: int
    parked: int
    not_owner: int
    """Calls that came back because their receiver did not own the shard."""
    refused_replies: int
    """Replies of former owners that were dropped."""


class Router:
    """Sends messages on their way. All methods are synchronous; what waits is in `_parked` and the peers' tables."""

    def __init__(
        self,
        *,
        sharding: Sharding,
        peers: Peers,
        host: Host | None,
        clock: Clock,
        store: MessageStore | None,
        stranded: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            sharding: Maps ids to shards, once the cluster's number of shards is known.
            peers: The open links.
            host: What is hosted here; `None` for a client.
            clock: Its monotonic time is what deadlines are given in.
            store: Where durable tells without an owner can be stored directly; `None`: a runner must be asked.
            stranded: Told when a message starts to wait for an owner.
        """
        self.sharding = sharding
        self.table = RoutingTable()
        self.host = host
        self.deposits = Deposits(store, self)
        self.deadlines: Deadlines[Message] = Deadlines(asyncio.get_running_loop(), clock, self._expire)
        self.known_types: frozenset[str] = frozenset()
        """Entity types that live runners host; empty until somebody said."""
        self._peers = peers
        self._monotonic = clock.monotonic
        self._stranded = stranded
        self._parked: dict[ShardId, deque[Message]] = {}
        self._parked_since: dict[ShardId, float] = {}
        """Since when (monotonic seconds) messages for the shard wait without a break."""
        self._parked_count = 0
        self._ids = itertools.count(1)
        self._early: list[Message] = []
        """Messages that wait for the cluster's number of shards."""
        self._closed: ActorhubError | None = None
        self._local = self._remote = self._not_owner = self.refused_replies = 0
        self._moved: set[ShardId] = set()
        self._moved_timer: asyncio.TimerHandle | None = None

    def statistics(self) -> RouterStatistics:
        """Return counts."""
        return RouterStatistics(self._local, self._remote, self._parked_count, self._not_owner, self.refused_replies)

    def route(self, message: Message) -> None:
        """Deliver here, send to the owner, or park until there is one. Errors arrive as the message's reply."""
        host = self.host
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
        if host is not None and (shard := host.shards.get(shard_id)) is not None:
            self._local += 1
            if message.delivery is None:
                host.submit(message, shard)
            else:
                host.take_durable(message, shard)
            return
        owner = self.table.owner(shard_id)
        peer = self._peers.by_runner(owner.runner) if owner is not None else None
        if peer is not None and message.hops < MAX_HOPS:
            self._send(message, peer)
        else:
            self._park(message, shard_id)

    def send_to(self, message: Message, peer: Peer) -> None:
        """Send to that peer, whoever owns what."""
        self._send(message, peer)

    def wait_for_owner(self, message: Message) -> None:
        """Park a message of this runner's until there is news of its shard's owner, or of the cluster."""
        self._park(message, self.sharding.shard_of_target(message))

    def cluster_values_known(self, shards_per_group: int) -> None:
        """Let everything go that waited for the number of shards."""
        self.sharding.shards_per_group = shards_per_group
        early, self._early = self._early, []
        for message in early:
            if message.phase == PARKED:
                message.phase = NEW
                self.route(message)

    def release(self, shards: Iterable[ShardId]) -> None:
        """Route again what is parked for `shards`, in the order in which it was parked."""
        for shard in shards:
            parked = self._parked.pop(shard, None)
            if parked is None:
                continue
            self._parked_count -= len(parked)
            for message in parked:
                if message.phase == PARKED:
                    message.phase = NEW
                    self.route(message)
            if shard not in self._parked:
                self._parked_since.pop(shard, None)

    def owners_changed(self, shards: Iterable[ShardId]) -> None:
        """Route what waits for these shards, and before long give up what their former owners did not answer.

        A former owner whose event loop is blocked, or whose commit hangs, keeps its links alive: nothing else ends the
        wait. By then its reply would be refused anyway.
        """
        self._moved.update(shards)
        if self._moved and self._moved_timer is None:
            self._moved_timer = asyncio.get_running_loop().call_later(_PATIENCE, self._give_up_on_former_owners)
        self.release(shards)

    def has_undelivered_tells(self) -> bool:
        """Whether a tell that was accepted here waits for an owner, or for one to accept it."""
        waiting = itertools.chain(*self._parked.values(), *(peer.pending.values() for peer in self._peers.runners()))
        return any(message.kind == TELL and message.phase in (PARKED, SENT) for message in waiting)

    def parked_shards(self) -> list[ShardId]:
        """Return the shards for which something waits."""
        return list(self._parked)

    def longest_wait(self) -> float:
        """Return for how many seconds messages for some shard have been waiting for an owner without a break."""
        waiting = (shard for shard, parked in self._parked.items() if any(m.phase == PARKED for m in parked))
        since = min((self._parked_since[shard] for shard in waiting), default=None)
        return 0.0 if since is None else self._monotonic() - since

    def reconsider(self) -> None:
        """Fail what can never be delivered, and give what was sent on too often another round."""
        for shard, parked in list(self._parked.items()):
            for message in list(parked):
                message.hops = 0
                if message.phase == PARKED and (error := self._undeliverable(message)) is not None:
                    self._refuse(message, error)
            self.release([shard])

    def not_owner(self, peer: Peer, request_id: int, hint: ShardOwner | None) -> None:
        """A peer sent our call back unexecuted: believe its hint if it is news, and route again."""
        message = peer.pending.pop(request_id, None)
        if message is None:
            return
        self._not_owner += 1
        shard = message.shard_id
        assert shard is not None
        self.table.forget(shard, peer.runner)
        if hint is not None and hint.runner != peer.runner:
            self.table.learn([hint], self._monotonic())
        message.hops += 1
        self._again(message)

    def link_lost(self, peer: Peer, unsent: Iterable[int], reason: str) -> None:
        """Route again what never left, fail what may have been executed."""
        never_left = set(unsent)
        pending, peer.pending = peer.pending, {}
        for request_id, message in pending.items():
            if message.phase != SENT:
                continue
            if request_id in never_left:
                self._again(message)
            else:
                self.lost(message, peer, f"the link broke before the reply came: {reason}")

    def lost(self, message: Message, peer: Peer, reason: str) -> None:
        """The peer may or may not have run the call, and its answer will not come or does not count.

        A durable call is sent again: it is known by its id, and runs once.
        """
        if message.delivery is not None or message.try_resume():
            self._again(message, unsure=True)
            return
        message.phase = DONE
        message.on_failed(RunnerUnavailable(f"{message.address} on {peer.runner}: {reason}", possibly_executed=True))

    def _expire(self, message: Message) -> None:
        """The caller's deadline passed: call back what can be called back, and tell the caller what is known then."""
        phase = message.phase
        left = message.what + "(" + message.entity_id + ")"
        if phase in (NEW, PARKED):
            message.phase = DONE
            text = f"{left}: no runner owned its shard {message.shard_id} before the deadline"
            message.on_failed(EntityNotAssigned(text, possibly_executed=message.was_sent_before))
        elif phase == QUEUED:
            self.withdraw(message, CallTimeout(f"{left}: it waited in the mailbox until the deadline"))
        elif phase == SENT and message.abandoned_for is None and message.peer is not None:
            message.abandoned_for = CallTimeout(f"{left}: no reply before the deadline", possibly_executed=True)
            message.peer.ask_outcome(message)
            message.deadline = self._monotonic() + _LAST_WORD
            self.deadlines.add(message)
        elif phase in (SENT, RUNNING, COMMITTING):
            error = message.abandoned_for or CallTimeout(f"{left}: no reply before the deadline")
            error.possibly_executed = True
            message.on_failed(error)
            self.withdraw(message, error)

    def withdraw(self, message: Message, error: ActorhubError) -> None:
        """The caller no longer waits: dequeue the message or cancel its run, wherever it is."""
        if message.phase == SENT:
            message.phase = DONE
            if message.peer is not None:
                message.peer.recall(message)
        elif message.phase in (NEW, PARKED):
            message.phase = DONE
        elif self.host is not None:
            self.host.scheduler.abandon(message, error)

    def close(self, error: ActorhubError) -> None:
        """Fail everything that is parked, and whatever would be parked from now on."""
        self._closed = error
        self.deadlines.close()
        if self._moved_timer is not None:
            self._moved_timer.cancel()
        waiting = [*self._early, *(m for parked in self._parked.values() for m in parked)]
        self._early.clear()
        self._parked.clear()
        self._parked_since.clear()
        self._parked_count = 0
        for message in waiting:
            if message.phase == PARKED:
                self._refuse(message, error)

    def _give_up_on_former_owners(self) -> None:
        moved, self._moved = self._moved, set()
        self._moved_timer = None
        for peer in self._peers.runners():
            for message in [m for m in peer.pending.values() if m.phase == SENT and m.shard_id in moved]:
                assert message.shard_id is not None
                owner = self.table.owner(message.shard_id)
                if owner is not None and owner.runner != peer.runner:
                    del peer.pending[message.request_id]
                    peer.link.send(Cancel(message.request_id, timed_out=False))
                    self.lost(message, peer, f"{owner.runner} took the shard over before the reply came")

    def _again(self, message: Message, *, unsure: bool = False) -> None:
        if (error := message.abandoned_for) is not None:
            message.phase = DONE
            error.possibly_executed = unsure or message.was_sent_before
            message.on_failed(error)
            return
        if message.kind in ANY_RUNNER:
            message.phase = DONE
            message.on_failed(RunnerUnavailable(f"{message.address}: the link broke before it was sent"))
            return
        message.phase = NEW
        message.peer = None
        if message.delivery is not None:
            said = message.delivery
            message.delivery = msgspec.structs.replace(
                said, is_repeated=True, is_deposit=said.is_deposit and said.is_stored
            )
        self.route(message)

    def _send(self, message: Message, peer: Peer) -> None:
        try:
            peer.check_room()
        except MailboxFull as error:
            message.phase = DONE
            message.on_failed(error)
            return
        self._remote += 1
        request_id = message.request_id = next(self._ids)
        timeout_ms = 0
        if message.deadline != FOREVER:
            timeout_ms = int((message.deadline - self._monotonic()) * 1000)
            if not 0 < timeout_ms <= _LONGEST_TIMEOUT_MS:
                timeout_ms = 1 if timeout_ms <= 0 else _LONGEST_TIMEOUT_MS
        message.phase = SENT
        message.peer = peer
        peer.pending[request_id] = message
        spec = message.spec
        peer.link.send(
            Request(
                request_id,
                message.kind,
                spec.entity_type,
                message.entity_id,
                spec.name,
                message.body,
                timeout_ms,
                message.hops,
                message.chain,
                message.headers or {},
                message.message_id,
                message.credit,
                message.waits_for_room,
                message.delivery,
                message.skip,
            )
        )

    def _park(self, message: Message, shard: ShardId) -> None:
        error = self._closed or self._undeliverable(message)
        if error is None and self._parked_count >= MAX_PARKED:
            error = MailboxFull(f"{message.address}: {self._parked_count} calls wait for owners already")
        if error is not None:
            self._refuse(message, error)
            return
        message.phase = PARKED
        self._parked_count += 1
        self._parked.setdefault(shard, deque()).append(message)
        self._parked_since.setdefault(shard, self._monotonic())
        if message.kind == TELL and message.delivery is not None and not message.delivery.is_stored:
            self.deposits.on_parked(message)
        self._stranded()

    def _refuse(self, message: Message, error: ActorhubError) -> None:
        """Fail a message that waits here; one that was sent before may have run elsewhere."""
        if message.was_sent_before:
            error = copy.copy(error)
            error.possibly_executed = True
        message.phase = DONE
        message.on_failed(error)

    def unpark(self, message: Message) -> None:
        """Take a message out of what waits for owners."""
        shard = message.shard_id
        assert shard is not None
        parked = self._parked.get(shard)
        if parked is not None and message in parked:
            parked.remove(message)
            self._parked_count -= 1

    def ask_a_runner(self, message: Message) -> bool:
        """Have any runner store a durable tell that this process cannot store; `False`: there is none."""
        peers = self._peers.runners()
        if peers:
            self._send(message, peers[0])
        return bool(peers)

    def _undeliverable(self, message: Message) -> ActorhubError | None:
        """Return the error of a message that no runner of the cluster can take, ever."""
        name = message.spec.entity_type
        if not self.known_types or name in self.known_types:
            return None
        return UnknownEntityType(
            f"no live runner hosts entity type {name!r}: they host {', '.join(sorted(self.known_types))}"
        )
