"""The open links to other processes, and what is in flight on each."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from actorhub.core.address import RunnerAddress
from actorhub.core.envelope import Cancel, Credit, Envelope, Request
from actorhub.core.errors import MailboxFull
from actorhub.engine.model.records import FOREVER, SENT, Message
from actorhub.transport.ports import Link

MAX_IN_FLIGHT: Final = 65_536
"""Calls that one process may have in flight to one peer, and that it serves for one peer at a time."""
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
"""Bytes that may wait to be sent to one peer."""
_LONGEST_TIMEOUT_MS: Final = 2**31 - 1


class PeerEvents(Protocol):
    """Handles what happens on the links."""

    def on_linked(self, peer: "Peer") -> None:
        """A link has been established."""
        ...

    def on_received(self, peer: "Peer", envelopes: Sequence[Envelope]) -> None:
        """A frame has arrived."""
        ...

    def on_unlinked(self, peer: "Peer", reason: str, unsent: Sequence[Envelope]) -> None:
        """The link is gone. What is left in `peer.pending` and `peer.serving` is the receiver's to settle."""
        ...


class Peer:
    """One link to one incarnation of one process.

    What is in flight belongs to the link, not to the process at its other end: when the link breaks, no answer to it
    will come, even if there is another link to the same process.
    """

    __slots__ = ("_events", "_on_ended", "is_leaving", "is_retired", "link", "pending", "runner", "serving", "via")

    def __init__(self, link: Link, events: PeerEvents, on_ended: Callable[[], None], via: "Peer | None" = None) -> None:
        """Take an open link.

        Args:
            link: Leads to the peer.
            events: Told of what happens on it.
            on_ended: Called when the link is gone, after `events` has been told.
            via: The runner that the link goes through; `None`: it is direct.
        """
        self._events = events
        self._on_ended = on_ended
        self.link = link
        self.via = via
        self.runner = RunnerAddress(link.peer.address, link.peer.incarnation)
        """A client's address is empty."""
        self.pending: dict[int, Message] = {}
        """Our calls that the peer has not answered yet, by request id."""
        self.serving: dict[int, Message] = {}
        """The peer's calls that we have not answered yet, by request id."""
        self.is_leaving = False
        """Whether it has announced that it is leaving; others should be asked first."""
        self.is_retired = False
        """Whether the other end has been told that we make no more calls over this link."""

    @property
    def is_runner(self) -> bool:
        """Whether the peer hosts shards."""
        return bool(self.runner.address)

    def check_room(self) -> None:
        """Refuse another call if too much is in flight.

        Raises:
            MailboxFull: The limit of calls or of bytes has been reached. Nothing was sent.
        """
        if len(self.pending) >= MAX_IN_FLIGHT or self.link.queued_bytes > MAX_QUEUED_BYTES:
            raise MailboxFull(f"{len(self.pending)} calls are in flight to {self.runner}: wait for some of them")

    def send(self, message: Message, now: float) -> None:
        """Send a message that has a request id, at a monotonic time."""
        # In `pending` before it is sent: if the link has just broken, its end settles what it finds there.
        message.phase = SENT
        message.peer = self
        self.pending[message.request_id] = message
        self.link.send(_request_of(message, now))

    def recall(self, message: Message) -> None:
        """Forget the message, and have the peer drop it, because nobody waits for the peer's reply."""
        if self.pending.pop(message.request_id, None) is not None:
            self.link.send(Cancel(message.request_id))

    def grant(self, message: Message, count: int) -> None:
        """Allow the peer's producer to send `count` more items of the stream."""
        self.link.send(Credit(message.request_id, count))

    def ask_outcome(self, message: Message) -> None:
        """Have the peer end the message, whose deadline has passed, and say whether its handler had started."""
        self.link.send(Cancel(message.request_id, timed_out=True))

    def received(self, envelopes: Sequence[Envelope]) -> None:
        """Pass a frame on."""
        self._events.on_received(self, envelopes)

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        """Pass the end of the link on."""
        self._events.on_unlinked(self, reason, unsent)
        self._on_ended()


class Peers:
    """The peers with an open link, runners and clients.

    A process may have several links to one incarnation: both have opened one, or there is a direct one again. It sends
    over one of them, and serves what comes over any.
    """

    def __init__(self) -> None:
        self.linked: dict[str, Peer] = {}
        """By incarnation, the peer over whose link new calls go."""
        self._others: dict[str, list[Peer]] = {}
        """By incarnation, the other open links, oldest first."""

    def runners(self) -> list[Peer]:
        """Return the peers that host shards."""
        return [peer for peer in self.linked.values() if peer.is_runner]

    def to_ask(self) -> list[Peer]:
        """Return the runners to ask for what any of them can do: those that are not leaving, or all if every one is."""
        runners = self.runners()
        return [peer for peer in runners if not peer.is_leaving] or runners

    def by_runner(self, runner: RunnerAddress) -> Peer | None:
        """Return the peer of that incarnation; `None` if there is no link to it."""
        return self.linked.get(runner.incarnation)

    def direct(self, incarnation: str) -> Peer | None:
        """Return a peer of that incarnation whose link goes through nobody else; `None` if there is none."""
        linked = self.linked.get(incarnation)
        known = self._others.get(incarnation, []) if linked is None else [linked, *self._others.get(incarnation, [])]
        return next((peer for peer in known if peer.via is None), None)

    def direct_addresses(self) -> set[str]:
        """Return the addresses of the runners that there is a direct link to."""
        return {peer.runner.address for peer in self.every() if peer.via is None}

    def every(self) -> list[Peer]:
        """Return a peer for every open link."""
        return [*self.linked.values(), *(peer for others in self._others.values() for peer in others)]

    def add(self, peer: Peer) -> Peer | None:
        """Add a link, for new calls unless it goes through another runner and an open one does not.

        Returns:
            The peer over whose link calls went until now; `None` if there was none, or if it stays.
        """
        incarnation = peer.runner.incarnation
        former = self.linked.get(incarnation)
        if former is None:
            self.linked[incarnation] = peer
            return None
        peer.is_leaving = former.is_leaving
        stays = peer.via is not None and former.via is None
        if not stays:
            self.linked[incarnation] = peer
        self._others.setdefault(incarnation, []).append(peer if stays else former)
        return None if stays else former

    def is_used(self, peer: Peer) -> bool:
        """Return whether new calls go over this link."""
        return self.linked.get(peer.runner.incarnation) is peer

    def remove(self, peer: Peer) -> None:
        """Remove a closed link. New calls go over the newest of the others that is not retired."""
        incarnation = peer.runner.incarnation
        others = self._others.get(incarnation, [])
        if not self.is_used(peer):
            if peer in others:
                others.remove(peer)
        elif fit := [other for other in others if not other.is_retired]:
            self.linked[incarnation] = next((other for other in reversed(fit) if other.via is None), fit[-1])
            others.remove(self.linked[incarnation])
        else:
            del self.linked[incarnation]
        if not others:
            self._others.pop(incarnation, None)

    def note_leaving(self, incarnation: str) -> None:
        """Take in that a process is leaving, whichever of its links said so."""
        for peer in self.every():
            if peer.runner.incarnation == incarnation:
                peer.is_leaving = True

    def send_to_all(self, envelope: Envelope) -> None:
        """Queue `envelope` for every process that there is a link to."""
        for peer in self.linked.values():
            peer.link.send(envelope)


def _request_of(message: Message, now: float) -> Request:
    """Return the request that asks a peer to run `message`, at a monotonic time."""
    # The deadline travels as the time that is left, since the peer has another clock. On the wire 0 means that there is
    # none, so a deadline that has just passed is sent as one millisecond.
    timeout_ms = 0
    if message.deadline != FOREVER:
        timeout_ms = int((message.deadline - now) * 1000)
        if not 0 < timeout_ms <= _LONGEST_TIMEOUT_MS:
            timeout_ms = 1 if timeout_ms <= 0 else _LONGEST_TIMEOUT_MS
    spec = message.spec
    return Request(
        message.request_id,
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
        message.shard_id,
    )
