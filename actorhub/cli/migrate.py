"""`actorhub migrate`: the database schema."""

import asyncio
from contextlib import AsyncExitStack

import click

from actorhub.cli.options import load, setting_options
from actorhub.cli.running import database_shown
from actorhub.core.config import Settings
from actorhub.storage.postgres.embedded import EmbeddedPostgres
from actorhub.storage.postgres.eras import Visit, visit_era
from actorhub.storage.postgres.schema import migrate as apply_migrations
from actorhub.storage.postgres.schema import migration_sql


@click.command
@setting_options("database_url", "namespace")
@click.option("--print-sql", is_flag=True, help="Print the SQL that makes the schema or what it lacks; change nothing.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="NAME",
    help="With --print-sql: make this role if it is missing, and grant it what a runner needs. Can be repeated.",
)
@click.option(
    "--adopt",
    is_flag=True,
    help="Make a copy of a database (a restored backup, a clone) a cluster of its own; does nothing to an original.",
)
def migrate(print_sql: bool, roles: tuple[str, ...], adopt: bool, **flags: object) -> None:
    """Bring the database schema up to date. Runners do this themselves if their database user may."""
    settings = load(flags)
    if print_sql:
        click.echo(migration_sql(settings.namespace, roles), nl=False)
        return
    if roles:
        raise click.UsageError("--role belongs to --print-sql: let the owner of the schema run what that prints")
    applied, visit = asyncio.run(_migrate(settings, adopts=adopt))
    done = {0: "is up to date", 1: "is now up to date: 1 change applied"}
    what = done.get(applied, f"is now up to date: {applied} changes applied")
    click.echo(f"schema {settings.namespace} of {database_shown(settings)} {what}")
    if visit.copy:
        click.echo(f"note: {visit.copy}")
    elif adopt:
        cluster = visit.entered.era.cluster
        said = "is a cluster of its own now" if visit.entered.is_adopted else "is not a copy, so nothing was changed"
        click.echo(f"schema {settings.namespace} of {database_shown(settings)} {said}: cluster {cluster}")


async def _migrate(settings: Settings, *, adopts: bool) -> tuple[int, Visit]:
    async with AsyncExitStack() as stack:
        url = settings.database_url
        if url is None:
            server = EmbeddedPostgres()
            url = await server.start()
            stack.push_async_callback(server.stop)
        applied = await apply_migrations(url, settings.namespace)
        return applied, await visit_era(url, settings.namespace, adopts=adopts)
