"""One poll of the store for all who wait: for deferred values, and for the time at which their sleeps end.

Waiting must cost nothing: whatever the number of waits, there is one per interval, besides those that somebody's
beginning or end asks for, and what is asked for meanwhile shares the next one.
"""

import asyncio
import heapq
import itertools
from collections.abc import Iterable
from typing import Final

from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError
from actorhub.core.logger import get_logger
from actorhub.engine.model.run import Run
from actorhub.engine.supervision import set_or_time
from actorhub.storage.checkpoint_ports import CheckpointStore, Completion
from actorhub.storage.message_ports import MessageStore

_log: Final = get_logger("actorhub.deferred")

_INTERVAL: Final = 10.0
"""Seconds between looks without a notice."""
_RETRY: Final = 1.0
"""Seconds until the next look after a failed one."""
_SHORTEST: Final = 0.005
"""Seconds between two looks at the time, should the store's clock go more slowly than this process's."""
_MOST: Final = 10_000
"""Values that one statement asks for."""


class _Wait:
    """One wait of a run for a deferred value."""

    __slots__ = ("looked", "outcome", "run")

    def __init__(self, run: Run) -> None:
        loop = asyncio.get_running_loop()
        self.run = run
        self.outcome: asyncio.Future[Completion] = loop.create_future()
        self.looked: asyncio.Future[None] = loop.create_future()
        """Done once the store was asked after the wait began."""


class Lookout:
    """Watches the store for the waits of this process. `run` must be running."""

    def __init__(self, *, checkpoints: CheckpointStore, messages: MessageStore, clock: Clock) -> None:
        self._checkpoints = checkpoints
        self._messages = messages
        self._monotonic = clock.monotonic
        self._wake = asyncio.Event()
        self._waits: dict[bytes, list[_Wait]] = {}
        self._asked: set[bytes] = set()
        """Values to look for at once: a wait for them began, or somebody completed them."""
        self._sleeps: list[tuple[float, int, asyncio.Future[None]]] = []
        """A heap: when each ends, by the store's clock."""
        self._numbers = itertools.count()
        self._readers: list[asyncio.Future[float]] = []
        """Who wants to know the time on the store's clock, as it is from now on."""
        self._offset = 0.0
        """What the store's clock was ahead of this process's monotonic one at least, at the last look at the time."""
        self._scan_at = 0.0
        self._not_before = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._waits.values()))

    def begin(self, run: Run, token_hash: bytes) -> _Wait:
        """Begin a wait; `end` must follow."""
        self._schedule_scan()
        wait = _Wait(run)
        self._waits.setdefault(token_hash, []).append(wait)
        self.look_for((token_hash,))
        return wait

    def end(self, wait: _Wait, token_hash: bytes) -> None:
        """End a wait, whatever became of it."""
        left = [other for other in self._waits.pop(token_hash, ()) if other is not wait]
        if left:
            self._waits[token_hash] = left

    def look_for(self, token_hashes: Iterable[bytes]) -> None:
        """Look for values that somebody waits for now, since they may be completed."""
        known = [hashed for hashed in token_hashes if hashed in self._waits]
        if known:
            self._asked.update(known)
            self._wake.set()

    async def store_time(self) -> float:
        """Return the time on the store's clock, in seconds since the Unix epoch, read after this was called."""
        reader: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        self._wake.set()
        return await reader

    async def is_past(self, due: float) -> bool:
        """Return whether it is certainly `due` or later on the store's clock."""
        return (self._monotonic() + self._offset if self._offset else await self.store_time()) >= due

    def alarm(self, due: float) -> "asyncio.Future[None]":
        """Return what is done at `due`, by the store's clock, and never earlier; it may be cancelled."""
        self._schedule_scan()
        awake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleeps, (due, next(self._numbers), awake))
        self._wake.set()
        return awake

    async def run(self) -> None:
        """Look when it is time, until cancelled."""
        while True:
            await set_or_time(self._wake, self._pause())
            self._wake.clear()
            try:
                await self._look()
            except PersistenceError as error:
                # A wait of days must outlast a store that is away for a minute.
                text = "cannot read whether a deferred value is completed, or a sleep is over, will try again: %s"
                _log.warning(text, error)
                await asyncio.sleep(_RETRY)
                self._wake.set()

    def _schedule_scan(self) -> None:
        if not self._waits and not self._sleeps:
            self._scan_at = self._monotonic() + _INTERVAL

    def _pause(self) -> float | None:
        """Return the seconds until the next look, if nobody asks for one before; `None` if nobody waits."""
        if self._asked or self._readers:
            return 0.0
        if not self._waits and not self._sleeps:
            return None
        now = self._monotonic()
        pause = self._scan_at - now
        if self._sleeps:
            pause = min(pause, max(self._sleeps[0][0] - now - self._offset, self._not_before - now))
        return max(0.0, pause)

    async def _look(self) -> None:
        is_scan = self._monotonic() >= self._scan_at
        if is_scan:
            self._drop_ended()
            self._scan_at = self._monotonic() + _INTERVAL
        self._asked.update(self._waits if is_scan else ())
        await self._look_for_values()
        while self._sleeps and self._sleeps[0][2].done():
            heapq.heappop(self._sleeps)
        is_due = bool(self._sleeps) and self._sleeps[0][0] <= self._monotonic() + self._offset
        if self._readers or (self._sleeps and (is_scan or is_due or not self._offset)):
            await self._look_at_the_time()

    def _drop_ended(self) -> None:
        """Forget the waits of runs that were terminated: they take no further step, not even to end their waits."""
        for hashed, waits in list(self._waits.items()):
            for wait in [wait for wait in waits if wait.run.is_over]:
                self.end(wait, hashed)
        self._sleeps = [sleep for sleep in self._sleeps if not sleep[2].done()]
        heapq.heapify(self._sleeps)

    async def _look_for_values(self) -> None:
        while self._asked:
            hashes = list(itertools.islice(self._asked, _MOST))
            begun = {hashed: list(self._waits.get(hashed, ())) for hashed in hashes}
            self._asked.difference_update(hashes)
            try:
                found = await self._checkpoints.completions(hashes)
            except PersistenceError:
                self._asked.update(hashes)
                raise
            for hashed, waits in begun.items():
                for wait in waits:
                    if hashed in found and not wait.outcome.done():
                        wait.outcome.set_result(found[hashed])
                    if not wait.looked.done():
                        wait.looked.set_result(None)

    async def _look_at_the_time(self) -> None:
        readers, self._readers = self._readers, []
        try:
            _, now = await self._messages.load_scheduled((), 0.0, 0)
        except PersistenceError as error:
            for reader in readers:
                if not reader.done():
                    reader.set_exception(error)
            raise
        monotonic = self._monotonic()
        self._offset, self._not_before = now - monotonic, monotonic + _SHORTEST
        for reader in readers:
            if not reader.done():
                reader.set_result(now)
        while self._sleeps and self._sleeps[0][0] <= now:
            _, _, awake = heapq.heappop(self._sleeps)
            if not awake.done():
                awake.set_result(None)
