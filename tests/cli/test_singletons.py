"""`actorhub singletons`, `schedules`, `complete` and `fail`: singletons and deferred values at the prompt."""

import asyncio
import re

import msgspec

from tests.support.processes import ActorhubProcess, Finished, Processes

HUB = "tests.ops.clerks:hub"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
Row = dict[str, object]


class Prompt:
    """Commands to one runner."""

    def __init__(self, processes: Processes, runner: ActorhubProcess) -> None:
        self._processes = processes
        self._runner = runner

    async def run(self, *arguments: str) -> Finished:
        """Run a command to its end, whatever comes of it."""
        return await self._processes.run(*arguments, "--admin", self._runner.address)

    async def out(self, *arguments: str) -> str:
        """Run a command that succeeds, and return what it printed."""
        finished = await self.run(*arguments)
        assert finished.code == 0, finished.err
        return finished.out.strip()

    async def rows(self, *arguments: str) -> list[Row]:
        """Return a list's rows."""
        return msgspec.json.decode(await self.out(*arguments, "--json"), type=list[Row])

    async def schedule(self, name: str) -> Row:
        """Return one of the clerk's schedules."""
        return next(row for row in await self.rows("schedules", "list", "clerk") if row["name"] == name)

    async def planned(self, name: str) -> Row:
        """Return one of the clerk's schedules, once its next fire time is planned."""
        async with asyncio.timeout(20):
            while (row := await self.schedule(name))["next_at"] is None:
                await asyncio.sleep(0.05)
        return row

    async def refused(self, *arguments: str, code: int, text: str) -> None:
        """Run a command that fails with one line that holds `text`."""
        finished = await self.run(*arguments)
        assert (finished.code, finished.out) == (code, ""), finished
        assert text in finished.err
        assert "Traceback" not in finished.err
        assert sum("Error: " in line for line in finished.err.splitlines()) == 1


async def _prompt(processes: Processes) -> Prompt:
    """Return a prompt at a runner whose clerk's schedules are planned."""
    prompt = Prompt(processes, await processes.serve(reference=HUB))
    async with asyncio.timeout(20):
        while sum(row["next_at"] is not None for row in await prompt.rows("schedules", "list")) < 2:
            await asyncio.sleep(0.05)
    return prompt


async def test_singletons_are_listed_with_their_leader_and_what_they_did(processes: Processes) -> None:
    """The table has what matters, JSON has all of it with the schedules, and times are in UTC."""
    prompt = await _prompt(processes)
    message_id = await prompt.out("schedules", "run-now", "clerk.tick")
    assert await prompt.out("reply", message_id) == "1"
    (clerk,) = await prompt.rows("singletons")
    assert (clerk["singleton"], clerk["state"], clerk["epoch"]) == ("clerk", "leading", 1)
    assert TIME.fullmatch(str(clerk["since"]))
    assert (clerk["last_error"], clerk["state_errors"], clerk["main_loop"], clerk["state_ttl"]) == (None, 0, None, None)
    schedules = msgspec.convert(clerk["schedules"], list[Row])
    assert [schedule["name"] for schedule in schedules] == ["tick", "tick-2"]
    table = await prompt.out("singletons")
    assert f"│ clerk     │ leading │ {clerk['leader']} " in table
    for column in ("epoch", "since", "executions", "last execution", "last duration", "last error"):
        assert column in table


async def test_schedules_are_listed_and_chosen_by_singleton(processes: Processes) -> None:
    """Expression, time zone, next fire time and counts of each."""
    prompt = await _prompt(processes)
    rows = await prompt.rows("schedules", "list")
    assert rows == await prompt.rows("schedules", "list", "clerk")
    first, second = rows
    assert (first["name"], first["expression"], first["timezone"]) == ("tick", "0 0 1 1 *", "Europe/Berlin")
    assert re.fullmatch(r"\d{4}-12-31T23:00:00\.000Z", str(first["next_at"]))
    assert re.fullmatch(r"\d{4}-07-01T12:00:00\.000Z", str(second["next_at"]))
    assert (first["paused"], first["runs"], first["last_at"], first["last_skip"]) == (False, 0, None, None)
    assert "│ clerk     │ tick-2 │ 0 12 1 7 * │ UTC           │ active │" in await prompt.out("schedules", "list")


async def test_a_schedule_is_paused_set_reset_and_resumed(processes: Processes) -> None:
    """Each command says how the schedule is now, and the list shows it; two words name it, or one."""
    prompt = await _prompt(processes)
    paused = await prompt.out("schedules", "pause", "clerk", "tick")
    assert paused == "clerk.tick is paused; it is set to 0 0 1 1 * in Europe/Berlin"
    row = await prompt.schedule("tick")
    assert (row["paused"], row["next_at"]) == (True, None)
    resumed = await prompt.out("schedules", "resume", "clerk.tick")
    assert resumed == "clerk.tick is set to 0 0 1 1 * in Europe/Berlin"
    assert str((await prompt.planned("tick"))["next_at"]).endswith("-12-31T23:00:00.000Z")
    changed = await prompt.out("schedules", "set", "clerk", "tick", "--expression", "0 6 1 1 *", "--timezone", "UTC")
    assert changed == "clerk.tick is set to 0 6 1 1 * in UTC"
    assert str((await prompt.planned("tick"))["next_at"]).endswith("-01-01T06:00:00.000Z")
    reset = msgspec.json.decode(await prompt.out("schedules", "reset", "clerk.tick", "--json"), type=Row)
    assert (reset["expression"], reset["timezone"], reset["edited"]) == ("0 0 1 1 *", "Europe/Berlin", False)


async def test_a_deferred_value_is_completed_or_failed_once(processes: Processes) -> None:
    """The value is JSON, standard input is not needed, and a second outcome ends with code 1."""
    prompt = await _prompt(processes)
    for name, command, expected in (("ada", ("complete", "[1,2]"), "[1,2]"), ("bob", ("complete",), "null")):
        message_id = await prompt.out("tell", "requests", name, "approved")
        token = await _token(prompt, name)
        assert await prompt.out(command[0], token, *command[1:]) == "the deferred value has its outcome"
        await prompt.refused("fail", token, "too late", code=1, text="already has another outcome")
        await prompt.out("call", "requests", name, "finish")
        assert await prompt.out("reply", message_id) == expected
    message_id = await prompt.out("tell", "requests", "eve", "approved")
    token = await _token(prompt, "eve")
    assert msgspec.json.decode(await prompt.out("fail", token, "denied", "--json")) == {"completed": True}
    await prompt.out("call", "requests", "eve", "finish")
    await prompt.refused("reply", message_id, code=1, text="denied")


async def _token(prompt: Prompt, name: str) -> str:
    async with asyncio.timeout(20):
        while not (token := msgspec.json.decode(await prompt.out("call", "requests", name, "token"), type=str)):
            await asyncio.sleep(0.05)
    return token


async def test_wrong_names_and_values_of_singletons_are_explained(processes: Processes) -> None:
    """Unknown singletons and schedules, half a name, nothing to set, bad expressions, zones, tokens and JSON."""
    prompt = await _prompt(processes)
    await prompt.refused("schedules", "list", "x", code=1, text="there is no singleton 'x': these exist: clerk")
    for command in ("pause", "resume", "reset", "run-now"):
        await prompt.refused("schedules", command, "clerk", "tock", code=1, text="it has tick, tick-2")
        await prompt.refused("schedules", command, "clerk", code=2, text="as SINGLETON NAME or SINGLETON.NAME")
    set_tick = ("schedules", "set", "clerk", "tick")
    await prompt.refused(*set_tick, code=2, text="say what to set: --expression, --timezone or both")
    await prompt.refused(*set_tick, "--expression", "61 * * * *", code=1, text="schedule clerk.tick: ")
    await prompt.refused(
        *set_tick, "--timezone", "Mars", code=1, text="schedule clerk.tick: timezone='Mars' is unknown"
    )
    await prompt.refused("schedules", "halt", code=2, text="No such command 'halt'")
    await prompt.refused("complete", "x", "1", code=1, text="Error: MalformedMessage: ")
    await prompt.refused("complete", "x", "{", code=1, text="Error: MalformedMessage: value: ")
    await prompt.refused("fail", "x", code=2, text="Missing argument 'REASON'")


async def test_help_lists_what_can_be_done_with_schedules(commands: Processes) -> None:
    """Each command of the group has a line that is not cut off."""
    shown = await commands.run("schedules", "--help")
    assert shown.code == 0
    listed = shown.out.partition("Commands:")[2]
    for command in ("list", "pause", "resume", "set", "reset", "run-now"):
        assert f"\n  {command} " in listed
    assert "..." not in listed
