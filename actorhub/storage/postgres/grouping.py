"""Bookkeeping of grouped requests, without I/O: what waits, what forms the next group, how long to go on trying."""

from asyncio import Future
from collections import deque
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

import msgspec

MAX_GROUP: Final = 512
MAX_GROUP_BYTES: Final = 8 * 1024 * 1024
MAX_WAITING: Final = 100_000
MAX_WAITING_BYTES: Final = 256 * 1024 * 1024

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


class Entry(msgspec.Struct, Generic[RequestT, ResultT], eq=False):
    """One request and the future of its result."""

    request: RequestT
    future: Future[ResultT]
    key: tuple[str, str]
    """Entries of equal key never share a group, and keep their order."""
    party: str = ""
    """Entries of one group have one party."""
    size: int = 0
    """Bytes."""


class Waiting(Generic[RequestT, ResultT]):
    """Requests that wait for a group, in order of arrival. All state is in `_entries` and the sum of their sizes."""

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

    def next_group(self) -> list[Entry[RequestT, ResultT]]:
        """Remove and return the longest group that may go now; those whose future is done already are dropped."""
        entries, size = self._entries, 0
        group: list[Entry[RequestT, ResultT]] = []
        left: list[Entry[RequestT, ResultT]] = []
        keys: set[tuple[str, str]] = set()
        while entries and len(group) < MAX_GROUP and len(left) < MAX_GROUP:
            entry = entries[0]
            if group and (entry.party != group[0].party or size + entry.size > MAX_GROUP_BYTES):
                break
            entries.popleft()
            if entry.future.done():
                self._bytes -= entry.size
            elif entry.key in keys:
                left.append(entry)
            else:
                keys.add(entry.key)
                group.append(entry)
                size += entry.size
        entries.extendleft(reversed(left))
        self._bytes -= size
        return group

    def give_back(self, group: Sequence[Entry[RequestT, ResultT]]) -> None:
        """Put an unsettled group back in front, limits notwithstanding."""
        self._entries.extendleft(reversed(group))
        self._bytes += sum(entry.size for entry in group)

    def drain(self) -> list[Entry[RequestT, ResultT]]:
        """Remove and return everything."""
        entries = list(self._entries)
        self._entries.clear()
        self._bytes = 0
        return entries


class Again:
    """The outcome of a request that did not fit into its group's answer: it goes first into the next group."""


class Outage:
    """How long something has failed without a break, and how long to pause before the next attempt."""

    SHORTEST: Final = 0.05
    LONGEST: Final = 1.0
    PATIENCE: Final = 10.0
    """Seconds after the first failure in which requests are kept."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._attempts = 0

    def failed(self, now: float, chance: float) -> float:
        """Note a failure; return the pause in seconds. `chance` in [0, 1) spreads it."""
        self._since = now if self._since is None else self._since
        self._attempts += 1
        pause = min(self.SHORTEST * (1 << min(self._attempts - 1, 10)), self.LONGEST)
        return pause * (0.5 + chance / 2)

    def ended(self) -> None:
        """Note a success."""
        self._since = None
        self._attempts = 0

    def too_long(self, now: float) -> bool:
        """Whether requests must fail now instead of waiting on."""
        return self._since is not None and now - self._since >= self.PATIENCE
