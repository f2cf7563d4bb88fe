"""The run: days of flights, a job in steps, a leader that is lost at every boundary, and pandas at the end."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import median
from time import monotonic
from typing import Final

import msgspec
import pandas as pd

from actorhub import Cluster
from examples.demo.cluster import DemoCluster, Stage, demo_cluster, runner_logs
from examples.demo.screen import Screen
from examples.demo.sending import Sender
from examples.demo.stored import Stored
from examples.flights.check import differences
from examples.nightly.books import CHECKS, Books, fresh_books
from examples.nightly.data import expected_days, expected_totals, load_days, rows_of
from examples.nightly.entities import FIRST_DAY, GATE_VARIABLE, SCHEMA_VARIABLE, Airport, Nightly, Totals, hub
from examples.nightly.gate import BOUNDARIES, STEPS, gate_keeper
from examples.nightly.strikes import Strikes, planned_strikes

_HUB: Final = "examples.nightly.entities:hub"
_LOOK: Final = 0.1
_IN_FLIGHT: Final = 32
_SHOWN: Final = 5


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    days: int = 14
    rounds: int = 2
    """On how many pairs of days the leader is lost, at every boundary once by a kill and once by a move."""
    runners: int = 3
    database_url: str | None = None
    """URL of the Postgres, or `None` for an embedded one."""


class Demo:
    """One run.

    Args:
        settings: Settings of the run.
        screen: Where to report.
    """

    def __init__(self, settings: Settings, screen: Screen) -> None:
        self._settings = settings
        self._screen = screen

    async def run(self) -> bool:
        """Run the demo. Return whether the result is equal to pandas, steps took effect once, and runners left well."""
        settings, screen = self._settings, self._screen
        screen.say(
            "A nightly job of which the cluster keeps exactly one alive. It rolls up each day's flights by airport, in "
            "four steps. Its leader is killed or moved at every boundary, which must not affect the result.",
            "bold",
        )
        frame = await asyncio.to_thread(load_days, settings.days)
        plan = planned_strikes(settings.rounds)
        screen.say(
            f"data: {settings.days} days, {len(frame):,} flights to {frame['dest'].nunique()} airports; "
            f"{len(plan)} strikes: {len(BOUNDARIES)} boundaries on {2 * settings.rounds} days, kill and move in turn"
        )
        stage = Stage(name="nightly", hub=_HUB, database_url=settings.database_url)
        async with runner_logs(stage.name) as logs:
            async with (
                demo_cluster(stage, screen, logs.path) as runners,
                fresh_books(runners.server.url, f"{runners.namespace}_books") as books,
            ):
                await books.fill(rows_of(frame))
                strikes = Strikes(runners, plan)
                async with gate_keeper(strikes.receive) as gate:
                    runners.environment.update({SCHEMA_VARIABLE: books.schema, GATE_VARIABLE: gate})
                    await runners.add(settings.runners)
                    correct = await self._work(runners, books, strikes, frame)
                    left = await runners.stop()
            logs.wanted = not (correct and left)
        return correct and left

    async def _work(self, runners: DemoCluster, books: Books, strikes: Strikes, frame: pd.DataFrame) -> bool:
        stored = Stored(runners.server.url, runners.namespace)
        sender = Sender(_IN_FLIGHT)
        async with hub.connect(database_url=runners.server.url, namespace=runners.namespace) as cluster:
            start = monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(strikes.run())
                await self._all_days(cluster, sender, strikes)
                strikes.finish()
            self._screen.say("all days are rolled up; waiting until no message to an airport is left")
            await stored.drained(entity_type="airport")
            seconds = monotonic() - start
            airports = cluster.client(Airport)
            totals = await sender.results({code: airports(code).totals for code in map(str, frame["dest"].unique())})
        correct = await self._check(books, stored, frame, totals)
        await self._report(books, strikes, frame, seconds, correct=correct)
        return correct

    async def _all_days(self, cluster: Cluster, sender: Sender, strikes: Strikes) -> None:
        """Return when every day is rolled up and every strike has been made."""
        end = FIRST_DAY + timedelta(days=self._settings.days)
        nightly = cluster.singleton(Nightly)
        while strikes.left or (await sender.until_done(nightly.progress)).day < end:  # noqa: ASYNC110 - a question
            await asyncio.sleep(_LOOK)

    async def _check(self, books: Books, stored: Stored, frame: pd.DataFrame, totals: Mapping[str, Totals]) -> bool:
        findings: dict[str, Sequence[str]] = {check.what: await books.wrong(check) for check in CHECKS}
        findings["the table of daily roll-ups is equal to pandas"] = differences(
            expected_days(frame), await books.days()
        )
        findings["the totals of the airports are equal to pandas"] = differences(expected_totals(frame), totals)
        findings["there are no dead letters"] = await stored.dead_letters()
        for what, wrong in findings.items():
            self._screen.say(f"{'no ' if wrong else 'yes'}  {what}", "bold red" if wrong else "green")
            for line in wrong[:_SHOWN]:
                self._screen.say(f"       {line}", "red")
        return not any(findings.values())

    async def _report(
        self, books: Books, strikes: Strikes, frame: pd.DataFrame, seconds: float, *, correct: bool
    ) -> None:
        effects = await books.effects()
        rows = [
            ("days", f"{self._settings.days}: {len(frame):,} flights, {len(await books.days()):,} rows in the roll-up"),
            ("strikes", f"{strikes.done['kill']} kills, {strikes.done['move']} moves"),
            *((f"step {step}", f"ran {strikes.runs[step]} times, took effect {effects[step]} times") for step in STEPS),
            ("next leader after a kill", _times(strikes.takeovers["kill"])),
            ("next leader after a move", _times(strikes.takeovers["move"])),
            ("seconds", f"{seconds:.1f}"),
            ("result", "[bold green]each step once, equal to pandas[/]" if correct else "[bold red]WRONG[/]"),
        ]
        self._screen.table("nightly", rows)


def _times(seconds: Sequence[float]) -> str:
    """Describe how long takeovers took."""
    return f"median {median(seconds):.2f} s, longest {max(seconds):.2f} s" if seconds else "none"
