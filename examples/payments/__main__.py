"""Command line: `python -m examples.payments`."""

import click

from examples.demo import program
from examples.payments.demo import Demo, Settings


@click.command(context_settings={"show_default": True})
@click.option("--accounts", type=click.IntRange(min=2), default=200, help="How many accounts.")
@click.option("--transfers", type=click.IntRange(min=4), default=5_000, help="How many transfers between them.")
@click.option("--runners", type=click.IntRange(min=2), default=3, help="Runner processes at a time.")
@click.option(
    "--kills", type=click.IntRange(min=0), default=2, help="Number of SIGKILLs. The last of several kills all runners."
)
@click.option(
    "--restarts", type=click.IntRange(min=0), default=1, help="Number of runners that leave gracefully during the run."
)
@click.option("--crash-postgres", is_flag=True, help="Crash Postgres half-way (an embedded one that only demos use).")
@click.option("--in-flight", type=click.IntRange(min=1), default=128, help="Calls in flight at once.")
@click.option("--seed", type=int, default=1, help="Seed for who pays whom, when, and how much.")
@click.option("--database", metavar="URL", help="Postgres to use. Default: an embedded one under ./.actorhub.")
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
    """Send transfers between accounts, kill runners in the meantime, and count every cent at the end."""
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
