"""Links to the other runners, and what is in flight on each."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from actorhub.core.address import RunnerAddress
from actorhub.core.clock import Clock
from actorhub.core.envelope import Envelope
from actorhub.core.errors import ActorhubError, MailboxFull, RunnerUnavailable
from actorhub.engine.model.message import Message
from actorhub.engine.supervision import Supervisor
from actorhub.transport.ports import Link, LinkEvents, Transport

_log: Final = logging.getLogger("actorhub.peers")

MAX_IN_FLIGHT: Final = 65_536
"""Calls that one process may have in flight to one peer, and serves for one peer."""
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
_CONNECT_DEADLINE: Final = 2.0
_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 1.0


class PeerEvents(Protocol):
    """What the node does with what peers say."""

    def linked(self, peer: "Peer") -> None:
        """A link is up."""
        ...

    def received(self, peer: "Peer", envelopes: Sequence[Envelope]) -> None:
        """A frame arrived."""
        ...

    def unlinked(self, peer: "Peer", reason: str, unsent: Sequence[Envelope]) -> None:
        """The link is gone; `peer.pending` and `peer.serving` are the receiver's to settle."""
        ...


class Peer:
    """One link to one incarnation of one process."""

    __slots__ = ("_events", "is_leaving", "link", "pending", "runner", "serving")

    def __init__(self, link: Link, events: PeerEvents) -> None:
        self._events = events
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

    def received(self, envelopes: Sequence[Envelope]) -> None:
        """Pass a frame on."""
        self._events.received(self, envelopes)

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        """Pass the end of the link on."""
        self._events.unlinked(self, reason, unsent)


class Peers:
    """Keeps one link to every other live runner, whoever of the two opened it."""

    def __init__(self, transport: Transport, events: PeerEvents, supervisor: Supervisor, clock: Clock) -> None:
        self._transport = transport
        self._events = events
        self._supervisor = supervisor
        self._clock = clock
        self._wanted: set[str] = set()
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self.linked: dict[str, Peer] = {}
        """By incarnation; clients too."""
        self.refused: Callable[[str, ActorhubError], None] = lambda _address, _error: None
        """Told of each failed attempt to connect."""

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

    def accept(self, link: Link) -> LinkEvents:
        """Take a link, whoever of the two opened it."""
        peer = Peer(link, self._events)
        self._events.linked(peer)
        return peer

    def add(self, peer: Peer) -> None:
        """Note an open link; a later one to the same incarnation takes its place for new calls."""
        self.linked[peer.runner.incarnation] = peer

    def remove(self, peer: Peer) -> None:
        """Note a closed link and connect again if its runner is still wanted."""
        if self.linked.get(peer.runner.incarnation) is peer:
            del self.linked[peer.runner.incarnation]
        self._connect_missing()

    def want(self, addresses: Collection[str]) -> None:
        """Keep links to exactly these addresses; other attempts end, other open links stay until they break."""
        self._wanted = set(addresses)
        for address in [a for a in self._connecting if a not in self._wanted]:
            self._connecting.pop(address).cancel()
        self._connect_missing()

    def send_to_all(self, envelope: Envelope) -> None:
        """Queue `envelope` on every open link."""
        for peer in self.linked.values():
            peer.link.send(envelope)

    def _connect_missing(self) -> None:
        linked = {peer.runner.address for peer in self.linked.values()}
        for address in self._wanted - linked - self._connecting.keys():
            self._connecting[address] = self._supervisor.spawn(self._connect(address), "connect")

    async def _connect(self, address: str) -> None:
        delay = _FIRST_DELAY
        try:
            while address in self._wanted and not self._is_linked(address):
                try:
                    await self._transport.connect(address, self, deadline=_CONNECT_DEADLINE)
                except RunnerUnavailable as error:
                    _log.debug("no link to %s: %s", address, error)
                    self.refused(address, error)
                    await asyncio.sleep(delay * (0.5 + self._clock.random() / 2))
                    delay = min(_LONGEST_DELAY, delay * 2)
        finally:
            if self._connecting.get(address) is asyncio.current_task():
                del self._connecting[address]

    def _is_linked(self, address: str) -> bool:
        return any(peer.runner.address == address for peer in self.linked.values())
