"""Runs that let others have the entity's turn while they wait: a singleton's `run`, and crons that may overlap.

Between two of its awaits such a run has the turn, like any other. While it waits it lends the turn and counts as
nested; before its next step it takes the turn back, at once if it is free, else when whoever has it is done.

It must be by turns. A run that went on while a handler is suspended could commit that handler's half-done change, or
lose its own when that handler is rolled back. One that kept the turn for good would leave nobody to answer calls.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, cast

from actorhub.engine.model.records import ACTIVE, DEAD, RUNNING, Cell, Message, Returning
from actorhub.engine.model.spec import HandlerSpec


class Lender(Protocol):
    """Passes turns on."""

    def lend(self, message: Message) -> None:
        """Let others have the turn of a run that waits for something."""
        ...

    def give_back(self, cell: Cell, message: Message) -> None:
        """Let others have a turn that `message` got back after its run was over."""
        ...


class Interleaving:
    """The turn of one interleaved run, taken and lent."""

    def __init__(self, lender: Lender, message: Message, cell: Cell) -> None:
        self._lender = lender
        self._message = message
        self._cell = cell
        self._lock = asyncio.Lock()
        self._is_held = False
        """Some task of the run is in a `held` block, or about to be."""
        self._is_waiting = False
        """The run's coroutine is suspended."""
        self.coroutine: Coroutine[Any, Any, Any] | None = None
        """What the handler does, once it suspended."""
        self._returning: set[Returning] = set()
        """Of the cell's `returning`, those of this run: its coroutine's, and that of a task which is about to hold."""

    def drive(
        self,
        context: contextvars.Context,
        coroutine: "Coroutine[Any, Any, Any]",
        step: Any,
        take_step: Callable[[contextvars.Context, Callable[[], Any]], Any],
    ) -> Generator[Any, Any, Any]:
        """Run the rest of `coroutine`, whose first step yielded `step`, each step in `context` and with the turn."""
        self.coroutine = coroutine
        while True:
            error: BaseException | None = None
            value: Any = None
            self._is_waiting = True
            self._lend()
            try:
                value = yield step
            except GeneratorExit:
                context.run(coroutine.close)
                raise
            except BaseException as exc:  # noqa: BLE001 - user code: thrown on into its coroutine
                error = exc
            # A cancellation that comes while it waits for the turn is thrown once the turn is there: its `except` and
            # `finally` blocks are steps of the run, too.
            error = (yield from self._take()) or error
            self._is_waiting = False
            resume = partial(coroutine.send, value) if error is None else partial(coroutine.throw, error)
            try:
                step = take_step(context, resume)
            except StopIteration as stop:
                return stop.value

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Keep the turn during the block, also while it awaits; of several tasks of one run, one at a time.

        A cancellation that comes while this waits for the turn is raised once it has the turn.

        Raises:
            RuntimeError: the run is over, for example in a task that outlives it.
        """
        self._check_running()
        # The turn is the whole run's. That its tasks do not commit at the same time, each the version after the same
        # one, takes a lock of their own.
        async with self._lock:
            # Set before the turn is taken: if the run's coroutine gets it first, and suspends again, it must not lend
            # the turn that this block relies on.
            self._is_held = True
            try:
                cancelled = await _awaitable(self._take())
                if cancelled is not None:
                    raise cancelled
                self._check_running()
                yield
            finally:
                self._is_held = False
                self._lend()

    def _lend(self) -> None:
        # Not when the run's own coroutine leaves a `held` block: it goes on, and needs the turn until its next await.
        message = self._message
        if not self._is_held and self._is_waiting and not message.is_nested:
            self._lender.lend(message)

    def _take(self) -> Generator[Any, Any, asyncio.CancelledError | None]:
        """Take the turn back; return the cancellation that came meanwhile. In a dead cell there are no turns."""
        message, cell = self._message, self._cell
        cancelled: asyncio.CancelledError | None = None
        has_turn = False
        while message.is_nested and not has_turn and cell.phase != DEAD:
            has_turn, came = yield from _wait_for_turn(cell, message.spec, self._returning)
            cancelled = came or cancelled
        if has_turn and not message.is_nested:
            # The run ended while a task that outlives it waited here, so nobody would end this turn.
            self._lender.give_back(cell, message)
            self._check_running()
        elif has_turn:
            cell.nested -= 1
            message.is_nested = False
            self._share_turn()
        return cancelled

    def _share_turn(self) -> None:
        # Whoever else of this run waits has the turn now, too, and must not go on waiting: a task that is about to hold
        # the turn keeps it from being lent, and so would wait for itself.
        release(self._cell, self._returning)

    def _check_running(self) -> None:
        if self._message.phase != RUNNING:
            raise RuntimeError(f"{self._message.what}: its run is over, so it cannot save")


async def wait_for_turn(
    cell: Cell, spec: HandlerSpec, waiting: set[Returning]
) -> tuple[bool, asyncio.CancelledError | None]:
    """Take a turn for `spec`, before the mailbox: at once if one is free, else when whoever has it is done.

    Args:
        cell: The entity.
        spec: Says what kind of turn; `Scheduler.end_turn` takes it back.
        waiting: Where this is while it waits, for `release`.

    Returns:
        Whether there is a turn, which is not so after a `release`; and the cancellation that ended the wait, if one
        did. There may be both.
    """
    found: tuple[bool, asyncio.CancelledError | None] = await _awaitable(_wait_for_turn(cell, spec, waiting))
    return found


def release(cell: Cell, waiting: set[Returning]) -> None:
    """Have those who wait for a turn go on without."""
    for returning in waiting:
        if not returning.future.done():
            _forget(cell, returning)
            returning.future.set_result(False)


def grant(cell: Cell, ended: Message) -> None:
    """Give the turns that are free to those who wait to get one back.

    After a turn of an interleaved run the mailbox comes first, so that neither starves: a `run` that never stops
    awaiting would take each turn otherwise, and so would a mailbox that is never empty.
    """
    returning = cell.returning
    if returning is None or (ended.spec.interleaved and cell.queue is not None and cell.phase == ACTIVE):
        return
    while returning:
        head = returning[0]
        if not head.future.done():
            if not cell.admit(head.spec, is_returning=True):
                return
            head.future.set_result(True)
        returning.popleft()
    cell.returning = None


def _wait_for_turn(
    cell: Cell, spec: HandlerSpec, waiting: set[Returning]
) -> Generator[Any, Any, tuple[bool, asyncio.CancelledError | None]]:
    if cell.admit(spec):
        return True, None
    returning = Returning(spec)
    if cell.returning is None:
        cell.returning = deque()
    cell.returning.append(returning)
    waiting.add(returning)
    future = returning.future
    cancelled: asyncio.CancelledError | None = None
    try:
        yield from future
    except asyncio.CancelledError as exc:
        cancelled = exc
        _forget(cell, returning)
    finally:
        waiting.discard(returning)
    # A cancellation can come in the same tick as the turn. It is this one's turn then: nobody else would end it.
    return future.done() and not future.cancelled() and future.result(), cancelled


def _forget(cell: Cell, returning: Returning) -> None:
    if cell.returning is not None and returning in cell.returning:
        cell.returning.remove(returning)
        if not cell.returning:
            cell.returning = None


async def _awaitable(steps: Generator[Any, Any, Any]) -> Any:
    return await cast("Any", _Steps(steps))


class _Steps:
    def __init__(self, steps: Generator[Any, Any, Any]) -> None:
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._steps
