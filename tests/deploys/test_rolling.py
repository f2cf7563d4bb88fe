"""A rolling deploy of the library and of a program, forwards and back, under load, on real processes and Postgres."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from tests.deploys.releases import Cluster, Release, leave
from tests.support.processes import Processes

ALLOWED = {"RunnerUnavailable", "UnknownHandler", "MalformedMessage", "EntityNotAssigned"}
"""Errors that callers of one release may get while the runners are of the other one."""


async def settled(database: asyncpg.Connection, but: Sequence[str] = ()) -> None:
    """Wait until no message is pending, but for those of handlers that the last release does not have."""
    query = "select count(*) from actorhub.messages where state in ('pending', 'scheduled') and handler <> all ($1)"
    async with asyncio.timeout(60):
        while await database.fetchval(query, list(but)):
            await asyncio.sleep(0.1)


async def has_dead_letters(database: asyncpg.Connection, handler: str) -> None:
    """Wait until a message of a handler that no runner has is a dead letter."""
    query = "select count(*) from actorhub.messages where state = 'dead' and handler = $1"
    async with asyncio.timeout(60):
        while not await database.fetchval(query, handler):
            await asyncio.sleep(0.1)


async def states_of(database: asyncpg.Connection) -> dict[str, dict[str, Any]]:
    """Return the stored states by entity id."""
    rows = await database.fetch("select entity_id, data from actorhub.entity_state where entity_type = 'account'")
    return {row["entity_id"]: msgspec.msgpack.decode(row["data"]) for row in rows}


def is_allowed(error: dict[str, Any]) -> bool:
    """Whether a caller may get the error while there are runners of both releases.

    Those of the release before leave what is stored for a handler that is not durable there, so who asked times out.
    """
    return error["error"] in ALLOWED or (error["error"] == "CallTimeout" and error["op"].endswith("-becomes"))


async def judged(database: asyncpg.Connection, lines: list[dict[str, Any]], waits: str = "") -> Counter[str]:
    """Check that each acknowledged call is in a state once, or a dead letter; return how the messages ended.

    Args:
        database: Holds the states and the messages.
        lines: What the callers printed.
        waits: A handler whose messages may wait for another release.
    """
    assert [line for line in lines if line["kind"] == "error" and not is_allowed(line)] == []
    states = await states_of(database)
    runs = {op: line["runs"] for state in states.values() for op, line in state["ops"].items()}
    # What a volatile handler of either release runs has no key: its callers may have asked twice.
    assert [op for op, count in runs.items() if count > 1 and not op.endswith(("-becomes", "-stops"))] == []
    found = await database.fetch("select message_id, state, handler from actorhub.messages")
    messages = {row["message_id"]: (row["state"], row["handler"]) for row in found}
    ended: Counter[str] = Counter()
    for line in lines:
        if line["kind"] in ("ask", "pay"):
            assert runs[line["op"]] >= 1, line
        elif line["kind"] == "tell":
            state, handler = messages[line["message_id"]]
            ended[f"{handler} {state}"] += 1
            assert (state == "done") == (line["op"] in runs), (line, state)
            # The release before ends a message as failed whose arguments do not fit it.
            ends = ("done", "dead", "failed") if handler == "takes_something_else" else ("done", "dead")
            assert state in ends or (handler == waits and state == "pending"), (line, state)
    return ended


LENGTHS = pytest.mark.parametrize("seconds", [0.5, pytest.param(20.0, marks=pytest.mark.faults)])


@LENGTHS
async def test_the_next_release_takes_over_under_load(
    releases: tuple[Release, Release], postgres_url: str, tmp_path: Path, seconds: float
) -> None:
    """Nothing acknowledged is lost or runs twice, nothing is wedged, and dead letters can be looked at."""
    before, now = releases
    database = await asyncpg.connect(postgres_url)
    with Processes(tmp_path) as processes:
        cluster = Cluster(processes, postgres_url)
        old = [await cluster.start(before) for _ in range(2)]
        await cluster.call(before, old, "old")
        new = [await cluster.start(now)]
        await cluster.call(now, [*old, *new], "new")
        await asyncio.sleep(seconds)
        await leave(old[0])
        new.append(await cluster.start(now))
        await asyncio.sleep(seconds)
        await leave(old[1])
        await asyncio.sleep(seconds)
        lines = await cluster.hush()
        await settled(database)
        ended = await judged(database, lines)
        assert min(ended["add done"], ended["is_added done"], ended["is_removed dead"]) > 0, ended
        assert (await states_of(database))["a1"]["count"] > 0  # What only the release before knows.
        for handler in ("is_removed", "takes_something_else"):
            [letter] = await cluster.command(new[0], "dead-letters", "--handler", handler, "--limit", "1")
            shown = await cluster.command(new[0], "dead-letters", letter["message_id"])
            assert shown["arguments"], shown
            assert (await cluster.command(new[0], "cancel", letter["message_id"]))["cancelled"]
            assert (await cluster.command(new[0], "purge", "--handler", handler, "--yes"))["purged"] >= 0
        assert await cluster.command(new[0], "dead-letters") == []
        for runner in new:
            await leave(runner)
    await database.close()


@LENGTHS
async def test_the_release_before_is_put_back_under_load(
    releases: tuple[Release, Release], postgres_url: str, tmp_path: Path, seconds: float
) -> None:
    """Nothing acknowledged is lost or runs twice, and what the next release made dead letters of runs after a retry."""
    before, now = releases
    database = await asyncpg.connect(postgres_url)
    with Processes(tmp_path) as processes:
        cluster = Cluster(processes, postgres_url)
        old, new = [await cluster.start(before)], [await cluster.start(now)]
        for release, name in ((before, "old"), (now, "new")):
            await cluster.call(release, [*old, *new], name)
        await asyncio.sleep(seconds)
        await leave(old.pop())
        await asyncio.sleep(seconds)
        await has_dead_letters(database, "is_removed")
        old.append(await cluster.start(before))
        await asyncio.sleep(seconds)
        await leave(new.pop())
        await asyncio.sleep(seconds)
        lines = await cluster.hush()
        waits = ["is_added", "becomes_durable"]
        await settled(database, but=waits)
        assert (await judged(database, lines, waits="is_added"))["is_removed dead"] > 0
        answer = await cluster.command(old[0], "retry", "--all", "--handler", "is_removed")
        assert answer["retried"] > 0
        await settled(database, but=waits)
        ended = await judged(database, lines, waits="is_added")
        assert (ended["is_removed dead"], ended["add done"] > 0) == (0, True), ended
        await leave(old[0])
    await database.close()


async def test_what_the_release_before_runs_is_listed_as_pending(
    releases: tuple[Release, Release], postgres_url: str, tmp_path: Path
) -> None:
    """A runner of the release before cannot say what waits on it, nor ask the others, and answers nevertheless."""
    with Processes(tmp_path) as processes:
        cluster = Cluster(processes, postgres_url)
        old, new = [await cluster.start(release, "tests.ops.durable_shop:hub") for release in releases]
        owners: dict[str, str] = {}
        states: dict[str, set[str]] = {}
        async with asyncio.timeout(60):
            while sorted(Counter(owners.values()).values()) != [150, 150]:
                owners = {row["shard"]: row["runner"] for row in await cluster.command(new, "shards")}
            for number in range(8):
                await cluster.command(new, "tell", "accounts", f"n-{number}", "rested")
            while states.get(new.address) != {"waiting"}:
                states = {}
                for row in await cluster.command(new, "messages"):
                    states.setdefault(owners[row["shard"]], set()).add(row["state"])
        assert states == {new.address: {"waiting"}, old.address: {"pending"}}
        assert {row["state"] for row in await cluster.command(old, "messages")} == {"pending"}
        for runner in (old, new):
            await leave(runner)
