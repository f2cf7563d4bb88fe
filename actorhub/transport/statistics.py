"""What a transport counts."""

import dataclasses

import msgspec


class TransportStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the transport was made, over all its links."""

    links_opened: int
    links_closed: int
    links_refused: int
    """Incoming links that got no further than their Hello: bad token, other namespace, refused by the acceptor."""
    frames_sent: int
    envelopes_sent: int
    bytes_sent: int
    frames_received: int
    envelopes_received: int
    bytes_received: int
    frames_malformed: int
    """Frames that could not be decoded at all; each cost its sender the link."""
    envelopes_malformed: int
    """Envelopes that could not be decoded, in frames that could; each was refused alone."""
    envelopes_dropped: int
    """Envelopes that could not be encoded, or were too large, and had no caller who could be told."""


@dataclasses.dataclass(slots=True)
class Counters:
    """The running counts behind `TransportStatistics`."""

    links_opened: int = 0
    links_closed: int = 0
    links_refused: int = 0
    frames_sent: int = 0
    envelopes_sent: int = 0
    bytes_sent: int = 0
    frames_received: int = 0
    envelopes_received: int = 0
    bytes_received: int = 0
    frames_malformed: int = 0
    envelopes_malformed: int = 0
    envelopes_dropped: int = 0

    def sent(self, envelopes: int, size: int) -> None:
        """Count one frame of `size` bytes that was handed to the network."""
        self.frames_sent += 1
        self.envelopes_sent += envelopes
        self.bytes_sent += size

    def received(self, envelopes: int, size: int) -> None:
        """Count one frame of `size` bytes that was decoded."""
        self.frames_received += 1
        self.envelopes_received += envelopes
        self.bytes_received += size

    def snapshot(self) -> TransportStatistics:
        """Return the counts as they are now."""
        return msgspec.convert(self, TransportStatistics, from_attributes=True)
