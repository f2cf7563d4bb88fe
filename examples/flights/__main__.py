"""Command line: `python -m examples.flights`."""

import asyncio
import signal
import sys
from collections.abc import Callable

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
def main(flights: int | None, runners: int, in_flight: int, database: str | None, faults: bool) -> None:  # noqa: FBT001
    """Push a year of real departures through a cluster that loses a runner, and compare with pandas."""
    plan = Plan(flights=flights, runners=runners, in_flight=in_flight, database_url=database, faults=faults)
    screen = Screen(Console())
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            done = runner.run(_until_terminated(Demo(plan, screen)))
    except* (ActorhubError, RunnerFailed) as group:
        for error in _leaves(group):
            screen.say(f"{type(error).__name__}: {error}", "red")
        sys.exit(1)
    except* KeyboardInterrupt:
        screen.say("interrupted; all processes are ended", "yellow")
        sys.exit(130)
    sys.exit(0 if done else 1)
