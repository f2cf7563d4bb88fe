"""`actorhub --help`, and the help of each command."""

import importlib
import resource

import click
import pytest

from actorhub.cli import COMMANDS
from actorhub.cli.commands import Command
from actorhub.core.config import SETTINGS
from actorhub.hub import VERSION
from tests.support.processes import Processes

HEAVY = "asyncpg grpc google.protobuf rich"


async def test_help_lists_every_command_quickly(commands: Processes) -> None:
    """The table of commands is there in well under the time in which a person notices."""
    commands.are_fresh = True
    fastest = 9.0
    for _ in range(3):
        before = _seconds_of_children()
        shown = await commands.run("--help")
        fastest = min(fastest, _seconds_of_children() - before)
        assert shown.code == 0
        assert all(f"  {command.name} " in shown.out for command in COMMANDS)
    assert 0.0 < fastest < 1.0


def _seconds_of_children() -> float:
    """What processes that have ended took of a processor: whatever else the machine does has no part in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_loads_no_heavy_module(tmp_path: object) -> None:
    """Neither gRPC nor the Postgres driver is imported to print help or a wrong setting."""
    import subprocess
    import sys

    code = f"import sys, actorhub.cli, actorhub.cli.serve; print([m for m in {HEAVY.split()!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_table_says_what_the_command_says_of_itself(command: Command) -> None:
    """Each command's own help begins with its line in the table."""
    module, _, name = command.reference.partition(":")
    found: click.Command = getattr(importlib.import_module(module), name)
    assert found.name == command.name
    first, *_ = (found.help or "").split("\n\n")
    assert " ".join(first.split()).startswith(command.help.removesuffix("."))


async def test_serve_help_shows_every_setting_with_its_default(commands: Processes) -> None:
    """Flag, environment variable and default of each setting are told."""
    shown = " ".join((await commands.run("serve", "--help")).out.split())
    for name, setting in SETTINGS.items():
        if name not in {"admin", "gateway"}:
            assert setting.flag in shown
            assert setting.env in shown
    assert "[default: 15s; ACTORHUB_GRACE]" in shown
    assert "[default: 300; ACTORHUB_SHARDS_PER_GROUP]" in shown


async def test_the_version_is_printed(commands: Processes) -> None:
    """One line with name and version."""
    assert (await commands.run("--version")).out == f"actorhub {VERSION}\n"


async def test_migrate_prints_sql_without_a_database(commands: Processes) -> None:
    """--print-sql writes one script for the namespace and changes nothing."""
    shown = await commands.run("migrate", "--print-sql", "--namespace", "shop")
    assert shown.code == 0
    assert shown.out.startswith("begin;\n")
    assert 'create schema "shop";' in shown.out
    assert not (commands.directory / ".actorhub").exists()


async def test_migrate_brings_a_database_up_to_date(processes: Processes) -> None:
    """The first run applies what is missing, the second nothing."""
    assert "is now up to date: " in (await processes.run("migrate")).out
    assert (await processes.run("migrate")).out.rstrip().endswith("is up to date")
