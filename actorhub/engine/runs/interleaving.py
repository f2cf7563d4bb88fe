"""Runs that let others have the entity's turn while they wait: a singleton's `run`, and crons that may overlap.

Between two of its awaits such a run has the turn, like any other. While it waits it lends the turn to whoever wants one
and is counted as nested; before it goes on it takes the turn again, once whoever has it is done.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, cast

from actorhub.engine.model.records import ACTIVE, DEAD, EXCLUSIVE, RUNNING, Cell, Message


class Lender(Protocol):
    """Who passes turns on."""

    def lend(self, message: Message) -> None:
        """Let others have the turn of a run that waits for something."""
        ...

    def give_back(self, cell: Cell, message: Message) -> None:
        """Let others have a turn that came too late for the run of `message`."""
        ...


class Interleaving:
    """The turn of one interleaved run, taken and lent."""

    def __init__(self, lender: Lender, message: Message, cell: Cell) -> None:
        self._lender = lender
        self._message = message
        self._cell = cell
        self._holds = 0
        self._is_waiting = False

    def drive(
        self, context: contextvars.Context, coroutine: "Coroutine[Any, Any, Any]", step: Any
    ) -> Generator[Any, Any, Any]:
        """Run the rest of `coroutine`, whose first step yielded `step`, every step inside `context` and its turn."""
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
            error = (yield from self._take()) or error
            self._is_waiting = False
            resume = partial(coroutine.send, value) if error is None else partial(coroutine.throw, error)
            try:
                step = context.run(resume)
            except StopIteration as stop:
                return stop.value

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Keep the turn during the block, through its awaits.

        A cancellation while it waits for the turn is raised once it has it.

        Raises:
            RuntimeError: the run is over, for example in a task that outlives it.
        """
        self._check_running()
        self._holds += 1
        try:
            cancelled = await _awaitable(self._take())
            if cancelled is not None:
                raise cancelled
            yield
        finally:
            self._holds -= 1
            self._lend()

    def _lend(self) -> None:
        message = self._message
        if self._holds == 0 and self._is_waiting and not message.is_nested:
            self._lender.lend(message)

    def _take(self) -> Generator[Any, Any, asyncio.CancelledError | None]:
        """Take the turn again; return the cancellation that came meanwhile. A dead cell has no turns any more."""
        message, cell = self._message, self._cell
        cancelled: asyncio.CancelledError | None = None
        has_turn = False
        while message.is_nested and not has_turn and cell.phase != DEAD:
            if cell.load == 0:
                cell.load = EXCLUSIVE
                has_turn = True
                continue
            returning = asyncio.get_running_loop().create_future()
            if cell.returning is None:
                cell.returning = deque()
            cell.returning.append(returning)
            try:
                yield from returning
            except asyncio.CancelledError as exc:
                cancelled = exc
                _forget(cell, returning)
            has_turn = returning.done() and not returning.cancelled()
        if has_turn and not message.is_nested:
            # The run ended while a task that outlives it waited here: the turn is nobody's.
            self._lender.give_back(cell, message)
            self._check_running()
        elif has_turn:
            cell.nested -= 1
            message.is_nested = False
        return cancelled

    def _check_running(self) -> None:
        if self._message.phase != RUNNING:
            raise RuntimeError(f"{self._message.what}: its run is over, so it cannot save")


def grant(cell: Cell, ended: Message) -> None:
    """Give the free turn of a cell to a run that waits to go on; after one of those the mailbox comes first."""
    returning = cell.returning
    if (
        returning is None
        or cell.load != 0
        or (ended.spec.interleaved and cell.queue is not None and cell.phase == ACTIVE)
    ):
        return
    while returning:
        future = returning.popleft()
        if not future.done():
            cell.load = EXCLUSIVE
            future.set_result(None)
            break
    if not returning:
        cell.returning = None


def _forget(cell: Cell, returning: "asyncio.Future[None]") -> None:
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
