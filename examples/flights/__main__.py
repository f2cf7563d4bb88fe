"""Command line: `python -m examples.flights`."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator

import click
from rich.console import Console

from actorhub import ActorhubError
from examples.flights.demo import Demo, Plan
from examples.flights.runners import RunnerFailed
from examples.flights.screen import Screen


@click.command(context_settings={"show_default": True})
@click.option("--flights", type=click.IntRange(min=1), help="How many flights; all 336,776 if not given.")
@click.option("--runners", type=click.IntRange(min=2), default=3, help="Runner processes at the start.")
@click.option("--in-flight", type=click.IntRange(min=1), default=256, help="Calls under way at once.")
@click.option("--database", metavar="URL", help="Postgres to use; an embedded one under ./.actorhub if not given.")
@click.option("--faults/--no-faults", default=True, help="Kill a runner on the way, and add one.")
def main(flights: int | None, runners: int, in_flight: int, database: str | None, faults: bool) -> None:
    """Push a year of real departures through a cluster that loses a runner, and compare with pandas."""
    # A runner is started while gRPC's threads run here; gRPC's own fork handlers crash in such a child now and then.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    plan = Plan(flights=flights, runners=runners, in_flight=in_flight, database_url=database, faults=faults)
    screen = Screen(Console() if sys.stdout.isatty() else Console(width=120))
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            done = runner.run(_until_terminated(Demo(plan, screen)))
    except (ActorhubError, RunnerFailed, ExceptionGroup) as error:
        for leaf in _leaves(error):
            screen.say(f"{type(leaf).__name__}: {leaf}", "red")
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError) as reason:
        screen.say("interrupted: all processes are ended", "yellow")
        sys.exit(128 + (signal.SIGINT if isinstance(reason, KeyboardInterrupt) else signal.SIGTERM))
    sys.exit(0 if done else 1)


async def _until_terminated(demo: Demo) -> bool:
    """Run the demo; SIGTERM ends it as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await demo.run()


def _leaves(error: Exception) -> Iterator[Exception]:
    """Yield the errors in a group of groups; raise those that only a defect explains.

    Raises:
        ExceptionGroup: what is neither an error of the cluster nor of a runner process.
    """
    known = (ActorhubError, RunnerFailed)
    if not isinstance(error, ExceptionGroup):
        yield error
        return
    if (unknown := error.split(known)[1]) is not None:
        raise unknown
    for inner in error.exceptions:
        yield from _leaves(inner)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's, where the `speed` extra is installed."""
    try:
        import uvloop  # noqa: PLC0415 - the `speed` extra may be absent
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
