"""How long something takes on a machine that is busy with other things."""

import time
from pathlib import Path
from typing import Final

_SCHEDULE: Final = Path("/proc/thread-self/schedstat")
"""Nanoseconds on a processor, and nanoseconds ready to run while others had the processors."""


def granted_time() -> float:
    """Return monotonic seconds, without those in which this thread was ready to run and had no processor.

    Waiting for anything else counts, so a difference is what `time.monotonic` says on an idle machine.
    """
    waited = int(_SCHEDULE.read_text().split()[1]) if _SCHEDULE.exists() else 0
    return time.monotonic() - waited / 1e9
