"""The run: open accounts, send transfers, lose runners in the meantime, and count every cent at the end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Final

import msgspec

from examples.demo.cluster import DemoCluster, Stage, demo_cluster, runner_logs
from examples.demo.screen import Screen, retries_of
from examples.demo.stored import Stored
from examples.payments.books import CHECKS, Books, fresh_books
from examples.payments.driver import Payer
from examples.payments.entities import SCHEMA_VARIABLE, hub
from examples.payments.plan import Plan, make_plan

_HUB: Final = "examples.payments.entities:hub"
_SHOWN: Final = 5

Fault = Callable[[DemoCluster], Awaitable[None]]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    accounts: int = 500
    transfers: int = 20_000
    runners: int = 3
    kills: int = 3
    restarts: int = 1
    """How many runners leave gracefully during the run and are replaced."""
    crash: bool = False
    """Whether Postgres is crashed half-way."""
    in_flight: int = 128
    seed: int = 1
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
        """Run the demo. Return whether every cent is where it should be and all runners left gracefully."""
        settings, screen = self._settings, self._screen
        plan = make_plan(settings.accounts, settings.transfers, settings.seed)
        screen.say(
            "Transfers between accounts as durable messages. Debit and credit are steps of two entities, each with a "
            "row in the bank's own table. Whatever happens, the sum of all balances must not change by a cent.",
            "bold",
        )
        screen.say(
            f"plan: {len(plan.holders):,} accounts, {plan.transfers:,} transfers, of which "
            f"{len(plan.orders) - plan.transfers:,} are sent again with the same key, and {len(plan.forged):,} with "
            f"another amount; {len(plan.closing)} accounts to close"
        )
        stage = Stage(name="payments", hub=_HUB, database_url=settings.database_url, crashes=settings.crash)
        async with runner_logs(stage.name) as logs:
            async with (
                demo_cluster(stage, screen, logs.path) as runners,
                fresh_books(runners.server.url, f"{runners.namespace}_books") as books,
            ):
                runners.environment[SCHEMA_VARIABLE] = books.schema
                await runners.add(settings.runners)
                correct = await self._work(runners, books, plan)
                left = await runners.stop()
            logs.wanted = not (correct and left)
        return correct and left

    async def _work(self, runners: DemoCluster, books: Books, plan: Plan) -> bool:
        stored = Stored(runners.server.url, runners.namespace)
        holders = {holder.account: holder for holder in plan.holders}
        async with hub.connect(database_url=runners.server.url, namespace=runners.namespace) as cluster:
            payer = Payer(cluster, self._settings.in_flight)
            await payer.open(holders)
            self._screen.say(f"{len(holders):,} accounts are open: {_euros(sum(h.cents for h in plan.holders))}")
            start = monotonic()
            await self._drive(payer, runners, plan)
            sent = monotonic() - start
            self._screen.say("all transfers are answered or stored; waiting until no message is left")
            await stored.drained()
            seconds = monotonic() - start
            await payer.collect()
            await payer.forge(plan)
            await books.note(plan.holders, await payer.statements(holders), payer.answers)
        correct = await self._check(books, stored, payer, plan)
        await self._report(books, stored, payer, (sent, seconds), correct=correct)
        return correct

    async def _drive(self, payer: Payer, runners: DemoCluster, plan: Plan) -> None:
        faults = self._faults()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._screen.follow(payer, plan.transfers, "transfers"))
            group.create_task(self._hurt(payer, runners, plan, faults))
            group.create_task(self._close(payer, plan))
            await payer.run(plan)
            following.cancel()

    def _faults(self) -> list[Fault]:
        """Return the faults of the run, in order. The last of several kills is of all runners at once."""
        settings = self._settings
        kills: list[Fault] = [self._kill] * settings.kills
        if settings.kills > 1:
            kills[-1] = self._kill_all
        faults = kills[:1] + [self._restart] * settings.restarts + kills[1:]
        if settings.crash:
            faults.insert(len(faults) // 2, self._crash)
        return faults

    async def _hurt(self, payer: Payer, runners: DemoCluster, plan: Plan, faults: Sequence[Fault]) -> None:
        for number, fault in enumerate(faults, 1):
            await payer.reached(plan.transfers * number // (len(faults) + 1))
            await fault(runners)

    async def _close(self, payer: Payer, plan: Plan) -> None:
        await payer.reached(plan.transfers // 2)
        await payer.close(list(plan.closing))

    async def _kill(self, runners: DemoCluster) -> None:
        runners.kill(runners.serving[0])
        await runners.add()

    async def _kill_all(self, runners: DemoCluster) -> None:
        victims = runners.serving
        for left, victim in reversed(list(enumerate(victims))):
            runners.kill(victim, "" if left else ": no runner is left")
        await runners.add(len(victims))

    async def _restart(self, runners: DemoCluster) -> None:
        await runners.leave(runners.serving[0])
        await runners.add()

    async def _crash(self, runners: DemoCluster) -> None:
        if runners.server.embedded:
            await runners.crash_postgres()
        else:
            self._screen.say("the Postgres of --database is not crashed", "yellow")

    async def _check(self, books: Books, stored: Stored, payer: Payer, plan: Plan) -> bool:
        findings = {check.what: await books.wrong(check) for check in CHECKS}
        findings["every transfer has an answer, and its copies have the same"] = payer.contradictions + (
            [] if len(payer.answers) == plan.transfers else [f"{len(payer.answers):,} of {plan.transfers:,} have one"]
        )
        findings["an id that is used again with another amount is refused"] = (
            []
            if payer.forgeries_refused == len(plan.forged)
            else [f"{payer.forgeries_refused} of {len(plan.forged)} were refused"]
        )
        findings["there are no dead letters"] = await stored.dead_letters()
        for what, wrong in findings.items():
            self._screen.say(f"{'no ' if wrong else 'yes'}  {what}", "bold red" if wrong else "green")
            for line in wrong[:_SHOWN]:
                self._screen.say(f"       {line}", "red")
        return not any(findings.values())

    async def _report(
        self, books: Books, stored: Stored, payer: Payer, times: tuple[float, float], *, correct: bool
    ) -> None:
        sent, seconds = times
        kinds = await books.by_kind()
        bookings = sum(kinds.values())
        outcomes: dict[str, int] = {}
        for _, answer in payer.answers.values():
            outcomes[answer.outcome] = outcomes.get(answer.outcome, 0) + 1
        rows = [
            ("transfers", f"{payer.done:,}: {_counts(outcomes)}"),
            ("messages sent", _counts(payer.sent)),
            ("bookings", f"{bookings:,}: {_counts(kinds)}"),
            ("messages stored", _counts(await stored.by_state())),
            ("seconds", f"{seconds:.1f} ({sent:.1f} to the last answer)"),
            ("transfers per second", f"{payer.done / seconds:,.0f}"),
            ("bookings per second", f"{bookings / seconds:,.0f}"),
            ("calls repeated", retries_of(payer) or "none"),
            ("result", "[bold green]every cent is there[/]" if correct else "[bold red]THE BOOKS ARE WRONG[/]"),
        ]
        self._screen.table("payments", rows)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def _euros(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02d} EUR"
