"""Command line: `python -m examples.payments`."""

import click

from examples.demo import program
from examples.payments.demo import Demo, Settings


@click.command(context_settings={"show_default": True})
@click.option("--accounts", type=click.IntRange(min=2), default=200, help="How many accounts.")
@click.option("--transfers", type=click.IntRange(min=4), default=5_000, help="How many transfers between them.")
@click.option("--runners", type=click.IntRange(min=2), default=3, help="Runner processes at a time.")
@click.option("--kills", type=click.IntRange(min=0), default=2, help="SIGKILLs; of several, the last hits all runners.")
@click.option("--restarts", type=click.IntRange(min=0), default=1, help="Runners that leave gracefully on the way.")
@click.option("--crash-postgres", is_flag=True, help="Crash Postgres half-way, too (an embedded one of its own).")
@click.option("--in-flight", type=click.IntRange(min=1), default=128, help="Calls under way at once.")
@click.option("--seed", type=int, default=1, help="Who pays whom, when, and how much.")
@click.option("--database", metavar="URL", help="Postgres to use; an embedded one under ./.actorhub if not given.")
def main(  # noqa: PLR0913 - one per option
    *,
    accounts: int,
    transfers: int,
    runners: int,
    kills: int,
    restarts: int,
    crash_postgres: bool,
    in_flight: int,
    seed: int,
    database: str | None,
) -> None:
    """Send transfers between accounts, kill runners on the way, and count every cent in the end."""
    settings = Settings(
        accounts=accounts,
        transfers=transfers,
        runners=runners,
        kills=kills,
        restarts=restarts,
        crash=crash_postgres,
        in_flight=in_flight,
        seed=seed,
        database_url=database,
    )
    program.run(lambda screen: Demo(settings, screen).run())


if __name__ == "__main__":
    main()
