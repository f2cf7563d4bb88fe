"""The run: start a cluster, push the records through it, lose a runner, gain one, and check every entity."""

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic

import msgspec
import pandas as pd

from examples.flights.check import differences, expected_aircraft, expected_airports
from examples.flights.data import flights_of, load
from examples.flights.database import fresh_namespace, postgres
from examples.flights.driver import Driver, Loss
from examples.flights.entities import hub
from examples.flights.runners import RunnerProcess, Runners, runner_processes
from examples.flights.screen import Screen, retries_of

_SHOWN_DIFFERENCES = 20


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    flights: int | None = None
    """How many records; `None`: all of them."""
    runners: int = 3
    database_url: str | None = None
    """`None`: the embedded Postgres."""
    in_flight: int = 256
    faults: bool = True
    kill_at: float = 0.4
    """Share of the records after which a runner is killed."""
    join_at: float = 0.6
    """Share of the records after which one is added."""


class Demo:
    """One run of a plan.

    Args:
        plan: What to do.
        screen: Where to report.
    """

    def __init__(self, plan: Plan, screen: Screen) -> None:
        self._plan = plan
        self._screen = screen
        self._loss: Loss | None = None
        self._killed: set[int] = set()
        """Numbers of the runners that were killed on purpose."""
        self._names: dict[str, str] = {}
        """What the runners are called, by address."""

    async def run(self) -> bool:
        """Return whether everything was as it should be: all entities equal, all runners left gracefully."""
        self._screen.say(
            "One entity per aircraft and per airport, on real processes and a real Postgres: departures from New York "
            "in 2013 are applied to them, and the result must equal what pandas computes.",
            "bold",
        )
        if self._plan.faults:
            kill, join = f"{self._plan.kill_at:.0%}", f"{self._plan.join_at:.0%}"
            self._screen.say(f"On the way, at {kill}, a runner is killed, and at {join} one is added.")
        frame = await asyncio.to_thread(load, self._plan.flights)
        records = 2 * len(frame) - int(frame["tailnum"].isna().sum())
        self._screen.say(
            f"data: {len(frame):,} flights, {frame['tailnum'].nunique():,} aircraft, "
            f"{frame['dest'].nunique()} destinations: {records:,} records to apply"
        )
        logs = Path(tempfile.mkdtemp(prefix="flights-"))
        keep = False
        try:
            done = await self._run(frame, records, logs)
            keep = not done
            return done
        except ExceptionGroup:
            keep = True
            raise
        finally:
            if not keep:
                shutil.rmtree(logs)

    async def _run(self, frame: pd.DataFrame, records: int, logs: Path) -> bool:
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(postgres(self._plan.database_url))
            namespace = await stack.enter_async_context(fresh_namespace(url))
            self._screen.say(
                f"Postgres: {'embedded' if self._plan.database_url is None else 'given'}, "
                f"namespace {namespace}; the runners' logs: {logs}"
            )
            arguments = ("--database", url, "--namespace", namespace)
            runners = await stack.enter_async_context(runner_processes(arguments, logs))
            await self._start_runners(runners)
            async with hub.connect(database_url=url, namespace=namespace) as cluster:
                driver = Driver(cluster, self._plan.in_flight)
                seconds = await self._drive(driver, runners, frame, records)
                equal = await self._check(driver, frame)
            left = await self._stop(runners)
        self._report(driver, len(frame), seconds, equal=equal)
        return equal and left

    async def _start_runners(self, runners: Runners) -> None:
        started = [await runners.start() for _ in range(self._plan.runners)]
        for runner in started:
            await self._ready(runner)

    async def _drive(self, driver: Driver, runners: Runners, frame: pd.DataFrame, records: int) -> float:
        """Return how many seconds it took to apply all records."""
        start = monotonic()
        self._screen.say(f"driving: at most {self._plan.in_flight} calls under way, those of one entity in order")
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._screen.follow(driver, records))
            if self._plan.faults:
                group.create_task(self._lose(driver, runners, int(records * self._plan.kill_at)))
                group.create_task(self._gain(driver, runners, int(records * self._plan.join_at)))
            await driver.run(flights_of(frame))
            seconds = monotonic() - start
            following.cancel()
        self._screen.say(f"all {driver.done:,} records are applied, in {driver.calls:,} calls")
        return seconds

    async def _lose(self, driver: Driver, runners: Runners, records: int) -> None:
        await driver.reached(records)
        homes = driver.homes()
        victim = max(runners.processes, key=lambda runner: homes[runner.address])
        self._killed.add(victim.number)
        victim.kill()
        loss = self._loss = driver.lost(victim.address, self._answered)
        self._screen.say(
            f"killed {victim.name} (pid {victim.pid}, SIGKILL): {loss.entities:,} of the entities lived there", "red"
        )

    def _answered(self, seconds: float) -> None:
        self._screen.say(f"the first of them answered from another runner {seconds:.2f} s later", "green")

    async def _gain(self, driver: Driver, runners: Runners, records: int) -> None:
        await driver.reached(records)
        self._screen.say("adding a runner: shards move to it", "yellow")
        await self._ready(await runners.start())

    async def _ready(self, runner: RunnerProcess) -> None:
        await runner.ready()
        self._names[runner.address] = runner.name
        self._screen.say(f"{runner.name} is ready: pid {runner.pid}, {runner.address}", "green")

    async def _check(self, driver: Driver, frame: pd.DataFrame) -> bool:
        self._screen.say("reading every entity back, and computing the same by pandas")
        aircraft, airports = await driver.aircraft(), await driver.airports()
        found = differences(expected_aircraft(frame), aircraft) + differences(expected_airports(frame), airports)
        if not found:
            equal = f"equal: {len(aircraft):,} aircraft and {len(airports)} airports, in every field"
            self._screen.say(equal, "bold green")
        for line in found[:_SHOWN_DIFFERENCES]:
            self._screen.say(line, "red")
        if len(found) > _SHOWN_DIFFERENCES:
            self._screen.say(f"and {len(found) - _SHOWN_DIFFERENCES} more differences", "red")
        return not found

    async def _stop(self, runners: Runners) -> bool:
        """Return whether every runner that was not killed left gracefully."""
        statuses = await runners.stop()
        wrong = [
            f"{runner.name} left with status {status}: see its log"
            for runner, status in statuses.items()
            if status != 0 and runner.number not in self._killed
        ]
        for line in wrong:
            self._screen.say(line, "red")
        if not wrong:
            self._screen.say(f"{len(statuses) - len(self._killed)} runners left on SIGTERM with status 0")
        return not wrong

    def _report(self, driver: Driver, flights: int, seconds: float, *, equal: bool) -> None:
        rows = [
            ("flights", f"{flights:,}"),
            ("records applied", f"{driver.done:,}"),
            ("calls", f"{driver.calls:,}"),
            ("seconds", f"{seconds:.1f}"),
            ("calls per second", f"{driver.calls / seconds:,.0f}"),
            ("records per second", f"{driver.done / seconds:,.0f}"),
            ("records by runner", ", ".join(sorted(f"{self._names[at]}: {n:,}" for at, n in driver.by_runner.items()))),
            ("sent again", retries_of(driver) or "none"),
            ("applied before", f"{driver.repeated} records of these (recognised by their number, applied once)"),
        ]
        if self._loss is not None:
            first = self._loss.first
            rows += [
                ("stall: first answer", "none was due" if first is None else f"{first:.2f} s after the kill"),
                ("stall: slowest call", f"{self._loss.longest:.2f} s"),
            ]
        rows.append(("result", "[bold green]equal to pandas[/]" if equal else "[bold red]DIFFERENT from pandas[/]"))
        self._screen.table("flights", rows)
