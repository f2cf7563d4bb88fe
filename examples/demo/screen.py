"""The output of a demo: plain lines, and on a terminal a live progress bar."""

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples.demo.sending import Sender

_REDRAW_SECONDS: Final = 0.1
_LINE_SECONDS: Final = 5.0


class Screen:
    """Prints lines that begin with the time since the start.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = monotonic()

    def say(self, text: str, style: str = "") -> None:
        """Print a line."""
        self._console.print(
            f"[dim]{monotonic() - self._start:6.1f} s[/]  {f'[{style}]{escape(text)}[/]' if style else escape(text)}",
            highlight=False,
            soft_wrap=True,
        )

    async def follow(self, sender: Sender, total: int, what: str) -> None:
        """Show how much of the total is done, until cancelled."""
        if self._console.is_terminal:
            await self._draw(sender, total, what)
        else:
            await self._list(sender, total, what)

    def table(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Print a table with two columns."""
        table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
        table.add_column(style="cyan")
        table.add_column()
        for name, value in rows:
            table.add_row(name, value)
        self._console.print(table)

    async def _draw(self, sender: Sender, total: int, what: str) -> None:
        columns = (
            TextColumn(f"  {what}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[retries]} sent again"),
        )
        with Progress(*columns, console=self._console, auto_refresh=False) as progress:
            bar = progress.add_task("", total=total, rate="", retries=0)
            rate = Rate(sender)
            try:
                while True:
                    retries = sender.retries.total()
                    progress.update(bar, completed=sender.done, rate=f"{rate():,.0f}/s", retries=retries)
                    progress.refresh()
                    await asyncio.sleep(_REDRAW_SECONDS)
            finally:
                progress.update(bar, completed=sender.done)

    async def _list(self, sender: Sender, total: int, what: str) -> None:
        rate = Rate(sender)
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            done = f"{sender.done:>9,} of {total:,} {what} ({sender.done / total:.0%}), {rate():,.0f}/s"
            retries = retries_of(sender)
            self.say(f"{done}, {retries}" if retries else done)


class Rate:
    """Units per second over the last few seconds.

    Args:
        sender: Who does them.
    """

    _WINDOW = 3.0

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._points = [(monotonic(), sender.done)]

    def __call__(self) -> float:
        """Return the present rate."""
        now = monotonic()
        self._points.append((now, self._sender.done))
        while len(self._points) > 2 and self._points[1][0] < now - self._WINDOW:
            del self._points[0]
        then, done = self._points[0]
        return (self._sender.done - done) / max(now - then, 1e-9)


def retries_of(sender: Sender) -> str:
    """Return the number of retries by error, as text, or an empty text without retries."""
    total = sender.retries.total()
    if total == 0:
        return ""
    by_error = "; ".join(f"{error}: {count}" for error, count in sender.retries.most_common())
    return f"{total} calls sent again ({by_error})"
