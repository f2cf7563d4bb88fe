"""The table of commands: each command's module loads when it runs, so that help is there at once."""

import importlib
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from actorhub.core.errors import ActorhubError, ConfigurationError
from actorhub.core.texts import encodable


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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what no command can use, wherever it stands in the line; click does the rest."""
        for before, argument in zip(["", *args], args, strict=False):
            check_text(before, argument, ctx)
        return super().parse_args(ctx, args)

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


def check_text(before: str, argument: str, ctx: click.Context) -> None:
    """Check one word of a command line; `before` is the word before it.

    An empty one is a variable without a value: to take it as if it were left out would mean no key, or every message.

    Raises:
        click.UsageError: It is empty, or UTF-8 cannot hold it.
    """
    option, is_option, value = argument.partition("=")
    if not is_option or not option.startswith("--"):
        option, value = before if before.startswith("--") else "", argument
    if not value:
        raise click.UsageError(f"{option or 'an argument'} is empty: give it a value, or leave it out", ctx)
    if (text := encodable(argument)) != argument:
        raise click.UsageError(f"'{text[:80]}' is not UTF-8 text", ctx)


def wrong_settings(error: ConfigurationError) -> WrongSettings:
    """Return what ends the command because its settings are wrong."""
    return WrongSettings(" ".join(str(error).split()))
