"""The table of commands: each command's module loads when it runs, so that help is there at once."""

import importlib
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from actorhub.core.errors import ActorhubError, ConfigurationError


class Command(msgspec.Struct, frozen=True):
    """One line of `actorhub --help`."""

    name: str
    reference: str
    """`module:command`."""
    help: str


class WrongSettings(click.ClickException):
    """A flag, variable or file has a value that is not allowed: wrong usage."""

    exit_code = 2


class CommandFailed(click.ClickException):
    """The command could not do what it was asked to do; one line says why."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Commands(click.Group):
    """A group that knows its commands' names without importing them, and reports their errors in one line."""

    def __init__(self, *, commands_table: Sequence[Command], **options: Any) -> None:
        super().__init__(**options)
        self._table = {command.name: command for command in commands_table}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        known = self._table.get(cmd_name)
        if known is None:
            return None
        module, _, attribute = known.reference.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(command.name, command.help) for command in self._table.values()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an error of actorhub becomes one line."""
        try:
            return super().invoke(ctx)
        except ActorhubError as error:
            raise CommandFailed(str(error)) from error


def wrong_settings(error: ConfigurationError) -> WrongSettings:
    """Return what ends the command because its settings are wrong."""
    return WrongSettings(" ".join(str(error).split()))
