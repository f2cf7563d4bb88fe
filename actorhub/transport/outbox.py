"""Which envelopes leave in which frame: bookkeeping without I/O."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

import msgspec

from actorhub.core.codec import encode_error
from actorhub.core.envelope import Chunk, Envelope, Failure, Members, Owners, Relayed, Reply, Request, encode_frame
from actorhub.core.errors import ActorhubError, MalformedMessage, MessageTooLarge
from actorhub.core.logger import get_logger
from actorhub.transport.statistics import Counters

ENVELOPE_BYTES: Final = 100
"""Estimated size of an envelope without its body, and of one entry of a list that is in it."""

_CALLS: Final = (Request, Reply)

_log: Final = get_logger(__name__)


class LinkLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one link, in bytes."""

    max_message_bytes: int = 4 << 20
    """Largest body that any process of the cluster may send."""
    frame_bytes: int = 1 << 20
    """Estimated size at which a frame is full; an envelope that is larger travels alone."""
    max_queued_bytes: int = 256 << 20
    """Estimated size of the queue at which the link breaks, because its peer has stopped taking anything."""
    margin_bytes: int = 1 << 20
    """Room for what surrounds the largest body."""

    @property
    def max_frame_bytes(self) -> int:
        """Largest encoded frame: the largest body with room for what surrounds it, or a full frame of small ones."""
        return max(self.max_message_bytes, 2 * self.frame_bytes) + self.margin_bytes


def estimated_bytes(envelope: Envelope) -> int:
    """Return about how many bytes `envelope` takes in a frame, in constant time but for lists."""
    match envelope:
        case Request() | Reply() | Failure():
            return len(envelope.body) + ENVELOPE_BYTES
        case Relayed():
            return len(envelope.frame) + ENVELOPE_BYTES
        case Chunk():
            return sum(map(len, envelope.bodies)) + ENVELOPE_BYTES
        case Owners():
            return ENVELOPE_BYTES * (1 + len(envelope.owned) + len(envelope.released))
        case Members():
            return ENVELOPE_BYTES * (1 + len(envelope.runners) + len(envelope.entity_types))
        case _:
            return ENVELOPE_BYTES


class Outbox:
    """The queue of one direction of a link, first in, first out.

    All state is in two places: `_queue` takes what is put, `_batches` holds the frames cut from an earlier `_queue`
    that was too large for one.
    """

    __slots__ = ("_batches", "_counters", "_limits", "_queue", "bounced", "queued_bytes", "taken")

    def __init__(self, limits: LinkLimits, counters: Counters) -> None:
        self._limits = limits
        self._counters = counters
        self._queue: list[Envelope] = []
        self._batches: deque[tuple[int, list[Envelope]]] = deque()
        self.queued_bytes = 0
        """Estimated bytes of what was put and not taken."""
        self.taken = 0
        """How many envelopes left the queue so far, in frames or otherwise."""
        self.bounced: list[Envelope] = []
        """Failures for our own requests that can never be sent; the owner of the outbox delivers and clears them."""

    def put(self, envelope: Envelope) -> None:
        """Append an envelope."""
        self._queue.append(envelope)
        # The two that calls are made of first, by a check that costs half as much as matching classes.
        if isinstance(envelope, _CALLS):
            self.queued_bytes += len(envelope.body) + ENVELOPE_BYTES
        else:
            self.queued_bytes += estimated_bytes(envelope)

    def __len__(self) -> int:
        return len(self._queue) + sum(len(batch) for _, batch in self._batches)

    def __bool__(self) -> bool:
        return bool(self._queue or self._batches)

    def take_frame(self) -> bytes:
        """Remove the envelopes of the next frame and return it encoded; empty when there is nothing to send.

        An envelope that cannot be encoded, or is larger than a frame may be, is answered with a typed failure to
        whoever waits for it; its neighbours travel on.
        """
        problem: ActorhubError
        while batch := self._take_batch():
            try:
                data = encode_frame(batch)
            except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as exc:
                problem = MalformedMessage(f"the message cannot be encoded: {exc}")
            else:
                if len(data) <= self._limits.max_frame_bytes:
                    self.taken += len(batch)
                    self._counters.sent(len(batch), len(data))
                    return data
                limit = self._limits.max_frame_bytes
                problem = MessageTooLarge(f"the message takes {len(data)} bytes, the limit is {limit}: send less")
            self._divide(batch, problem)
        return b""

    def remove_all(self) -> list[Envelope]:
        """Remove and return everything that was not taken, in order."""
        left = list(chain.from_iterable(batch for _, batch in self._batches))
        left += self._queue
        self._batches.clear()
        self._queue = []
        self.queued_bytes = 0
        return left

    def _take_batch(self) -> list[Envelope]:
        if not self._batches:
            queue, self._queue = self._queue, []
            if self.queued_bytes <= self._limits.frame_bytes:
                self.queued_bytes = 0
                return queue
            self._batches.extend(self._cut(queue))
        size, batch = self._batches.popleft()
        self.queued_bytes = self.queued_bytes - size if self else 0
        return batch

    def _cut(self, queue: Sequence[Envelope]) -> Iterator[tuple[int, list[Envelope]]]:
        batch: list[Envelope] = []
        total = 0
        for envelope in queue:
            size = estimated_bytes(envelope)
            if batch and total + size > self._limits.frame_bytes:
                yield total, batch
                batch, total = [], 0
            batch.append(envelope)
            total += size
        yield total, batch

    def _divide(self, batch: list[Envelope], problem: ActorhubError) -> None:
        """Put back both halves of a batch that cannot be a frame, or take out the one envelope that cannot be."""
        middle = len(batch) // 2
        if middle:
            self._put_back(batch[middle:])
            self._put_back(batch[:middle])
            return
        envelope = batch[0]
        match envelope:
            case Request():
                self.taken += 1
                self.bounced.append(Failure(envelope.id, 0, encode_error(problem, self._limits.max_frame_bytes)))
            case Reply() | Failure() | Chunk():
                problem.possibly_executed = True  # It is the answer to a request that was served.
                self._put_back(
                    [Failure(envelope.id, envelope.epoch, encode_error(problem, self._limits.max_frame_bytes))]
                )
            case _:
                self.taken += 1
                self._counters.envelopes_dropped += 1
                _log.error("dropped an envelope of type %s: %s", type(envelope).__name__, problem)

    def _put_back(self, batch: list[Envelope]) -> None:
        size = sum(map(estimated_bytes, batch))
        self.queued_bytes += size
        self._batches.appendleft((size, batch))
