"""The run: start a cluster, send the records, lose a runner, add one, and check every entity."""

import asyncio
from time import monotonic
from typing import Final

import msgspec
import pandas as pd

from examples.demo.cluster import DemoCluster, Stage, demo_cluster, runner_logs
from examples.demo.screen import Screen, retries_of
from examples.flights.data import describe, flights_of, load, records_in
from examples.flights.driver import Driver, Loss
from examples.flights.entities import hub
from examples.flights.verdict import compare

HUB: Final = "examples.flights.entities:hub"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    flights: int | None = None
    """Number of records, or `None` for all of them."""
    runners: int = 3
    database_url: str | None = None
    """URL of the Postgres, or `None` for the embedded one."""
    in_flight: int = 256
    faults: bool = True
    kill_at: float = 0.4
    """Share of the records after which a runner is killed."""
    join_at: float = 0.6
    """Share of the records after which a runner is added."""


class Demo:
    """One run of a plan.

    Args:
        plan: Settings of the run.
        screen: Where to report.
    """

    def __init__(self, plan: Plan, screen: Screen) -> None:
        self._plan = plan
        self._screen = screen
        self._loss: Loss | None = None
        self._names: dict[str, str] = {}
        """Names of the runners by address."""

    async def run(self) -> bool:
        """Run the demo. Return whether all entities are correct and all runners left gracefully."""
        self._screen.say(
            "One entity per aircraft and per airport, with real processes and a real Postgres. Departures from New "
            "York in 2013 are applied to them, and the result must be equal to what pandas computes.",
            "bold",
        )
        if self._plan.faults:
            kill, join = f"{self._plan.kill_at:.0%}", f"{self._plan.join_at:.0%}"
            self._screen.say(f"At {kill} of the records a runner is killed, and at {join} a runner is added.")
        frame = await asyncio.to_thread(load, self._plan.flights)
        records = records_in(frame)
        self._screen.say(describe(frame))
        stage = Stage(name="flights", hub=HUB, database_url=self._plan.database_url)
        async with runner_logs(stage.name) as logs:
            async with demo_cluster(stage, self._screen, logs.path) as runners:
                await runners.add(self._plan.runners)
                async with hub.connect(database_url=runners.server.url, namespace=runners.namespace) as cluster:
                    driver = Driver(cluster, self._plan.in_flight)
                    seconds = await self._drive(driver, runners, frame, records)
                    equal = compare(self._screen, frame, await driver.aircraft(), await driver.airports())
                left = await runners.stop()
                self._names = runners.names
            logs.wanted = not (equal and left)
        self._report(driver, len(frame), seconds, equal=equal)
        return equal and left

    async def _drive(self, driver: Driver, runners: DemoCluster, frame: pd.DataFrame, records: int) -> float:
        """Apply all records. Return the seconds that it took."""
        start = monotonic()
        self._screen.say(f"driving: at most {self._plan.in_flight} calls in flight, those of one entity in order")
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._screen.follow(driver, records, "records"))
            if self._plan.faults:
                group.create_task(self._lose(driver, runners, int(records * self._plan.kill_at)))
                group.create_task(self._gain(driver, runners, int(records * self._plan.join_at)))
            await driver.run(flights_of(frame))
            seconds = monotonic() - start
            following.cancel()
        self._screen.say(f"all {driver.done:,} records are applied, in {driver.calls:,} calls")
        return seconds

    async def _lose(self, driver: Driver, runners: DemoCluster, records: int) -> None:
        await driver.reached(records)
        homes = driver.homes()
        victim = max(runners.serving, key=lambda runner: homes[runner.address])
        loss = self._loss = driver.lost(victim.address, self._answered)
        runners.kill(victim, f": {loss.entities:,} of the entities lived there")

    def _answered(self, seconds: float) -> None:
        self._screen.say(f"the first of them answered from another runner {seconds:.2f} s later", "green")

    async def _gain(self, driver: Driver, runners: DemoCluster, records: int) -> None:
        await driver.reached(records)
        self._screen.say("adding a runner: shards move to it", "yellow")
        await runners.add()

    def _report(self, driver: Driver, flights: int, seconds: float, *, equal: bool) -> None:
        rows = [
            ("flights", f"{flights:,}"),
            ("records applied", f"{driver.done:,}"),
            ("calls", f"{driver.calls:,}"),
            ("seconds", f"{seconds:.1f}"),
            ("calls per second", f"{driver.calls / seconds:,.0f}"),
            ("records per second", f"{driver.done / seconds:,.0f}"),
            ("records by runner", ", ".join(sorted(f"{self._names[at]}: {n:,}" for at, n in driver.by_runner.items()))),
            ("calls repeated", retries_of(driver) or "none"),
            ("applied before", f"{driver.repeated} records in these (recognised by their number, applied once)"),
        ]
        if self._loss is not None:
            first = self._loss.first
            rows += [
                ("stall: first answer", "none was due" if first is None else f"{first:.2f} s after the kill"),
                ("stall: slowest call", f"{self._loss.longest:.2f} s"),
            ]
        rows.append(("result", "[bold green]equal to pandas[/]" if equal else "[bold red]DIFFERENT from pandas[/]"))
        self._screen.table("flights", rows)
