"""`actorhub messages --follow`: messages as they come and change."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE

from actorhub.core.clock import SystemClock
from tests.cli.test_messages import HUB, Prompt
from tests.support.processes import ActorhubProcess, Processes


async def _started(processes: Processes) -> Prompt:
    return Prompt(processes, await processes.serve(reference=HUB))


def _follow(prompt: Prompt, *flags: str) -> ActorhubProcess:
    return prompt.processes.start("messages", "--follow", *flags, "--admin", prompt.runner.address)


async def _until_lines(follower: ActorhubProcess, *wanted: str) -> None:
    """Wait until for each of the texts there is a line that holds all of its words."""
    clock = SystemClock()
    until = clock.monotonic() + 20
    while not all(any(_holds(line, text) for line in follower.out.splitlines()) for text in wanted):
        assert follower.code is None, follower.err
        assert clock.monotonic() < until, f"{wanted} did not come:\n{follower.out}{follower.err}"
        await asyncio.sleep(0.05)


def _holds(line: str, words: str) -> bool:
    return all(word in line for word in words.split())


async def test_new_and_changed_messages_are_printed_until_ctrl_c(processes: Processes) -> None:
    """First what has not ended, then each change in one line; Ctrl-C ends it with code 0 and no word."""
    prompt = await _started(processes)
    later = await prompt.out("tell", "accounts", "ada", "book", '{"amount":1}', "--in", "1h")
    follower = _follow(prompt)
    await _until_lines(follower, f"{later} scheduled accounts/ada.book attempts=0 due=")
    booked = await prompt.out("tell", "accounts", "bob", "book", '{"amount":5}', "--key", "b-1")
    await _until_lines(follower, f"{booked} done accounts/bob.book attempts=1 key=b-1")
    (dead,) = await prompt.dead("eve")
    await _until_lines(follower, f"{dead} dead accounts/eve.fragile attempts=2 KeyError")
    await prompt.out("cancel", later)
    await _until_lines(follower, f"{later} cancelled")
    lines = follower.out.splitlines()
    assert len(lines) == len(set(lines))
    follower.signal(signal.SIGINT)
    assert await follower.ended(deadline=5) == 0
    assert follower.err == ""


async def test_a_wait_is_printed_once_with_what_it_is_for(processes: Processes) -> None:
    """A message that begins to wait has changed, and goes on waiting without another line."""
    prompt = await _started(processes)
    follower = _follow(prompt)
    asking = await prompt.out("tell", "accounts", "ada", "approved")
    await _until_lines(
        follower, f"{asking} waiting accounts/ada.approved runner={prompt.runner.address} approval until"
    )
    later = await prompt.out("tell", "accounts", "bob", "book", '{"amount":1}')
    await _until_lines(follower, f"{later} done")
    await prompt.out("cancel", asking)
    await _until_lines(follower, f"{asking} cancelled")
    assert sum(_holds(line, f"{asking} waiting") for line in follower.out.splitlines()) == 1


async def test_filters_choose_what_is_followed_and_json_is_one_object_per_line(processes: Processes) -> None:
    """A message that comes to match, such as one that becomes a dead letter, is printed then; others never."""
    prompt = await _started(processes)
    follower = _follow(prompt, "--json", "--state", "dead", "--type", "accounts")
    booked = await prompt.out("tell", "accounts", "bob", "book", '{"amount":5}')
    (dead,) = await prompt.dead("eve")
    await _until_lines(follower, dead)
    (row,) = map(json.loads, follower.out.splitlines())
    assert (row["message_id"], row["state"], row["error"]) == (dead, "dead", "KeyError: 'tea'")
    assert booked not in follower.out
    follower.signal(signal.SIGTERM)
    assert await follower.ended(deadline=5) == 0


async def test_a_runner_that_is_away_is_asked_until_it_is_back(processes: Processes) -> None:
    """The follower says once that nobody answers, and goes on with what has changed meanwhile."""
    prompt = await _started(processes)
    follower = _follow(prompt)
    message_id = await prompt.out("tell", "accounts", "ada", "book", '{"amount":1}', "--in", "1h")
    await _until_lines(follower, f"{message_id} scheduled")
    address = prompt.runner.address
    assert await prompt.runner.terminate() == 0
    await follower.says("does not answer and will be asked again")
    await processes.serve("--listen", address, reference=HUB)
    await prompt.out("cancel", message_id)
    await _until_lines(follower, f"{message_id} cancelled")
    assert follower.err.count("does not answer") == 1


async def test_it_ends_when_its_reader_has_gone(processes: Processes) -> None:
    """A closed pipe ends it with code 0 within two polls, without a word, though it has nothing to print."""
    prompt = await _started(processes)
    command = (sys.executable, "-m", "actorhub", "messages", "--follow", "--admin", prompt.runner.address)
    message_id = await prompt.out("tell", "accounts", "ada", "book", '{"amount":1}', "--in", "1h")
    follower = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=PIPE, env=processes.env, cwd=processes.directory
    )
    assert follower.stdout is not None
    assert follower.stderr is not None
    try:
        async with asyncio.timeout(20):
            assert message_id.encode() in await follower.stdout.readline()
            follower._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
            assert await follower.stderr.read() == b""
            assert await follower.wait() == 0
    finally:
        if follower.returncode is None:
            follower.kill()
        await follower.wait()


async def test_a_limit_bounds_what_is_watched_and_says_so(processes: Processes) -> None:
    """With more open messages than --limit the first ones are watched, and one line tells of the others."""
    prompt = await _started(processes)
    told = [await prompt.out("tell", "accounts", "ada", "book", '{"amount":1}', "--in", "1h") for _ in range(3)]
    follower = _follow(prompt, "--limit", "2", "--json")
    await _until_lines(follower, told[0], told[1])
    await follower.says("there are too many messages to show each change")
    await prompt.out("cancel", told[1])
    await _until_lines(follower, f"{told[1]} cancelled")
    assert follower.err.count("too many") == 1
