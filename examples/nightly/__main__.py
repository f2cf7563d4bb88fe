"""Command line: `python -m examples.nightly`."""

import click

from examples.demo import program
from examples.nightly.data import MOST_DAYS
from examples.nightly.demo import Demo, Settings


@click.command(context_settings={"show_default": True})
@click.option("--days", type=click.IntRange(2, MOST_DAYS), default=14, help="How many days of 2013 to roll up.")
@click.option("--rounds", type=click.IntRange(min=0), default=2, help="On how many pairs of days the leader is lost.")
@click.option("--runners", type=click.IntRange(min=2), default=3, help="Runner processes at a time.")
@click.option("--database", metavar="URL", help="Postgres to use. Default: an embedded one under ./.actorhub.")
def main(*, days: int, rounds: int, runners: int, database: str | None) -> None:
    """Roll up days of flights while the leader of the job is lost at every boundary between its steps."""
    if 2 * rounds > days:
        raise click.UsageError(f"{rounds} rounds need {2 * rounds} days, there are {days}")
    settings = Settings(days=days, rounds=rounds, runners=runners, database_url=database)
    program.run(lambda screen: Demo(settings, screen).run())


if __name__ == "__main__":
    main()
