"""Deploys that give an entity type another shard group or shard key, in memory: forwards, back, and in between."""

import asyncio
import logging
from datetime import timedelta
from typing import Any

import pytest

from actorhub.storage.memory.storage import MemoryStorage
from actorhub.storage.message_ports import MessageFilter
from actorhub.testing import MemoryCluster, until
from tests.deploys.accounts import (
    BEFORE,
    BOTH,
    GROUP,
    IDS,
    KEY,
    Caller,
    Release,
    judged,
    leading,
    led,
    memory,
    release,
    settled,
)
from tests.support.gates import gates
from tests.support.parts import host_of

__all__ = ["memory"]

CHANGES = pytest.mark.parametrize(
    "change",
    [(BEFORE, GROUP), (BEFORE, KEY), (BEFORE, BOTH), (GROUP, BEFORE), (KEY, BEFORE), (GROUP, KEY)],
    ids=["group", "key", "both", "group taken back", "key taken back", "another group and key"],
)


@CHANGES
async def test_a_deploy_that_moves_a_type_takes_everything_along(
    memory: MemoryCluster, change: tuple[Release, Release]
) -> None:
    """All runners of the release before have left: states, and messages that waited, are found and go on in order."""
    before, after = change
    old = await memory.start_runner(hub=before[1])
    caller = Caller(old, before, "old")
    await caller.round()
    accounts: Any = old.client(before[0])
    for entity_id in IDS:
        await old.tell(accounts(entity_id).add("later"), delay=timedelta(seconds=0.3))
        caller.acknowledged[entity_id].append("later")
    await memory.stop(old)
    new = await memory.start_runner(hub=after[1])
    await memory.settled()
    await until(lambda: bool(memory.store.messages), "there are messages")
    await new.poll_storage()
    await settled(memory, new)
    again = Caller(new, after, "new")
    await again.round()
    await settled(memory, new)
    await judged(new, after, [caller, again])


@CHANGES
async def test_both_releases_serve_while_a_type_moves_and_back(
    memory: MemoryCluster, change: tuple[Release, Release]
) -> None:
    """Callers of both get each call answered while runners come and go; nothing is lost or doubled."""
    before, after = change
    old = [await memory.start_runner(hub=before[1]) for _ in range(2)]
    callers = [Caller(await memory.client(hub=before[1]), before, "old")]
    await callers[0].round()
    new = [await memory.start_runner(hub=after[1])]
    callers.append(Caller(await memory.client(hub=after[1]), after, "new"))
    stop = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(caller.run(stop))
        await asyncio.sleep(0.3)
        await memory.stop(old.pop())
        await asyncio.sleep(0.3)
        new.append(await memory.start_runner(hub=after[1]))
        await asyncio.sleep(0.3)
        await memory.stop(old.pop())
        await asyncio.sleep(0.3)
        old.append(await memory.start_runner(hub=before[1]))
        await asyncio.sleep(0.3)
        await memory.stop(new.pop())
        await asyncio.sleep(0.3)
        stop.set()
    await settled(memory, new[0])
    for cluster, declared in ((old[0], before), (new[0], after)):
        await judged(cluster, declared, callers, in_order=False)


async def test_what_is_told_to_one_release_runs_at_once_where_the_other_has_the_entity(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No runner scans the store by itself here: the owner is told of the messages that are moved to it."""
    monkeypatch.setattr("actorhub.engine.runner._POLL", 3600.0)
    old = await memory.start_runner(hub=BEFORE[1])
    caller = Caller(old, BEFORE, "old")
    await caller.round()
    new = await memory.start_runner(hub=GROUP[1])
    await memory.settled()
    accounts: Any = new.client(GROUP[0])
    for entity_id in IDS:
        for op in ("told first", "told next"):
            await new.tell(accounts(entity_id).add(op))
            caller.acknowledged[entity_id].append(op)
    await settled(memory, new)
    await judged(new, GROUP, [caller])


@pytest.mark.parametrize("is_made", [False, True], ids=["it does not happen", "it has happened"])
async def test_a_move_that_takes_too_long_is_given_up_and_begun_anew(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    """Consent to it is for a while only; if the move has happened, its messages are found without a scan by chance."""
    monkeypatch.setattr("actorhub.engine.runner._POLL", 3600.0)
    monkeypatch.setattr("actorhub.engine.durable.homes._VALID", 0.3)
    move, gate = MemoryStorage.move_entity, gates["store"]

    async def held_up(storage: MemoryStorage, entity: tuple[str, str], **shards: Any) -> int:
        moved = await move(storage, entity, **shards) if is_made else 0
        await gate.pass_through()
        return moved if is_made else await move(storage, entity, **shards)

    monkeypatch.setattr(MemoryStorage, "move_entity", held_up)
    old = await memory.start_runner(hub=BEFORE[1])
    caller = Caller(old, BEFORE, "old")
    await caller.round()
    accounts: Any = old.client(BEFORE[0])
    await old.tell(accounts(IDS[0]).add("later"), delay=timedelta(seconds=2))
    caller.acknowledged[IDS[0]].append("later")
    await memory.stop(old)
    new, _ = await memory.start_runner(hub=KEY[1]), await memory.start_runner(hub=KEY[1])
    await memory.settled()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Caller(new, KEY, "new").round())
        await until(lambda: "cancelled" in gate.left, "a move was given up")
        gate.open()
    await settled(memory, new)
    await judged(new, KEY, [caller])


async def test_a_run_that_a_move_cuts_short_costs_no_attempt(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message has one attempt, and is run where the entity is then."""
    monkeypatch.setattr("actorhub.engine.durable.homes._GRACE", 0.2)
    old = await memory.start_runner(hub=BEFORE[1])
    new = [await memory.start_runner(hub=KEY[1]) for _ in range(2)]
    await memory.settled()
    accounts: Any = old.client(BEFORE[0])
    moving: Any = new[0].client(KEY[0])
    ids = (f"{number}/account" for number in range(200))
    places = ((each, old.shard_of(BEFORE[0], each), new[0].shard_of(KEY[0], each)) for each in ids)
    owners = ((each, memory.owner_of(home), memory.owner_of(place)) for each, home, place in places)
    entity_id = next(each for each, *pair in owners if set(pair) == set(new))
    await accounts(entity_id).put("put")
    await old.tell(accounts(entity_id).hold("held"))
    await gates["held"].came()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(moving(entity_id).put("put next"))
        await until(lambda: gates["held"].left == ["cancelled"], "the run is cut short")
        gates["held"].open()
    await settled(memory, old)
    assert sorted(await moving(entity_id).done()) == ["held", "put", "put next"]


async def test_an_entity_that_waits_for_the_owner_of_its_home_is_logged_once(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner is asked again and again, which nobody needs to read of."""
    caplog.set_level(logging.DEBUG, "actorhub.homes")
    old = await memory.start_runner(hub=BEFORE[1])
    await Caller(old, BEFORE, "old").round()
    new = await memory.start_runner(hub=GROUP[1])
    await memory.settled()
    memory.cut(old, new)
    moving: Any = new.client(GROUP[0])
    entity_id = next(each for each in IDS if memory.owner_of(old.shard_of(BEFORE[0], each)) is old)
    levels: list[int] = []

    def is_asked_again() -> bool:
        levels[:] = [record.levelno for record in caplog.records if "stays in" in record.getMessage()]
        return len(levels) > 2

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(moving(entity_id).put("put"))
        await until(is_asked_again, "the owner is asked again")
        memory.heal(old, new)
    assert levels[:3] == [logging.INFO, logging.DEBUG, logging.DEBUG]


def _key_of_all_but_ada(entity_id: str) -> str:
    if entity_id.startswith("ada"):
        raise ValueError(entity_id)
    return entity_id


OTHERS_ONLY = release(shard_key=_key_of_all_but_ada)


async def test_messages_that_cannot_be_brought_in_do_not_hide_others(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay in shards that nobody hosts, because the shard key of the next release fails for their ids."""
    monkeypatch.setattr("actorhub.engine.durable.homes._SWEEP", 0.05)
    monkeypatch.setattr("actorhub.engine.durable.homes._STRAYS_AT_ONCE", 1)
    old = await memory.start_runner(hub=GROUP[1])
    accounts: Any = old.client(GROUP[0])
    for entity_id in IDS:
        await old.tell(accounts(entity_id).add("later"), delay=timedelta(hours=1))
    await memory.stop(old)
    await memory.start_runner(hub=OTHERS_ONLY[1])

    def left() -> set[str]:
        rows = memory.store.messages.messages(MessageFilter())
        return {row.entity_id for row in rows if row.shard.group == "moved"}

    await until(lambda: left() == {each for each in IDS if each.startswith("ada")}, "all others are brought in")


async def test_a_sweep_that_is_held_up_does_not_keep_runners_from_scanning_the_store(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they were not told of is found while messages are brought in from shards that nobody hosts."""
    monkeypatch.setattr("actorhub.engine.durable.homes._SWEEP", 0.05)
    monkeypatch.setattr("actorhub.engine.runner._POLL", 0.05)
    gate = gates["store"]

    async def held_up(*_: Any, **__: Any) -> int:
        await gate.pass_through()
        return 0

    monkeypatch.setattr(MemoryStorage, "move_entity", held_up)
    old = await memory.start_runner(hub=GROUP[1])
    await old.tell(old.client(GROUP[0])(IDS[0]).add("later"), delay=timedelta(hours=1))  # type: ignore[attr-defined]
    await memory.stop(old)
    new = host_of(await memory.start_runner(hub=BEFORE[1]))
    await gate.came()
    scans = new.delivery.loader.scans
    await until(lambda: new.delivery.loader.scans > scans + 2, "the store is scanned again and again")
    assert gate.inside == 1
    gate.open()


@pytest.mark.parametrize("groups", [("default", "moved"), ("moved", "default")], ids=["there", "back"])
async def test_a_singleton_that_moves_has_one_leader_at_a_time(memory: MemoryCluster, groups: tuple[str, str]) -> None:
    """It goes on where the other release led it, once nobody of that one does; callers of both reach whoever leads."""
    before, after = (led(shard_group=group) for group in groups)
    old = await memory.start_runner(hub=before[1])
    clerk: Any = old.singleton(before[0])
    assert await clerk.note("one") == leading[0]
    new = await memory.start_runner(hub=after[1])
    later: Any = new.singleton(after[0])
    await memory.settled()
    assert await later.note("two") == leading[0]
    await old.tell(clerk.note("three"), delay=timedelta(seconds=0.5))
    await memory.stop(old)
    await until(lambda: bool(leading) and leading[0].startswith(groups[1]), "the next release leads")
    assert await later.note("four") == leading[0]
    await new.poll_storage()
    await settled(memory, new)
    assert sorted(await later.noted()) == ["four", "one", "three", "two"]
    again = await memory.start_runner(hub=before[1])
    back: Any = again.singleton(before[0])
    assert await back.noted() == await later.noted()
    await memory.stop(new)
    await until(lambda: bool(leading) and leading[0].startswith(groups[0]), "the release before leads")
    assert len(await back.noted()) == 4
