"""The owner of all tasks that nobody awaits. Failures are logged and counted, and loops are started again."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError, PersistenceError, ShuttingDown
from actorhub.core.logger import get_logger
from actorhub.core.texts import summary_of

T = TypeVar("T")
ResultT = TypeVar("ResultT")

_log = get_logger(__name__)

_MAX_NAMES: Final = 256
_OTHERS: Final = "others"
_SETTLING_ROUNDS: Final = 5
"""Iterations of the event loop that a result needs to get from the socket to the task that waits for it."""


@dataclass(frozen=True, slots=True)
class SupervisorStatistics:
    """What has happened to the tasks so far. Names beyond the first 256 are counted as `others`."""

    tasks: int
    """Tasks that are alive now."""
    failures: Mapping[str, int]
    """One-off tasks that ended with an exception, by name."""
    restarts: Mapping[str, int]
    """How often loops have failed and were started again, by name."""
    abandoned: Mapping[str, int]
    """Operations that took too long and were abandoned, by name."""


class Supervisor:
    """Owns tasks: none is garbage-collected, none fails unnoticed, and none outlives `aclose` without being named.

    The event loop keeps only weak references to tasks, so a task that nothing else refers to can vanish in the middle.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.on_loop_cancelled: Callable[[str], None] | None = None
        """Told the name of a loop that was cancelled by somebody who does not own it."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loops: set[asyncio.Task[Any]] = set()
        """The loops that nobody has ended."""
        self._failures: Counter[str] = Counter()
        self._restarts: Counter[str] = Counter()
        self._abandoned: Counter[str] = Counter()
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, T], name: str, context: Context | None = None) -> asyncio.Task[T]:
        """Run `work` in a task of its own. If it raises, that is logged and counted under `name`.

        Args:
            work: What to run. If the supervisor is closed, it is closed without having run.
            name: Labels counters, so it must come from a small fixed set.
            context: The task's context variables; by default a copy of the caller's.

        Raises:
            ShuttingDown: The supervisor is closed.
        """
        if self._closed:
            work.close()
            raise ShuttingDown(f"{name} was not started: this process is leaving")
        task = asyncio.create_task(work, name=name, context=context)  # noqa: TID251 - this is the place that owns tasks
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def spawn_within(
        self,
        around: Callable[[Coroutine[Any, Any, T]], Coroutine[Any, Any, ResultT]],
        work: Coroutine[Any, Any, T],
        name: str,
        context: Context | None = None,
    ) -> asyncio.Task[ResultT]:
        """Spawn `around(work)`; `work` is closed if it does not begin.

        Raises:
            ShuttingDown: The supervisor is closed.
        """
        try:
            task = self.spawn(around(work), name, context)
        except ShuttingDown:
            work.close()
            raise
        # A task that is cancelled before its first step never starts `work`, which would then warn that nobody awaited
        # it. Closing a coroutine that has ended does nothing.
        task.add_done_callback(lambda _: work.close())
        return task

    def loop(
        self, name: str, factory: Callable[[], Coroutine[Any, Any, None]], backoff: Backoff | None = None
    ) -> asyncio.Task[None]:
        """Run `factory()`, again whenever it raises, until it returns or the loop is ended by `end`.

        Each failure is logged and counted. The backoff starts over after a run that lasted longer than its maximum.
        A cancellation that comes neither from `end` nor from `aclose` ends the loop too, and is reported.
        """
        task = self.spawn(self._keep_running(name, factory, backoff or Backoff()), name)
        self._loops.add(task)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task on behalf of its owner."""
        self._loops.discard(task)
        task.cancel()

    def end_loops(self) -> None:
        """End every loop; other tasks go on."""
        for task in tuple(self._loops):
            self.end(task)

    async def bounded(self, work: Coroutine[Any, Any, T], name: str, seconds: float) -> T:
        """Return the result of `work`, or raise `TimeoutError` after `seconds`, even if `work` resists cancellation.

        Unlike `asyncio.timeout`, this bounds the *wait*: `work` is cancelled and left to the supervisor, so a clean-up
        that hangs does not hang the caller. If the caller is cancelled, `work` is cancelled and not waited for either.

        Raises:
            TimeoutError: The time is over, or somebody else cancelled the work. The text names the work.
            ShuttingDown: The supervisor is closed, or was closed during the wait.
        """
        task = self.spawn_within(_outcome, work, name)
        try:
            await asyncio.wait((task,), timeout=max(0.0, seconds))
            # If the event loop was blocked for a while, the time is over, but the answer may have arrived as well, with
            # its callbacks still to run. It is not thrown away.
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
        if task.cancelled() and not self._closed:
            raise TimeoutError(f"{name} was cancelled by a task of the program")
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
        """Cancel every task except the caller's, and wait at most `grace` seconds for them.

        Nothing new can be started from now on. Calling it again is allowed.

        Returns:
            The names of the tasks that are still alive.
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
            _log.warning("tasks that did not end within %.3g s of their cancellation: %s", grace, ", ".join(names))
        return names

    async def _keep_running(
        self, name: str, factory: Callable[[], Coroutine[Any, Any, None]], backoff: Backoff
    ) -> None:
        failures = 0
        while True:
            started = self.clock.monotonic()
            try:
                return await factory()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if self._closed or task is None or task.cancelling():
                    raise
                # Not the loop was cancelled, but a future that it awaited. That is a defect, not an order to end.
                problem: BaseException = error
            except Exception as error:  # noqa: BLE001 - supervised loop: logged, counted, started again
                problem = error
            failures = failures + 1 if self.clock.monotonic() - started <= backoff.maximum else 1
            self._count(self._restarts, name)
            delay = backoff.delay(failures, self.clock.random())
            _log.warning(
                "loop %s failed and will start again in %.3g s: %s",
                name,
                delay,
                summary_of(problem),
                exc_info=_trace(problem),
            )
            await asyncio.sleep(delay)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        is_left = task in self._loops
        self._loops.discard(task)
        if task.cancelled():
            if is_left and not self._closed and self.on_loop_cancelled is not None:
                self.on_loop_cancelled(task.get_name())
            return
        error = task.exception()
        if error is not None:
            self._count(self._failures, task.get_name())
            _log.error("task %s failed: %s", task.get_name(), summary_of(error), exc_info=_trace(error))

    def _count(self, counter: Counter[str], name: str) -> None:
        counter[name if name in counter or len(counter) < _MAX_NAMES else _OTHERS] += 1


@dataclass(frozen=True, slots=True)
class _Failed:
    error: ActorhubError


async def _outcome(work: Awaitable[T]) -> T | _Failed:
    """Return an expected failure as a value: the caller handles it, so the supervisor must not report it."""
    try:
        return await work
    except ActorhubError as error:
        return _Failed(error)


def _trace(error: BaseException) -> BaseException | None:
    """Return `error` if its traceback tells more than its text, which is so for failures that nobody foresaw."""
    return None if issubclass(type(error), ActorhubError | TimeoutError) else error


async def set_or_time(event: asyncio.Event, seconds: float | None) -> None:
    """Return once `event` is set, but after `seconds` at the latest unless that is `None`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def store_call(supervisor: Supervisor, work: Coroutine[Any, Any, T], name: str, seconds: float) -> T:
    """Return the result of one call of the store, waiting at most `seconds`.

    Raises:
        PersistenceError: The store failed, or did not answer in time. Then the outcome is unknown.
    """
    try:
        return await supervisor.bounded(work, name, seconds)
    except TimeoutError as error:
        raise PersistenceError(f"the store did not answer in time: {error}") from error
