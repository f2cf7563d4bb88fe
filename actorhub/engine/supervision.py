"""The one owner of tasks that nobody awaits: what fails is logged, counted and, if it is a loop, started again."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError, PersistenceError, ShuttingDown

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MAX_NAMES: Final = 256
_OTHERS: Final = "others"
_SETTLING_ROUNDS: Final = 5
"""Loop rounds that a result needs from the socket to the task that waits for it."""


@dataclass(frozen=True, slots=True)
class SupervisorStatistics:
    """What happened to the tasks so far; names beyond 256 are counted as `others`."""

    tasks: int
    """Tasks that are alive now."""
    failures: Mapping[str, int]
    """One-off tasks that ended with an exception, by name."""
    restarts: Mapping[str, int]
    """Loops that died and were started again, by name."""
    abandoned: Mapping[str, int]
    """Operations whose wait was given up, by name."""


class Supervisor:
    """Owns tasks: none is garbage-collected, none fails unseen, none outlives `aclose` without being named."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures: Counter[str] = Counter()
        self._restarts: Counter[str] = Counter()
        self._abandoned: Counter[str] = Counter()
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, T], name: str, context: Context | None = None) -> asyncio.Task[T]:
        """Run `work` in a task of its own; an exception is logged and counted under `name`.

        Args:
            work: What to run; closed unrun when the supervisor is closed.
            name: From a small fixed set: it labels counters.
            context: The task's context variables; by default a copy of the caller's.

        Raises:
            ShuttingDown: the supervisor is closed.
        """
        if self._closed:
            work.close()
            raise ShuttingDown(f"{name} was not started: this process is leaving")
        task = asyncio.create_task(work, name=name, context=context)  # noqa: TID251 - this is the place that owns tasks
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def loop(
        self, name: str, factory: Callable[[], Coroutine[Any, Any, None]], backoff: Backoff | None = None
    ) -> asyncio.Task[None]:
        """Keep `factory()` running until it returns or the task is cancelled; each death is logged and counted.

        The backoff starts over after a run that was healthy for longer than its maximum.
        """
        return self.spawn(self._keep_running(name, factory, backoff or Backoff()), name)

    async def bounded(self, work: Coroutine[Any, Any, T], name: str, seconds: float) -> T:
        """Return `work`'s result, or raise `TimeoutError` after `seconds` even if `work` resists cancellation.

        Unlike `asyncio.timeout` it bounds the *wait*: `work` is cancelled and left to the supervisor, so that a
        clean-up that hangs holds nobody. A result that arrived while the event loop was blocked is not thrown away.
        On cancellation of the caller `work` is cancelled and not awaited either.

        Raises:
            TimeoutError: names the work.
            ShuttingDown: the supervisor is or gets closed.
        """
        try:
            task = self.spawn(_outcome(work), name)
        except ShuttingDown:
            work.close()
            raise
        # Cancelled before its first step, the task never got to `work`; after its end this does nothing.
        task.add_done_callback(lambda _: work.close())
        try:
            await asyncio.wait((task,), timeout=max(0.0, seconds))
            for _ in range(_SETTLING_ROUNDS):
                if task.done():
                    break
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            self._count(self._abandoned, name)
            raise TimeoutError(f"{name} took longer than {seconds:.3g} s")
        if task.cancelled():
            raise ShuttingDown(f"{name} was cancelled: this process is leaving")
        result = task.result()
        if isinstance(result, _Failed):
            raise result.error
        return result

    def statistics(self) -> SupervisorStatistics:
        """Return the counters as they are now."""
        return SupervisorStatistics(len(self._tasks), dict(self._failures), dict(self._restarts), dict(self._abandoned))

    async def aclose(self, grace: float) -> tuple[str, ...]:
        """Cancel every task but the caller's, wait at most `grace` seconds, return the names of those still alive.

        Nothing new is started from now on. Can be called twice.
        """
        self._closed = True
        ours = asyncio.current_task()
        tasks = {task for task in self._tasks if task is not ours}
        for task in tasks:
            task.cancel()
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=max(0.0, grace))
        names = tuple(sorted(task.get_name() for task in tasks))
        if names:
            _log.warning("tasks that do not end within %.3g s after their cancellation: %s", grace, ", ".join(names))
        return names

    async def _keep_running(
        self, name: str, factory: Callable[[], Coroutine[Any, Any, None]], backoff: Backoff
    ) -> None:
        failures = 0
        while True:
            started = self._clock.monotonic()
            try:
                return await factory()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if self._closed or task is None or task.cancelling():
                    raise
                # Somebody cancelled a future that the loop awaited, not the loop: a defect, not an order to end.
                problem: BaseException = error
            except Exception as error:  # noqa: BLE001 - supervised loop: logged, counted, started again
                problem = error
            failures = failures + 1 if self._clock.monotonic() - started <= backoff.maximum else 1
            self._count(self._restarts, name)
            delay = backoff.delay(failures, self._clock.random())
            _log.warning(
                "loop %s failed and starts again in %.3g s: %s", name, delay, _text(problem), exc_info=_trace(problem)
            )
            await asyncio.sleep(delay)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._count(self._failures, task.get_name())
            _log.error("task %s failed: %s", task.get_name(), _text(error), exc_info=_trace(error))

    def _count(self, counter: Counter[str], name: str) -> None:
        counter[name if name in counter or len(counter) < _MAX_NAMES else _OTHERS] += 1


@dataclass(frozen=True, slots=True)
class _Failed:
    error: ActorhubError


async def _outcome(work: Awaitable[T]) -> T | _Failed:
    """Turn an expected failure into a value: it is the waiting caller's to handle, not the supervisor's to report."""
    try:
        return await work
    except ActorhubError as error:
        return _Failed(error)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _trace(error: BaseException) -> BaseException | None:
    """Return `error` where its traceback says more than its text: not for failures that were foreseen."""
    return None if isinstance(error, ActorhubError | TimeoutError) else error


async def set_or_time(event: asyncio.Event, seconds: float | None) -> None:
    """Return once `event` is set, or after `seconds`; `None`: only then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def store_call(supervisor: Supervisor, work: Coroutine[Any, Any, T], name: str, seconds: float) -> T:
    """Return the result of one call of the store, or give up the wait after `seconds`.

    Raises:
        PersistenceError: the store failed it, or gave no answer in time: then the outcome is unknown.
    """
    try:
        return await supervisor.bounded(work, name, seconds)
    except TimeoutError as error:
        raise PersistenceError(f"the store does not answer: {error}") from error
