"""Runs hooks: `on_activate`, `on_deactivate`, `on_become_leader`, `on_lose_leadership`."""

import asyncio
import inspect
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any, Final, TypeVar, cast

from actorhub.core.errors import ConfigurationError
from actorhub.core.logger import get_logger
from actorhub.core.texts import summary_of
from actorhub.engine.model.records import DEAD, DONE, RUNNING, Cell, Message, RunKind
from actorhub.engine.model.run import Run, running
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.runs.completion import Completion
from actorhub.engine.runs.driving import after_close, run_in
from actorhub.engine.runs.saving import Saving, one_save_at_a_time
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.runs.stuck import STUCK_AFTER, log_stuck
from actorhub.engine.supervision import Supervisor

T = TypeVar("T")

_log: Final = get_logger("actorhub.activation")

_USED: Final = "_actorhub_used"
"""Attribute of an instance that an activation has."""


class _HookCall(Message):
    """What stands where a call is: nobody sent it, and nobody waits for it."""

    __slots__ = ()

    run_kind = RunKind.HOOK

    def __init__(self, cell: Cell, spec: HandlerSpec, chain: tuple[str, ...]) -> None:
        super().__init__(spec, cell.entity_id)
        self.chain = chain
        self.cell = cell
        self.epoch = cell.shard.epoch
        self.phase = RUNNING


class Hooks:
    """Runs a hook like a handler: `current()` works, what it changed is committed, and then what it told is sent."""

    def __init__(self, *, scheduler: Scheduler, completion: Completion, saving: Saving, supervisor: Supervisor) -> None:
        self._base = scheduler.context
        self._supervisor = supervisor
        self._completion = completion
        self._saving = saving

    def context(self) -> Context:
        """Return new context variables for an activation and its hooks."""
        return self._base.copy()

    def make(self, cell: Cell, context: Context) -> Any:
        """Return a new instance for an activation. Whatever its constructor raises, this raises an `Exception`.

        Raises:
            ConfigurationError: The factory returned something else.
        """
        instance = outside_tasks(partial(context.run, cell.hosted_type.factory))
        _check_instance(cell, instance)
        return instance

    async def run(
        self,
        cell: Cell,
        spec: HandlerSpec,
        context: Context,
        *,
        chain: tuple[str, ...] = (),
        returned: Callable[[Cell], None] | None = None,
    ) -> None:
        """Run a hook. In a dead cell nothing is committed, and nothing is sent.

        The hook has a task of its own, so whoever cancels that ends the hook alone. Whatever it raises, this raises an
        `Exception`. If this is cancelled, so is the hook, and is waited for no longer than `STUCK_AFTER`.

        Args:
            cell: The entity.
            spec: The hook.
            context: Its context variables.
            chain: `type/id` of the entities that wait for it: calls of the hook that come back to one are cycles.
            returned: Told that the hook returned, before the commit, which may fail.
        """
        call = _HookCall(cell, spec, chain)
        run = Run(call, cell)
        context.run(running.set, run)
        if cell.record is not None and cell.phase != DEAD:
            self._completion.undo_late_changes(cell)
        task = self._supervisor.spawn(self._outcome(run, context, spec, returned), "hook")
        try:
            await asyncio.wait((task,))
            # Not in the hook's task: that may have been cancelled in the last moment, which the commit would hit.
            await self._end(run, _failure_of(task))
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait((task,), timeout=STUCK_AFTER)
            if not task.done():
                log_stuck(_log, call.what, cell.entity_id, task)
            raise
        finally:
            call.phase = DONE
            run.is_over = True

    async def _outcome(
        self, run: Run, context: Context, spec: HandlerSpec, returned: Callable[[Cell], None] | None
    ) -> Exception | None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._run(run, context, spec, returned)
        except GeneratorExit:
            after_close(task.get_loop(), task.cancel)
            raise
        except Exception as exc:  # noqa: BLE001 - user code: raised where the hook is waited for
            return exc
        return None

    async def _run(
        self, run: Run, context: Context, spec: HandlerSpec, returned: Callable[[Cell], None] | None
    ) -> None:
        try:
            await run_in(context, spec.function(run.cell.instance))
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("the hook raised CancelledError although nobody had cancelled it") from exc
        except (Exception, GeneratorExit):
            raise
        except BaseException as exc:
            raise _as_failure(exc) from exc
        if returned is not None and run.is_running:  # else nobody waits for it any longer
            returned(run.cell)

    async def _end(self, run: Run, error: Exception | None) -> None:
        """Commit what the hook did; if it failed, undo that and raise its error."""
        cell = run.cell
        try:
            if error is not None:
                raise error
            if cell.phase != DEAD:
                async with one_save_at_a_time(run):
                    data = None if cell.record is None else self._completion.changed_state(cell)
                    await self._saving.commit_part(run, data)
        except Exception:
            self._completion.take_back(run)
            raise


def _failure_of(task: "asyncio.Task[Exception | None]") -> Exception | None:
    if task.cancelled():
        return RuntimeError("somebody cancelled the hook's task")
    if task.exception() is not None:
        return RuntimeError("somebody closed the coroutine of the hook's task")
    return task.result()


def outside_tasks(call: Callable[[], T]) -> T:
    """Call synchronous code of the user. It sees no current task, which would be that of somebody else.

    Whatever it raises, this raises an `Exception`.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        asyncio.tasks._leave_task(loop, task)  # noqa: SLF001 - documented, for whoever implements tasks
    try:
        return call()
    except Exception:
        raise
    except BaseException as exc:
        raise _as_failure(exc) from exc
    finally:
        if task is not None:
            asyncio.tasks._enter_task(loop, task)  # noqa: SLF001


def _check_instance(cell: Cell, instance: Any) -> None:  # whatever a factory of the user returned
    """Refuse what is not of the entity's class, or was used before: states of several entities would be mixed in it."""
    entity = cell.hosted_type.entity
    if isinstance(instance, entity):
        attributes = cast("dict[str, object]", vars(instance))
        if _USED not in attributes:
            attributes[_USED] = True
            return
        got = f"the same {entity.__name__} twice"
    else:
        got = f"a {type(instance).__name__}"
        if inspect.iscoroutine(instance):
            instance.close()  # or Python would warn, somewhere else, that nobody awaited it
    raise ConfigurationError(
        f"{cell.address}: its factory returned {got}: it must return a new {entity.__name__} each time it is called, "
        f"as in hub.register({entity.__name__}, lambda: {entity.__name__}(...))"
    )


def _as_failure(error: BaseException) -> RuntimeError:
    """Return what stands for `SystemExit` and its like: in a task of ours they would stop the event loop."""
    return RuntimeError(summary_of(error))
