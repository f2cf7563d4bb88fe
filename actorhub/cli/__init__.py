"""The command `actorhub`."""

from typing import Final

import click

from actorhub.cli.commands import Command, Commands
from actorhub.hub import VERSION

COMMANDS: Final = (
    Command("serve", "actorhub.cli.serve:serve", "Run a hub's entities as part of the cluster."),
    Command("shards", "actorhub.cli.tables:shards", "List the shards, their owners, and what is in them."),
    Command("runners", "actorhub.cli.tables:runners", "List the runners of the cluster."),
    Command("entities", "actorhub.cli.tables:entities", "List the entities that are in memory."),
    Command("singletons", "actorhub.cli.singletons:singletons", "List the singletons and their leaders."),
    Command(
        "schedules",
        "actorhub.cli.singletons:schedules",
        "List, pause, resume, run and change the schedules of singletons.",
    ),
    Command("call", "actorhub.cli.calls:call", "Call HANDLER of the entity ID of TYPE and print its result as JSON."),
    Command("tell", "actorhub.cli.calls:tell", "Send a message to HANDLER of the entity ID of TYPE and print its id."),
    Command("reply", "actorhub.cli.calls:reply", "Wait until the durable message ID has ended and print its result."),
    Command("messages", "actorhub.cli.messages:messages", "List durable messages, by id."),
    Command("dead-letters", "actorhub.cli.messages:dead_letters", "List messages that failed for good, by id."),
    Command(
        "retry",
        "actorhub.cli.repairs:retry",
        "Retry dead letters, or messages that are waiting for their next attempt.",
    ),
    Command("purge", "actorhub.cli.repairs:purge", "Delete dead letters for good."),
    Command(
        "cancel",
        "actorhub.cli.repairs:cancel",
        "Cancel a message: one that waits, that runs, or that is a dead letter.",
    ),
    Command("complete", "actorhub.cli.deferred:complete", "Complete the deferred value of TOKEN."),
    Command("fail", "actorhub.cli.deferred:fail", "Fail the deferred value of TOKEN."),
    Command("migrate", "actorhub.cli.migrate:migrate", "Bring the database schema up to date."),
)


@click.group(
    cls=Commands,
    commands_table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Flags take precedence over ACTORHUB_… environment variables, and these over actorhub.toml.",
)
@click.version_option(VERSION, package_name="actorhub", message="actorhub %(version)s")
def main() -> None:
    """Virtual actors on Postgres: every id is one live, typed asyncio object."""
