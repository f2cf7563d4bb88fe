"""Background tasks: what a handler leaves running belongs to its activation, and ends with it."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from actorhub.core.errors import MailboxFull
from actorhub.core.logger import get_logger
from actorhub.core.texts import is_read_plainly, shown, summary_of
from actorhub.engine.model.records import DEAD, PASSIVATING, Cell
from actorhub.engine.model.run import Run
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.runs.stuck import STUCK_AFTER, log_stuck
from actorhub.engine.supervision import Supervisor

T = TypeVar("T")

MOST_TASKS: Final = 1000
"""Background tasks that one activation may have."""

_log: Final = get_logger("actorhub.activation")


class BackgroundTasks:
    """The background tasks of the activations in this process."""

    def __init__(self, *, scheduler: Scheduler, supervisor: Supervisor) -> None:
        self._base = scheduler.context
        self._supervisor = supervisor
        self._tasks: dict[Cell, set[asyncio.Task[Any]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._tasks.values()))

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._tasks

    def spawn(self, run: Run, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run `work` until its end, or until the activation of `run` ends. An error of it is logged and counted.

        It is part of no run: it has neither deadline nor chain of calls, and cannot save.

        Raises:
            TypeError: `work` is not a coroutine.
            RuntimeError: the run, or the activation, is over.
            MailboxFull: the activation has too many.
        """
        if not asyncio.iscoroutine(work):
            raise TypeError(f"{run.what}: spawn takes a coroutine, such as self._refresh(), not {shown(work)}")
        cell = run.cell
        if not run.is_running or cell.phase in (PASSIVATING, DEAD):
            work.close()
            raise RuntimeError(f"{run.what}: its run is over, or its entity is leaving memory: nothing can be started")
        tasks = self._tasks.setdefault(cell, set())
        if len(tasks) >= MOST_TASKS:
            work.close()
            raise MailboxFull(f"{cell.address}: {MOST_TASKS} background tasks run, and that is the limit")
        name = f"background task of {run.spec.entity_type}"
        task = self._supervisor.spawn_within(partial(_named, cell), work, name, self._base.copy())
        task.add_done_callback(lambda ended: self._on_ended(cell, ended))
        tasks.add(task)
        return task

    def cancel(self, cell: Cell) -> None:
        """Cancel what an activation has left, which is over."""
        for task in self._tasks.get(cell, ()):
            task.cancel()

    async def end(self, cell: Cell) -> None:
        """Cancel the tasks of an activation, and wait until they have ended, for no longer than `STUCK_AFTER`."""
        tasks = set(self._tasks.get(cell, ()))
        self.cancel(cell)
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=STUCK_AFTER)
            for task in stuck:
                log_stuck(_log, f"a background task of {cell.hosted_type.spec.name}", cell.entity_id, task)

    def _on_ended(self, cell: Cell, task: "asyncio.Task[Any]") -> None:
        tasks = self._tasks[cell]
        tasks.discard(task)
        if not tasks:
            del self._tasks[cell]


async def _named(cell: Cell, work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as exc:
        # In a task these would stop the event loop.
        raise RuntimeError(f"a background task of {cell.address}: {summary_of(exc)}") from exc
    except Exception as exc:
        if is_read_plainly(type(exc)):
            exc.add_note(f"in a background task of {cell.address}")
        raise
