"""Runs coroutines of user code step by step, each step in a context that is not the task's."""

import asyncio
import contextvars
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any


def resumed(context: contextvars.Context, resume: Callable[[], Any]) -> Any:
    """Return what the next step of user code yields.

    Raises:
        StopIteration: It returned.
        RuntimeError: It raised `GeneratorExit`. In a task of the engine that would mean that the event loop was closed.
    """
    try:
        return context.run(resume)
    except GeneratorExit as exc:
        raise RuntimeError("GeneratorExit was raised") from exc


def after_close(loop: asyncio.AbstractEventLoop, then: Callable[[], object]) -> None:
    """Have `then` called if `GeneratorExit` ends a task because somebody has closed its coroutine.

    A handler can do that to the task that it runs in. What the task waits for may then never come, so the task would
    not end either, and nobody would be answered. If the event loop is gone, and its tasks with it, nothing is called.
    """
    try:
        is_running = asyncio.get_running_loop() is loop
    except RuntimeError:
        return
    if is_running:
        loop.call_soon(then)


def drive(
    context: contextvars.Context,
    coroutine: "Coroutine[Any, Any, Any]",
    step: Any,
    take_step: Callable[[contextvars.Context, Callable[[], Any]], Any] = resumed,
) -> Generator[Any, Any, Any]:
    """Run the rest of `coroutine`, whose first step yielded `step`, each step in `context`."""
    while True:
        try:
            value = yield step
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as exc:  # noqa: BLE001 - user code: thrown on into its coroutine
            resume = partial(coroutine.throw, exc)
        else:
            resume = partial(coroutine.send, value)
        try:
            step = take_step(context, resume)
        except StopIteration as stop:
            return stop.value


@types.coroutine
def run_in(context: contextvars.Context, coroutine: "Coroutine[Any, Any, Any]") -> Generator[Any, Any, Any]:
    """Await `coroutine` in the current task, each step in `context`."""
    try:
        step = resumed(context, partial(coroutine.send, None))
    except StopIteration as stop:
        return stop.value
    return (yield from drive(context, coroutine, step))
