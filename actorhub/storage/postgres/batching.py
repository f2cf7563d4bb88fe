"""Bookkeeping of batched requests, without I/O: what waits, what forms the next batch, how long to keep trying."""

from asyncio import Future
from collections import deque
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

import msgspec

from actorhub.core.backoff import Backoff

MAX_BATCH: Final = 512
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
MAX_WAITING: Final = 100_000
MAX_WAITING_BYTES: Final = 256 * 1024 * 1024

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


class Entry(msgspec.Struct, Generic[RequestT, ResultT], eq=False):
    """One request and the future of its result."""

    request: RequestT
    future: Future[ResultT]
    key: tuple[str, str]
    """Entries of equal key never share a batch, and keep their order."""
    owner: str = ""
    """The incarnation under whose fence it is written; all entries of a batch have the same one."""
    size: int = 0
    """Bytes."""


class Waiting(Generic[RequestT, ResultT]):
    """Requests that wait for a batch, in order of arrival. All state is in `_entries` and the sum of their sizes."""

    def __init__(self) -> None:
        self._entries: deque[Entry[RequestT, ResultT]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add_nowait(self, entry: Entry[RequestT, ResultT]) -> bool:
        """Queue `entry`; return `False`, and leave it out, where that would pass the limit in number or bytes."""
        if len(self._entries) >= MAX_WAITING or (self._entries and self._bytes + entry.size > MAX_WAITING_BYTES):
            return False
        self._entries.append(entry)
        self._bytes += entry.size
        return True

    def next_batch(self) -> list[Entry[RequestT, ResultT]]:
        """Remove and return the longest batch that may go now; those whose future is done already are dropped."""
        entries, size = self._entries, 0
        batch: list[Entry[RequestT, ResultT]] = []
        left: list[Entry[RequestT, ResultT]] = []
        keys: set[tuple[str, str]] = set()
        while entries and len(batch) < MAX_BATCH and len(left) < MAX_BATCH:
            entry = entries[0]
            if batch and (entry.owner != batch[0].owner or size + entry.size > MAX_BATCH_BYTES):
                break
            entries.popleft()
            if entry.future.done():
                self._bytes -= entry.size
            elif entry.key in keys:
                left.append(entry)
            else:
                keys.add(entry.key)
                batch.append(entry)
                size += entry.size
        entries.extendleft(reversed(left))
        self._bytes -= size
        return batch

    def give_back(self, batch: Sequence[Entry[RequestT, ResultT]]) -> None:
        """Put an unsettled batch back in front, limits notwithstanding."""
        self._entries.extendleft(reversed(batch))
        self._bytes += sum(entry.size for entry in batch)

    def drain(self) -> list[Entry[RequestT, ResultT]]:
        """Remove and return everything."""
        entries = list(self._entries)
        self._entries.clear()
        self._bytes = 0
        return entries


class Again:
    """The outcome of a request that did not fit into its batch's answer: it goes first into the next batch."""


class Outage:
    """How long something has failed without a break, and how long to pause before the next attempt."""

    PATIENCE: Final = 10.0
    """Seconds after the first failure during which requests are kept."""
    BACKOFF: Final = Backoff(initial=0.05, maximum=1.0)

    def __init__(self) -> None:
        self._since: float | None = None
        self._attempts = 0

    def failed(self, now: float, chance: float) -> float:
        """Record a failure; return the pause in seconds. `chance` in [0, 1) spreads it."""
        self._since = now if self._since is None else self._since
        self._attempts += 1
        return self.BACKOFF.delay(self._attempts, chance)

    def ended(self) -> None:
        """Record a success."""
        self._since = None
        self._attempts = 0

    def too_long(self, now: float) -> bool:
        """Whether requests must fail now instead of waiting on."""
        return self._since is not None and now - self._since >= self.PATIENCE
