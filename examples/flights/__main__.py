"""Command line: `python -m examples.flights`."""

import click

from examples.demo import program
from examples.flights.demo import Demo, Plan
from examples.flights.durable import DurableDemo


@click.command(context_settings={"show_default": True})
@click.option("--flights", type=click.IntRange(min=1), help="How many flights. Default: all 336,776.")
@click.option("--runners", type=click.IntRange(min=2), default=3, help="Runner processes at the start.")
@click.option("--in-flight", type=click.IntRange(min=1), default=256, help="Calls in flight at once.")
@click.option("--database", metavar="URL", help="Postgres to use. Default: an embedded one under ./.actorhub.")
@click.option("--faults/--no-faults", default=True, help="Kill a runner during the run, and add one.")
@click.option("--durable", is_flag=True, help="Use stored messages; kill two runners and crash Postgres.")
def main(
    *, flights: int | None, runners: int, in_flight: int, database: str | None, faults: bool, durable: bool
) -> None:
    """Send a year of real departures through a cluster that loses a runner, and compare the result with pandas."""
    plan = Plan(flights=flights, runners=runners, in_flight=in_flight, database_url=database, faults=faults)
    demo = DurableDemo if durable else Demo
    program.run(lambda screen: demo(plan, screen).run())


if __name__ == "__main__":
    main()
