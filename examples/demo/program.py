"""The main program of a demo: one run, its end by a signal, and the exit status."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn, cast

from rich.console import Console

from actorhub import ActorhubError
from examples.demo.runners import RunnerFailed
from examples.demo.screen import Screen
from examples.demo.stored import NotDrained


def run(demo: Callable[[Screen], Awaitable[bool]]) -> NoReturn:
    """Run a demo and exit, with status 0 if it succeeds, 1 if not, and 128 + signal if it is interrupted."""
    # Runners are started while gRPC's threads run in this process. gRPC's fork handlers sometimes crash such a child.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    screen = Screen(Console() if sys.stdout.isatty() else Console(width=120))
    logging.getLogger("actorhub").addHandler(_OnScreen(screen))
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            done = runner.run(_until_terminated(demo(screen)))
    except (ActorhubError, RunnerFailed, NotDrained, ExceptionGroup) as error:
        for leaf in _leaves(error):
            screen.say(f"{type(leaf).__name__}: {leaf}", "red")
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError) as reason:
        screen.say("interrupted: all processes are ended", "yellow")
        sys.exit(128 + (signal.SIGINT if isinstance(reason, KeyboardInterrupt) else signal.SIGTERM))
    sys.exit(0 if done else 1)


class _OnScreen(logging.Handler):
    """Shows the warnings and errors that the client of the cluster logs."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say(f"client: {record.getMessage()}", "dim")


async def _until_terminated(demo: Awaitable[bool]) -> bool:
    """Run the demo. SIGTERM ends it, like Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await demo


def _leaves(error: Exception) -> Iterator[Exception]:
    """Yield the errors in nested exception groups. Raise those that can only be defects.

    Raises:
        ExceptionGroup: The errors that come neither from the cluster nor from a runner process.
    """
    known = (ActorhubError, RunnerFailed, NotDrained)
    if not isinstance(error, ExceptionGroup):
        yield error
        return
    group = cast("ExceptionGroup[Exception]", error)
    if (unknown := group.split(known)[1]) is not None:
        raise unknown
    for inner in group.exceptions:
        yield from _leaves(inner)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory if the `speed` extra is installed."""
    try:
        import uvloop  # noqa: PLC0415 - the `speed` extra is optional
    except ImportError:
        return None
    return uvloop.new_event_loop
