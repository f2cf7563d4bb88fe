"""Command line: `python -m examples.flights`."""

import click

from examples.demo import program
from examples.flights.demo import Demo, Plan
from examples.flights.durable import DurableDemo


@click.command(context_settings={"show_default": True})
@click.option("--flights", type=click.IntRange(min=1), help="How many flights; all 336,776 if not given.")
@click.option("--runners", type=click.IntRange(min=2), default=3, help="Runner processes at the start.")
@click.option("--in-flight", type=click.IntRange(min=1), default=256, help="Calls under way at once.")
@click.option("--database", metavar="URL", help="Postgres to use; an embedded one under ./.actorhub if not given.")
@click.option("--faults/--no-faults", default=True, help="Kill a runner on the way, and add one.")
@click.option("--durable", is_flag=True, help="Stored messages; two runners are killed, and Postgres is crashed.")
def main(
    *, flights: int | None, runners: int, in_flight: int, database: str | None, faults: bool, durable: bool
) -> None:
    """Push a year of real departures through a cluster that loses a runner, and compare with pandas."""
    plan = Plan(flights=flights, runners=runners, in_flight=in_flight, database_url=database, faults=faults)
    demo = DurableDemo if durable else Demo
    program.run(lambda screen: demo(plan, screen).run())


if __name__ == "__main__":
    main()
