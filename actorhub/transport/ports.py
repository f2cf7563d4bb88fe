"""What the engine asks of a transport. Two implementations keep these promises: `memory` and `grpc`."""

from collections.abc import Sequence
from typing import Protocol

from actorhub.core.envelope import Envelope, Hello
from actorhub.transport.statistics import TransportStatistics


class LinkEvents(Protocol):
    """What a link's user is told. Calls are synchronous, on the event loop, and must not block or raise."""

    def received(self, envelopes: Sequence[Envelope]) -> None:
        """Take the envelopes of one frame, in the order in which the peer sent them. Never called after `closed`."""
        ...

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        """Learn, once, that the link is gone. `unsent` were never handed to the network: the peer did not get them.

        Whatever was sent and not answered may or may not have reached the peer.
        """
        ...


class Link(Protocol):
    """One established link to one peer; it breaks once and for good (a new connection is a new link)."""

    @property
    def peer(self) -> Hello:
        """Who is at the other end, as it said in its first envelope."""
        ...

    @property
    def queued_bytes(self) -> int:
        """Estimated bytes of envelopes that were not handed to the network yet."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether `send` still takes envelopes."""
        ...

    def send(self, envelope: Envelope) -> None:
        """Queue an envelope; all that is queued at a loop tick leaves in one frame (or few, by size), in order.

        Does nothing on a closed link: the user has been told by `closed`, or is about to be, with it in `unsent`.
        """
        ...

    def hold(self) -> None:
        """Keep what is sent from now on, in order, until `release`. What was sent before leaves."""
        ...

    def release(self) -> None:
        """Send what was held, and hold nothing from now on."""
        ...

    def close(self, reason: str) -> None:
        """Break the link now; what is queued or held is reported as unsent."""
        ...

    async def drain(self) -> None:
        """Wait until everything queued so far was handed to the network, or the link closed."""
        ...


class Acceptor(Protocol):
    """Decides about new links, those that this process opens and those that its peers open alike."""

    def accept(self, link: Link) -> LinkEvents:
        """Return who listens to the new link.

        Called once per link, synchronously on the event loop, in an empty context, when the peer's `Hello` has arrived
        and before any other envelope is delivered. What it sends over the link is the first that the peer receives.
        The accepting end is asked before its own `Hello` leaves: a link that is established is one that serves.

        Raises:
            ActorhubError: the link is refused and closed, and its `closed` is not called, since nobody listens. At the
                accepting end the peer's `connect` fails with this text. At the connecting end our own `connect` raises
                `RunnerUnavailable` with this text, and the peer, which has accepted, learns that the link is gone.
        """
        ...


class Transport(Protocol):
    """One process's ends of all links."""

    @property
    def hello(self) -> Hello:
        """What this process says of itself when a link opens."""
        ...

    def enter(self, cluster: str, era: str) -> None:
        """Say of this process from now on that its database is that cluster's, in that era.

        Links that are open stay as they are; it is for their user to close those of another era.
        """
        ...

    def statistics(self) -> TransportStatistics:
        """Return what is counted over all links so far."""
        ...

    async def listen(self, acceptor: Acceptor) -> str:
        """Start taking links; return the address (`host:port`) that is really bound.

        Raises:
            ConfigurationError: the address cannot be bound (in use, not ours, not allowed).
        """
        ...

    async def connect(self, address: str, acceptor: Acceptor, *, deadline: float) -> Link:
        """Open a link to the process at `address`; its first envelope is delivered after this has returned.

        Cancellation leaves nothing behind: either `acceptor` was not asked, or this returns the link.

        Args:
            address: `host:port`.
            acceptor: Asked who listens to the link once the peer's `Hello` has arrived, and not if this fails earlier.
            deadline: Seconds that it may take.

        Raises:
            RunnerUnavailable: nobody answers there in time, the peer refuses, or `acceptor` does. The text says which.
        """
        ...

    async def identify(self, address: str, *, deadline: float) -> str | None:
        """Return the incarnation of the process that listens at `address`; `None` if nobody does.

        Nobody listens where every attempt to connect is refused. Whoever listens says who it is even while it takes no
        links yet.

        Args:
            address: `host:port`.
            deadline: Seconds that it may take.

        Raises:
            RunnerUnavailable: that cannot be known: nothing answers in time, or not with an incarnation.
        """
        ...

    async def aclose(self, grace: float) -> None:
        """Stop listening and close every link after flushing what is queued, within `grace` seconds."""
        ...
