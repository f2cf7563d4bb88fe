"""How commands print: tables for people, JSON for programs."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, cast

import click
import msgspec
from rich.console import Console
from rich.table import Table

Row = dict[str, object]

_PIPE_WIDTH: Final = 200
"""Columns of a table that does not go to a terminal."""
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")


def show_rows(rows: Sequence[Row], *, as_json: bool, leave_out: Sequence[str]) -> None:
    """Print a table without the columns `leave_out`, or a JSON array with all of them."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    if not rows:
        click.echo("0 found")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    names = [name for name in rows[0] if name not in leave_out]
    table = Table(caption=f"{len(rows)} found", caption_justify="left")
    for name in names:
        is_number = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in names))
    console.print(table, markup=False)


def iso_time(seconds: float) -> str:
    """Return seconds since the Unix epoch as ISO 8601 in UTC, with milliseconds; the last year of all is 9999."""
    # A database can hold times that no `datetime` can, up to infinity.
    moment = _EPOCH + timedelta(seconds=min(max(seconds, _FIRST), _LAST))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def harmless(text: str) -> str:
    """Return `text` with control characters made visible, which a terminal could obey; newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[object]", value)))
    return "-" if value is None else harmless(str(value))
