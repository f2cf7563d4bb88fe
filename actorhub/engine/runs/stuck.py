"""What becomes of user code that is not let go on, or does not end when it was cancelled."""

import asyncio
import ctypes
import logging
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, cast

STUCK_AFTER: Final = 1.0
"""Seconds that user code has to end once its time is over and it was cancelled. After that it is abandoned."""
_DEEPEST: Final = 50
"""Frames that are logged."""


def log_stuck(
    log: logging.Logger, what: str, entity_id: str, task_or_coroutine: Any, *, after: float = STUCK_AFTER
) -> None:
    """Log that `what` of an entity was abandoned, with the stack of its task, coroutine or generator."""
    frames = [(frame, frame.f_lineno) for frame in _frames(task_or_coroutine)]
    stack = "".join(traceback.StackSummary.extract(iter(frames)).format())
    log.error(
        "%s(%s) went on %g s after it was cancelled, so it was abandoned, and its entity is activated again; it is "
        "stuck here (most recent call last):\n%s",
        *(what, entity_id, after, stack or "  (unknown)"),
    )


def keep_forever(coroutine: Any) -> None:
    """Keep a suspended coroutine until the process is over.

    Python throws `GeneratorExit` into one that is dropped, be it when the interpreter ends, and so runs its `finally`
    blocks. A reference that nobody has is never dropped.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(coroutine))


def _frames(awaited: Any) -> Iterator[FrameType]:
    """Iterate over the frames of what is suspended, outermost first."""
    if isinstance(awaited, asyncio.Task):
        awaited = cast("Any", awaited.get_coro())
    for _ in range(_DEEPEST):
        for prefix, inner in (("cr", "cr_await"), ("ag", "ag_await"), ("gi", "gi_yieldfrom")):
            frame = getattr(awaited, f"{prefix}_frame", None)
            if frame is not None:
                yield frame
                awaited = getattr(awaited, inner)
                break
        else:
            return
