"""Tasks that live as long as a transport, which has no `async with` to own a task group."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Final

from actorhub.core.logger import get_logger

_log: Final = get_logger(__name__)


class OwnedTasks:
    """Keeps tasks alive, logs their failures, and ends those that are left in `aclose`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, None], name: str) -> None:
        """Run `work` away from the caller's context variables."""
        task = asyncio.get_running_loop().create_task(work, name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def aclose(self) -> None:
        """Cancel what still runs and wait for it."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed", task.get_name(), exc_info=error)
