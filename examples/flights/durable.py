"""The durable run: the records as stored messages, through the loss of two runners and a crash of Postgres."""

import asyncio
from time import monotonic
from typing import Final

import pandas as pd

from examples.demo.cluster import DemoCluster, Stage, demo_cluster, runner_logs
from examples.demo.screen import Screen, retries_of
from examples.demo.stored import Stored
from examples.flights.data import describe, flights_of, load, records_in
from examples.flights.demo import HUB, Plan
from examples.flights.entities import hub
from examples.flights.teller import Teller
from examples.flights.verdict import compare

_FIRST_KILL_AT: Final = 0.25
"""Share of the records after which a runner is killed and replaced."""
_CRASH_AT: Final = 0.5
"""Share of the records after which Postgres is crashed."""
_SECOND_KILL_AT: Final = 0.75


class DurableDemo:
    """One run of a plan with durable messages.

    Args:
        plan: Settings of the run.
        screen: Where to report.
    """

    def __init__(self, plan: Plan, screen: Screen) -> None:
        self._plan = plan
        self._screen = screen

    async def run(self) -> bool:
        """Run the demo. Return whether all entities are correct, no message is dead, and all runners left well."""
        plan, screen = self._plan, self._screen
        screen.say(
            "One entity per aircraft and per airport. Departures from New York in 2013 are told to them as durable "
            "messages, in no order, some of them twice. The result must be equal to what pandas computes.",
            "bold",
        )
        frame = await asyncio.to_thread(load, plan.flights)
        screen.say(describe(frame))
        stage = Stage(name="flights", hub=HUB, database_url=plan.database_url, crashes=plan.faults)
        async with runner_logs(stage.name) as logs:
            async with demo_cluster(stage, screen, logs.path) as runners:
                await runners.add(plan.runners)
                well = await self._work(runners, frame)
                left = await runners.stop()
            logs.wanted = not (well and left)
        return well and left

    async def _work(self, runners: DemoCluster, frame: pd.DataFrame) -> bool:
        stored = Stored(runners.server.url, runners.namespace)
        async with hub.connect(database_url=runners.server.url, namespace=runners.namespace) as cluster:
            teller = Teller(cluster, self._plan.in_flight)
            start = monotonic()
            await self._tell(teller, runners, frame)
            told = monotonic() - start
            self._screen.say(f"all {teller.done:,} records are stored; waiting until no message is left")
            await stored.drained()
            seconds = monotonic() - start
            aircraft = await teller.aircraft(map(str, frame["tailnum"].dropna().unique()))
            airports = await teller.airports(map(str, frame["dest"].unique()))
        equal = compare(self._screen, frame, aircraft, airports)
        dead = await stored.dead_letters()
        for letter in dead:
            self._screen.say(f"dead letter: {letter}", "red")
        states = await stored.by_state()
        self._screen.table(
            "flights, durable",
            [
                ("flights", f"{len(frame):,}"),
                ("records told", f"{teller.done:,}, and {teller.copies:,} of them again with the same key"),
                ("seconds", f"{seconds:.1f} ({told:.1f} until the last was stored)"),
                ("records per second", f"{teller.done / seconds:,.0f} ({teller.done / told:,.0f} stored)"),
                ("calls repeated", retries_of(teller) or "none"),
                ("messages", ", ".join(f"{count:,} {state}" for state, count in states.items())),
                ("result", "[bold green]equal to pandas[/]" if equal else "[bold red]DIFFERENT from pandas[/]"),
            ],
        )
        return equal and not dead

    async def _tell(self, teller: Teller, runners: DemoCluster, frame: pd.DataFrame) -> None:
        records = records_in(frame)
        self._screen.say(f"telling: at most {teller.in_flight} tells in flight")
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._screen.follow(teller, records, "records"))
            if self._plan.faults:
                group.create_task(self._hurt(teller, runners, records))
            await teller.run(flights_of(frame))
            following.cancel()

    async def _hurt(self, teller: Teller, runners: DemoCluster, records: int) -> None:
        """Make one fault after the other, because a runner that is starting needs a Postgres."""
        await teller.reached(int(records * _FIRST_KILL_AT))
        await self._replace(runners)
        await teller.reached(int(records * _CRASH_AT))
        if runners.server.embedded:
            await runners.crash_postgres()
        else:
            self._screen.say("the Postgres of --database is not crashed", "yellow")
        await teller.reached(int(records * _SECOND_KILL_AT))
        await self._replace(runners)

    async def _replace(self, runners: DemoCluster) -> None:
        runners.kill(runners.serving[0])
        await runners.add()
