"""A thread that notices when the event loop is blocked, and names the code that blocks it."""

import asyncio
import sys
import threading
import traceback
from types import FrameType
from typing import Final

from actorhub.core.clock import Clock
from actorhub.core.logger import get_logger

_log: Final = get_logger("actorhub.blocking")

_BEAT: Final = 0.25
_DRIVERS: Final = frozenset(f"actorhub.engine.runs.{name}" for name in ("carriers", "driving", "interleaving"))
"""The modules whose frames are right below user code: of a first step, of later ones and hooks, of interleaved runs."""


class BlockedLoopWatch:
    """Warns each time the event loop is blocked for more than `threshold` seconds, while it still is.

    A blocked loop sends no heartbeats: after 2.5 s the lease of the runner has run out, and its shards move. The
    warning names the handler, and shows the stack of the loop's thread. It must come from another thread, since the
    loop's own one is the one that hangs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, threshold: float = 1.0) -> None:
        self._loop = loop
        self._monotonic = clock.monotonic
        self._threshold = threshold
        self._beat_at = clock.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="actorhub-blocked-loop-watch", daemon=True)
        self.standstills = 0
        """How often the loop was blocked."""

    def start(self) -> None:
        """Begin to watch. Called in the thread of the event loop."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        if self._timer is not None:
            self._timer.cancel()
        self._stopped.set()

    def _beat(self) -> None:
        self._beat_at = self._monotonic()
        self._timer = self._loop.call_later(_BEAT, self._beat)

    def _watch(self) -> None:
        reported, looked_at = 0.0, self._monotonic()
        while not self._stopped.wait(_BEAT):
            beat_at, now = self._beat_at, self._monotonic()
            blocked, slept, looked_at = now - beat_at - _BEAT, now - looked_at - _BEAT, now
            if slept > self._threshold / 2:
                continue  # this thread was late as well: the whole process was stopped, which no handler can help
            if blocked > self._threshold and beat_at != reported:
                reported = beat_at
                self.standstills += 1
                frame = sys._current_frames().get(self._watched)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
                stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
                text = (
                    "the event loop has been blocked for %.1f s by %s: no heartbeats are sent, the shards will move\n%s"
                )
                _log.warning(text, blocked, _culprit(frame), stack)


def _culprit(frame: FrameType | None) -> str:
    """Return the name of the handler that the thread is in, or of the innermost function if it is in none."""
    innermost = frame.f_code.co_qualname if frame is not None else "unknown code"
    called = None
    while frame is not None:
        if frame.f_globals.get("__name__") in _DRIVERS:
            return called or innermost
        called, frame = frame.f_code.co_qualname, frame.f_back
    return innermost
