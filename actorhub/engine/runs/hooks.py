"""Runs hooks: `on_activate`, `on_deactivate`, `on_become_leader`, `on_lose_leadership`."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

from actorhub.core.texts import summary_of
from actorhub.engine.model.records import DEAD, DONE, RUNNING, Cell, Message, RunKind
from actorhub.engine.model.run import Run, running
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.runs.completion import Completion
from actorhub.engine.runs.driving import run_in
from actorhub.engine.runs.saving import Saving, one_save_at_a_time
from actorhub.engine.runs.scheduler import Scheduler


class _HookCall(Message):
    """What stands where a call is: nobody sent it, and nobody waits for it."""

    __slots__ = ()

    run_kind = RunKind.HOOK

    def __init__(self, cell: Cell, spec: HandlerSpec) -> None:
        super().__init__(spec, cell.entity_id)
        self.cell = cell
        self.epoch = cell.shard.epoch
        self.phase = RUNNING


class Hooks:
    """Runs a hook like a handler: `current()` works, what it changed is committed, and then what it told is sent."""

    def __init__(self, *, scheduler: Scheduler, completion: Completion, saving: Saving) -> None:
        self._base = scheduler.context
        self._completion = completion
        self._saving = saving

    def context(self) -> Context:
        """Return new context variables for an activation and its hooks."""
        return self._base.copy()

    def make(self, cell: Cell, context: Context) -> Any:
        """Return a new instance for an activation. Whatever its constructor raises, this raises an `Exception`."""
        try:
            return context.run(cell.hosted_type.factory)
        except Exception:
            raise
        except BaseException as exc:
            raise _as_failure(exc) from exc

    async def run(
        self, cell: Cell, spec: HandlerSpec, context: Context, returned: Callable[[Cell], None] | None = None
    ) -> None:
        """Run a hook. In a dead cell nothing is committed, and nothing is sent.

        Whatever the hook raises, this raises an `Exception`, or the cancellation of its own task.

        Args:
            cell: The entity.
            spec: The hook.
            context: Its context variables.
            returned: Told that the hook returned, before the commit, which may fail.
        """
        call = _HookCall(cell, spec)
        run = Run(call, cell)
        context.run(running.set, run)
        try:
            await self._run(run, context, spec, returned)
        finally:
            call.phase = DONE

    async def _run(
        self, run: Run, context: Context, spec: HandlerSpec, returned: Callable[[Cell], None] | None
    ) -> None:
        cell = run.cell
        try:
            await run_in(context, spec.function(cell.instance))
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("the hook raised CancelledError although nobody had cancelled it") from exc
        except (Exception, GeneratorExit):
            raise
        except BaseException as exc:
            raise _as_failure(exc) from exc
        if returned is not None:
            returned(cell)
        if cell.phase != DEAD:
            async with one_save_at_a_time(run):
                data = None if cell.record is None else self._completion.changed_state(cell)
                await self._saving.commit_part(run, data)


def _as_failure(error: BaseException) -> RuntimeError:
    """Return what stands for `SystemExit` and its like: in a task of ours they would stop the event loop."""
    return RuntimeError(summary_of(error))
