"""The open links to other processes, and what is in flight on each."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from actorhub.core.address import RunnerAddress
from actorhub.core.envelope import Cancel, Credit, Envelope
from actorhub.core.errors import MailboxFull
from actorhub.engine.model.records import Message
from actorhub.transport.ports import Link

MAX_IN_FLIGHT: Final = 65_536
"""Calls that one process may have in flight to one peer, and serves for one peer."""
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024


class PeerEvents(Protocol):
    """What is done with what peers say."""

    def on_linked(self, peer: "Peer") -> None:
        """A link is up."""
        ...

    def on_received(self, peer: "Peer", envelopes: Sequence[Envelope]) -> None:
        """A frame arrived."""
        ...

    def on_unlinked(self, peer: "Peer", reason: str, unsent: Sequence[Envelope]) -> None:
        """The link is gone; `peer.pending` and `peer.serving` are the receiver's to settle."""
        ...


class Peer:
    """One link to one incarnation of one process."""

    __slots__ = ("_events", "_on_ended", "is_leaving", "link", "pending", "runner", "serving")

    def __init__(self, link: Link, events: PeerEvents, on_ended: Callable[[], None]) -> None:
        """Take an open link.

        Args:
            link: To the peer.
            events: Told of what comes.
            on_ended: Called once `events` knows that the link is gone.
        """
        self._events = events
        self._on_ended = on_ended
        self.link = link
        self.runner = RunnerAddress(link.peer.address, link.peer.incarnation)
        """Address is empty for a client."""
        self.pending: dict[int, Message] = {}
        """Our calls that the peer has not answered, by request id."""
        self.serving: dict[int, Message] = {}
        """Its calls that we have not answered."""
        self.is_leaving = False
        """It said that it drains: others had better be asked."""

    @property
    def is_runner(self) -> bool:
        """Whether it hosts shards."""
        return bool(self.runner.address)

    def check_room(self) -> None:
        """Refuse another call when too much is in flight.

        Raises:
            MailboxFull: at the limit of calls or bytes; nothing was sent.
        """
        if len(self.pending) >= MAX_IN_FLIGHT or self.link.queued_bytes > MAX_QUEUED_BYTES:
            raise MailboxFull(f"{len(self.pending)} calls are in flight to {self.runner}: wait for some of them")

    def recall(self, message: Message) -> None:
        """Nobody waits for the message: have the peer drop it, and forget it."""
        if self.pending.pop(message.request_id, None) is not None:
            self.link.send(Cancel(message.request_id))

    def grant(self, message: Message, count: int) -> None:
        """The consumer took `count` items of the stream: the peer's producer may send as many more."""
        self.link.send(Credit(message.request_id, count))

    def ask_outcome(self, message: Message) -> None:
        """The caller's time is up: have the peer end the message and say whether its handler started."""
        self.link.send(Cancel(message.request_id, timed_out=True))

    def received(self, envelopes: Sequence[Envelope]) -> None:
        """Pass a frame on."""
        self._events.on_received(self, envelopes)

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        """Pass the end of the link on."""
        self._events.on_unlinked(self, reason, unsent)
        self._on_ended()


class Peers:
    """The peers with an open link, clients too: one for each incarnation."""

    def __init__(self) -> None:
        self.linked: dict[str, Peer] = {}
        """By incarnation."""

    def runners(self) -> list[Peer]:
        """Return the peers that host shards."""
        return [peer for peer in self.linked.values() if peer.is_runner]

    def to_ask(self) -> list[Peer]:
        """Return the runners for what any of them can do: those that do not leave, unless all do."""
        runners = self.runners()
        return [peer for peer in runners if not peer.is_leaving] or runners

    def by_runner(self, runner: RunnerAddress) -> Peer | None:
        """Return the linked peer of that incarnation."""
        return self.linked.get(runner.incarnation)

    def add(self, peer: Peer) -> None:
        """Note an open link; a later one to the same incarnation takes its place for new calls."""
        self.linked[peer.runner.incarnation] = peer

    def remove(self, peer: Peer) -> None:
        """Note a closed link."""
        if self.linked.get(peer.runner.incarnation) is peer:
            del self.linked[peer.runner.incarnation]

    def send_to_all(self, envelope: Envelope) -> None:
        """Queue `envelope` on every open link."""
        for peer in self.linked.values():
            peer.link.send(envelope)
