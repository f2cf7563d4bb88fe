"""`actorhub messages`, `dead-letters`, `retry`, `purge`, `cancel`, `reply`, `tell`: durable messages at the prompt."""

import asyncio
import os
import pty
import re
import select
import sys
from datetime import UTC, datetime, timedelta

import msgspec

from actorhub.core.clock import SystemClock
from tests.support.processes import ActorhubProcess, Finished, Processes

HUB = "tests.ops.durable_shop:hub"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Prompt:
    """Commands to one runner."""

    def __init__(self, processes: Processes, runner: ActorhubProcess) -> None:
        self.processes = processes
        self.runner = runner

    async def run(self, *arguments: str) -> Finished:
        """Run a command to its end, whatever comes of it."""
        return await self.processes.run(*arguments, "--admin", self.runner.address)

    async def out(self, *arguments: str) -> str:
        """Run a command that succeeds, and return what it printed."""
        finished = await self.run(*arguments)
        assert finished.code == 0, finished.err
        return finished.out.strip()

    async def rows(self, *arguments: str) -> list[dict[str, object]]:
        """Return a list's rows."""
        return msgspec.json.decode(await self.out(*arguments, "--json"), type=list[dict[str, object]])

    async def ids(self, *arguments: str) -> list[object]:
        """Return the ids in a list."""
        return [row["message_id"] for row in await self.rows(*arguments)]

    async def dead(self, *names: str) -> list[str]:
        """Make one dead letter for each entity."""
        told = [await self.out("tell", "accounts", name, "fragile", '{"text":"tea"}') for name in names]
        while len(await self.ids("dead-letters")) < len(names):
            await asyncio.sleep(0.05)
        return told

    async def refused(self, *arguments: str, code: int, text: str) -> None:
        """Run a command that fails with one line that holds `text`."""
        finished = await self.run(*arguments)
        assert (finished.code, finished.out) == (code, ""), finished
        assert text in finished.err
        assert "Traceback" not in finished.err


async def _prompt(processes: Processes) -> Prompt:
    return Prompt(processes, await processes.serve(reference=HUB))


async def test_messages_are_listed_by_filters_and_shown_in_detail(processes: Processes) -> None:
    """JSON rows have ids as text and times in UTC, each filter chooses, and one message is told about in full."""
    prompt = await _prompt(processes)
    booked = await prompt.out("tell", "accounts", "ada", "book", '{"amount":5}', "--key", "b-1")
    later = await prompt.out("tell", "accounts", "ada", "book", '{"amount":7,"text":"rent"}', "--in", "2h")
    assert await prompt.out("reply", booked) == "5"
    rows = await prompt.rows("messages")
    assert [row["message_id"] for row in rows] == [booked, later]
    done, scheduled = rows
    assert (done["state"], done["key"], done["attempts"], done["deliver_at"]) == ("done", "b-1", 1, None)
    assert (scheduled["state"], scheduled["finished_at"], scheduled["error"]) == ("scheduled", None, None)
    for value in (done["created_at"], done["finished_at"], done["expires_at"], scheduled["deliver_at"]):
        assert TIME.fullmatch(str(value))
    assert await prompt.ids("messages", "--state", "scheduled", "--type", "accounts", "--id", "ada") == [later]
    assert await prompt.ids("messages", "--state", "scheduled", "--state", "done") == [booked, later]
    assert await prompt.ids("messages", "--key", "b-1", "--handler", "book", "--shard", str(done["shard"])) == [booked]
    assert await prompt.ids("messages", "--older-than", "1h") == []
    limited = await prompt.run("messages", "--limit", "1", "--json")
    assert [row["message_id"] for row in limited.json] == [booked]
    assert "there are more than these 1" in limited.err
    table = await prompt.out("messages")
    assert f"│ {later} │ scheduled │ accounts " in table
    detail = msgspec.json.decode(await prompt.out("messages", later, "--json"))
    assert detail["arguments"] == {"amount": 7, "text": "rent"}
    assert (detail["reply"], detail["history"], detail["headers"]) == (None, [], {})
    assert msgspec.json.decode(await prompt.out("messages", booked, "--json"))["reply"] == {"value": 5}
    shown = await prompt.out("messages", later)
    due = scheduled["deliver_at"]
    assert f"message     {later}\nstate       scheduled\ndetail      due {due}\nentity      accounts/ada\n" in shown
    assert '{"amount":7,"text":"rent"}' in shown


async def test_what_runs_waits_or_backs_off_is_told_apart(processes: Processes) -> None:
    """Lists and details say since and until when, in which attempt and where; the token that is shown ends a wait."""
    prompt = await _prompt(processes)
    told = {
        await prompt.out("tell", "accounts", name, *call): state
        for name, state, *call in (
            ("eve", "running", "hold"),
            ("eve", "pending", "book", '{"amount":5}'),
            ("ada", "waiting", "approved"),
            ("bob", "waiting", "rested"),
            ("dan", "backing off", "patient", '"x"'),
            ("ada", "scheduled", "book", '{"amount":5}', "--in", "2h"),
        )
    }
    rows = await prompt.rows("messages")
    while {row["message_id"]: row["state"] for row in rows} != told:
        await asyncio.sleep(0.05)
        rows = await prompt.rows("messages")
    held, queued, asking, resting, failing, later = told
    assert [row["message_id"] for row in rows if row["run"] is None] == [queued, failing, later]
    run = msgspec.json.decode(await prompt.out("messages", held, "--json"))["run"]
    assert TIME.fullmatch(run.pop("since"))
    assert run.pop("incarnation")
    assert run == {"attempt": 1, "runner": prompt.runner.address, "steps": [], "waits": []}
    (failed,) = [row for row in rows if row["message_id"] == failing]
    assert (failed["attempts"], failed["max_attempts"]) == (1, 3)
    where = f"attempt 1 of 5, on {prompt.runner.address}"
    since, until = rf"since {TIME.pattern}", rf"until {TIME.pattern}"
    for message_id, detail in (
        (held, f"{since}, {where}"),
        (asking, f"for deferred approval {since} {until}, {where}"),
        (resting, f"for sleep night {since} {until}, {where}"),
        (failing, f"{until}, then attempt 2 of 3"),
    ):
        shown = await prompt.out("messages", message_id)
        assert re.search(rf"^state +{told[message_id]}\ndetail +{detail}$", shown, re.MULTILINE), shown
    assert "│ waiting " in await prompt.out("messages", "--state", "pending")
    (wait,) = msgspec.json.decode(await prompt.out("messages", asking, "--json"))["run"]["waits"]
    assert (wait["kind"], wait["name"]) == ("deferred", "approval")
    assert re.search(rf"^token +{wait['token']} of approval$", await prompt.out("messages", asking), re.MULTILINE)
    await prompt.out("complete", wait["token"], "true")
    assert await prompt.out("reply", asking) == "true"
    await prompt.out("cancel", held, "--terminate")


async def test_a_told_time_is_kept_with_its_zone(processes: Processes) -> None:
    """--at is a moment wherever the command runs, and what is not a time is a usage error."""
    prompt = await _prompt(processes)
    tell = ("tell", "accounts", "ada", "book", '{"amount":5}')
    message_id = await prompt.out(*tell, "--at", "2090-01-31T09:00:00+05:30")
    (row,) = await prompt.rows("messages")
    assert (row["message_id"], row["deliver_at"]) == (message_id, "2090-01-31T03:30:00.000Z")
    past = await prompt.out(*tell, "--at", "2020-01-01T00:00:00Z", "--json")
    assert await prompt.out("reply", msgspec.json.decode(past)["message_id"], "--timeout", "10") == "5"
    wrong = {
        ("--at", "2090-01-31T09:00:00"): "2090-01-31T09:00:00 has no time zone: add one, such as Z for UTC",
        ("--at", "tomorrow"): "'tomorrow' is not a time: use ISO 8601, such as 2027-01-31T09:00:00+01:00",
        ("--in", "soon"): "'soon' is not a duration: use 500ms",
        ("--in", "5m", "--at", "2090-01-31T09:00:00Z"): "--at and --in both say when",
    }
    for flags, text in wrong.items():
        await prompt.refused(*tell, *flags, code=2, text=text)
    volatile = ("tell", "accounts", "ada", "balance", "--in", "5m")
    await prompt.refused(*volatile, code=1, text="accounts.balance is not durable, so it cannot be told for later")
    assert len(await prompt.rows("messages")) == 2


async def test_a_key_makes_calls_and_tells_one_message(processes: Processes) -> None:
    """The second call gets the first one's result, and another payload is refused."""
    prompt = await _prompt(processes)
    keyed = ("accounts", "ada", "book", '{"amount":5}', "--key", "b-1")
    assert await prompt.out("call", *keyed) == "5"
    assert await prompt.out("call", *keyed) == "5"
    message_id = await prompt.out("tell", *keyed)
    assert await prompt.ids("messages") == [message_id]
    other = ("call", "accounts", "ada", "book", '{"amount":6}', "--key", "b-1")
    await prompt.refused(*other, code=1, text="DuplicateKey")


async def test_a_reply_is_waited_for_and_failures_end_with_code_1(processes: Processes) -> None:
    """Value, domain error, dead letter, cancelled, unknown, and not ended in time: each is one line."""
    prompt = await _prompt(processes)
    refused = await prompt.out("tell", "accounts", "ada", "book", '{"amount":-5}')
    await prompt.refused("reply", refused, code=1, text="Error: NotCovered: missing=5\n")
    (dead,) = await prompt.dead("bob")
    await prompt.refused("reply", dead, code=1, text="HandlerFailed: KeyError: 'tea'")
    later = await prompt.out("tell", "accounts", "ada", "book", '{"amount":5}', "--in", "1h")
    await prompt.refused("reply", later, "--timeout", "0.2", code=1, text="CallTimeout")
    assert await prompt.out("cancel", later) == f"message {later} is cancelled"
    await prompt.refused("reply", later, code=1, text="MessageCancelled")
    await prompt.refused("cancel", later, code=1, text=f"message {later} cannot be cancelled: its state is cancelled")
    held = await prompt.out("tell", "accounts", "eve", "hold")
    assert await prompt.out("cancel", held, "--terminate") == f"message {held} is cancelled"


async def test_dead_letters_are_shown_retried_and_purged(processes: Processes) -> None:
    """Inspected with payload, error, traceback, attempts and times; retried by id and all; purged by filter."""
    prompt = await _prompt(processes)
    ada, bob, eve = await prompt.dead("ada", "bob", "eve")
    assert await prompt.ids("dead-letters", "--id", "ada") == [ada]
    rows = await prompt.rows("dead-letters")
    assert [(row["state"], row["attempts"], row["error"]) for row in rows] == [("dead", 2, "KeyError: 'tea'")] * 3
    assert "KeyError: 'tea'" in await prompt.out("dead-letters")
    shown = await prompt.out("dead-letters", ada)
    for text in ('arguments   {"text":"tea","times":1}', "attempt 2 failed at ", "KeyError: 'tea'", "in fragile"):
        assert text in shown
    detail = msgspec.json.decode(await prompt.out("dead-letters", ada, "--json"))
    assert detail["reply"]["error"]["kind"] == "HandlerFailed"
    assert [run["attempt"] for run in detail["history"]] == [1, 2]
    assert "in fragile" in detail["history"][0]["traceback"]
    await prompt.out("call", "accounts", "ada", "mend")
    mixed = await prompt.run("retry", ada, "77")
    assert (mixed.code, mixed.out) == (1, "1 message retried\n")
    assert "message 77 is not retried: no durable message has this id" in mixed.err
    assert await prompt.out("reply", ada) == '"tea"'
    await prompt.refused("dead-letters", ada, code=1, text=f"message {ada} is not a dead letter: it is done")
    await prompt.out("call", "accounts", "bob", "mend")
    assert msgspec.json.decode(await prompt.out("retry", "--all", "--id", "bob", "--json")) == {
        "retried": 1,
        "refused": [],
    }
    assert await prompt.out("reply", bob) == '"tea"'
    assert await prompt.ids("dead-letters") == [eve]
    assert await prompt.out("purge", "--yes", "--id", "bob") == "0 dead letters deleted"
    assert await prompt.out("purge", "--yes") == "1 dead letter deleted"
    assert await prompt.ids("messages") == [ada, bob]


async def test_a_purge_asks_where_there_is_a_terminal_and_refuses_where_there_is_none(processes: Processes) -> None:
    """It says how many there are; no is no; and without a terminal nothing happens unless --yes is said."""
    prompt = await _prompt(processes)
    (dead,) = await prompt.dead("ada")
    await prompt.refused("purge", code=2, text="say --yes")
    for answer, code in (("n", 1), ("y", 0)):
        ours, theirs = pty.openpty()
        command = (sys.executable, "-m", "actorhub", "purge", "--admin", prompt.runner.address)
        environment, directory = processes.env, processes.directory
        asking = await asyncio.create_subprocess_exec(
            *command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=directory
        )
        try:
            os.close(theirs)
            assert "delete 1 dead letter for good?" in await _read(ours, "]: ")
            assert await prompt.ids("dead-letters") == [dead]
            os.write(ours, f"{answer}\n".encode())
            said = await _read(ours, "deleted" if answer == "y" else "Aborted!")
            assert ("1 dead letter deleted" in said) == (answer == "y")
            async with asyncio.timeout(20):
                assert await asking.wait() == code
        finally:
            if asking.returncode is None:
                asking.kill()
            await asking.wait()
            os.close(ours)
    assert await prompt.ids("dead-letters") == []


async def _read(terminal: int, end: str) -> str:
    """Return what was printed up to `end`."""
    clock, said = SystemClock(), ""
    until = clock.monotonic() + 20
    while end not in said:
        assert clock.monotonic() < until, said
        if select.select([terminal], [], [], 0)[0]:
            said += os.read(terminal, 10_000).decode()
        else:
            await asyncio.sleep(0.02)
    return said


async def test_wrong_ids_and_options_are_explained(processes: Processes) -> None:
    """What is not an id, an id that nothing has, and options that exclude each other."""
    prompt = await _prompt(processes)
    no_id = "'x1' is not a message id: give a number such as `actorhub tell` prints"
    for command in ("messages", "dead-letters", "retry", "cancel", "reply"):
        await prompt.refused(command, "x1", code=2, text=no_id)
    for command in ("messages", "dead-letters", "cancel"):
        await prompt.refused(command, "77", code=1, text="there is no durable message 77: ")
    await prompt.refused("reply", "77", code=1, text="77")
    await prompt.refused("messages", "77", "--state", "done", code=2, text="an ID names one message")
    await prompt.refused("dead-letters", "77", "--type", "x", code=2, text="an ID names one message")
    await prompt.refused("retry", code=2, text="either one or more IDs, or --all")
    await prompt.refused("retry", "77", "--all", code=2, text="either one or more IDs, or --all")
    await prompt.refused("retry", "77", "--type", "x", code=2, text="say --all")
    await prompt.refused("messages", "--shard", "7", code=1, text="write group:number")
    await prompt.refused("messages", "--older-than", "old", code=2, text="'old' is not a duration")


async def test_ages_are_judged_by_the_store(processes: Processes) -> None:
    """A message is older than a moment after that moment, and not before."""
    prompt = await _prompt(processes)
    message_id = await prompt.out("tell", "accounts", "ada", "book", '{"amount":5}')
    assert await prompt.ids("messages", "--older-than", "1m") == []
    until = datetime.fromtimestamp(SystemClock().time(), UTC) + timedelta(seconds=20)
    while await prompt.ids("messages", "--older-than", "500ms") != [message_id]:
        assert datetime.fromtimestamp(SystemClock().time(), UTC) < until
