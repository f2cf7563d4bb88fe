"""The promises of `actorhub.storage.singleton_ports`, as tests that every store must pass.

Subclass `LeaderSuite` and `ScheduleSuite` in a test module and give it a fixture `world` that makes the storages of one
test.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from actorhub.conformance.messages import FAR, changed
from actorhub.conformance.storage import (
    PATIENCE_SECONDS,
    SHARDS,
    MeasuredStorage,
    StorageWorld,
    lock_session,
    runner,
    take_over,
)
from actorhub.core.address import ShardId
from actorhub.storage.checkpoint_ports import (
    BODY,
    Checkpoint,
    CheckpointWrite,
    Completion,
    CompletionKind,
    Saved,
    Scope,
)
from actorhub.storage.message_ports import RunCommit
from actorhub.storage.ports import Fenced, StateCommit, Storage, StoredState, VersionConflict
from actorhub.storage.singleton_ports import (
    Execution,
    Leadership,
    ScheduleEdit,
    ScheduleRow,
    SingletonRow,
    SingletonStore,
)

ADDRESS = "127.0.0.1:7000"

BUSY = Execution(
    executions=7,
    last_execution="sweep",
    last_execution_at=1_700_000_000.1,
    last_duration=1 / 3,
    last_error="ValueError: 日本 'quoted' \"text\"\nof two lines",
    last_error_at=0.1 + 0.2,
    state_errors=2,
    state_error="schema_decode_failed: no field",
    body="running",
)
"""An execution in which every field says something."""


def leadership(
    singleton: str = "coordinator",
    entity_id: str = "singleton",
    *,
    epoch: int = 1,
    incarnation: str = "a",
    shard: ShardId = SHARDS[0],
) -> Leadership:
    """Return who leads a singleton."""
    return Leadership(singleton=singleton, entity_id=entity_id, shard=shard, epoch=epoch, incarnation=incarnation)


def schedule(name: str = "sweep", singleton: str = "coordinator") -> ScheduleRow:
    """Return a schedule in which every field says something."""
    return ScheduleRow(
        singleton=singleton,
        name=name,
        declared="*/5 * * * *|Europe/Berlin",
        expression="*/5 * * * *",
        timezone="Europe/Berlin",
        created_at=1_700_000_000.3,
        planned_from=1_700_000_100.5,
        next_at=1_700_000_300.0,
        last_at=1_700_000_000.0,
        last_started_at=1_700_000_000.7,
        last_finished_at=1_700_000_001.1,
        last_duration=0.1 + 0.2,
        last_error="ValueError: 日本",
        runs=5,
        failures=4,
        failures_in_a_row=3,
        skipped=2,
        last_skip="older than a day: 2025-01-01",
    )


async def led(world: StorageWorld) -> MeasuredStorage:
    """Return a storage whose shards belong to `a` at epoch 1, which leads `coordinator`."""
    storage = await world.storage()
    await storage.take(SHARDS, runner("a"))
    await storage.singletons.lead(leadership(), ADDRESS, None)
    return storage


async def only(singletons: SingletonStore) -> SingletonRow:
    """Return the one singleton that there is."""
    [row], _ = await singletons.singletons()
    return row


async def abandoned(singletons: SingletonStore) -> int:
    """Return how many were removed, once there were any."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (removed := await singletons.remove_abandoned()):  # noqa: ASYNC110 - only time tells
            await asyncio.sleep(0.01)
    return removed


async def with_everything(storage: Storage, name: str, state_ttl: float | None, *, version: int = 1) -> None:
    """Make `a` leader of a singleton that has a state, a step, an outcome and two schedules."""
    leader = leadership(name)
    scope = Scope(name, leader.entity_id, BODY)
    await storage.singletons.lead(leader, ADDRESS, state_ttl)
    await storage.singletons.record(leader, BUSY, heartbeat=True)
    for each in ("one", "two"):
        await storage.singletons.keep_schedule(leader, schedule(each, name))
    await storage.commit_state(StateCommit(SHARDS[0], 1, name, leader.entity_id, version, b"state"), "a")
    run = RunCommit(shard=SHARDS[0], epoch=1, entity_type=name, entity_id=leader.entity_id)
    for notes in (
        CheckpointWrite(scope=scope, closes=True),
        CheckpointWrite(scope=scope, stored=(Checkpoint("fetch", b"1"),)),
    ):
        await storage.messages.commit_with_checkpoints(changed(run, checkpoints=notes), "a")
    await storage.checkpoints.complete(
        Completion(token_hash=name.encode().ljust(16), scope=scope, kind=CompletionKind.VALUE, data=b"value")
    )


async def what_is_left(storage: Storage, name: str) -> tuple[bool, bool, bool, bool, int]:
    """Return whether a singleton has a row, a state, a step and an outcome, and how many schedules."""
    rows, _ = await storage.singletons.singletons()
    schedules, _ = await storage.singletons.schedules(name)
    return (
        name in {row.singleton for row in rows},
        await storage.load_state(name, "singleton") is not None,
        await storage.checkpoints.load(Scope(name, "singleton", BODY)) != Saved(),
        bool(await storage.checkpoints.completions([name.encode().ljust(16)])),
        len(schedules),
    )


class LeaderSuite:
    """Who leads singletons, and how they are."""

    async def test_a_leader_is_known_to_every_process(self, world: StorageWorld) -> None:
        """What it wrote is what it gets back and what others see; the clock is the store's."""
        storage, peer = await world.storage(), await world.storage()
        await storage.take(SHARDS, runner("a"))
        assert (await peer.singletons.singletons())[0] == []
        row, now = await storage.singletons.lead(leadership(shard=SHARDS[1]), ADDRESS, 2.5)
        assert row == SingletonRow(
            singleton="coordinator",
            entity_id="singleton",
            shard=SHARDS[1],
            epoch=1,
            incarnation="a",
            leader=ADDRESS,
            since=row.since,
            state_ttl=2.5,
        )
        assert 0 <= now - row.since < PATIENCE_SECONDS
        assert await only(peer.singletons) == row
        assert (await peer.singletons.singletons())[1] >= now

    async def test_a_leader_writes_what_it_knows(self, world: StorageWorld) -> None:
        """It replaces what was stored, to the last bit; only a heartbeat writes the time."""
        storage = await led(world)
        before = await only(storage.singletons)
        now = await storage.singletons.record(leadership(), BUSY, heartbeat=False)
        assert await only(storage.singletons) == changed(before, execution=BUSY)
        assert now >= before.since
        beat_at = await storage.singletons.record(leadership(), Execution(executions=8), heartbeat=True)
        row = await only(storage.singletons)
        assert row.execution == Execution(executions=8)
        assert row.heartbeat_at is not None
        assert now <= row.heartbeat_at <= beat_at
        await storage.singletons.record(leadership(), BUSY, heartbeat=False)
        assert (await only(storage.singletons)).heartbeat_at == row.heartbeat_at

    async def test_a_new_leader_takes_over_what_earlier_ones_knew(self, world: StorageWorld) -> None:
        """Executions, heartbeat and generation stay; leader, epoch and since are the new one's."""
        storage, peer = await led(world), await world.storage()
        run = RunCommit(shard=SHARDS[0], epoch=1, entity_type="coordinator", entity_id="singleton")
        scope = Scope("coordinator", "singleton", BODY)
        await storage.messages.commit_with_checkpoints(
            changed(run, checkpoints=CheckpointWrite(scope=scope, closes=True)), "a"
        )
        await storage.singletons.record(leadership(), BUSY, heartbeat=True)
        before = await only(storage.singletons)
        await take_over(peer, SHARDS, runner("b"))
        row, _ = await peer.singletons.lead(leadership(epoch=2, incarnation="b"), "127.0.0.1:8000", 60.0)
        assert row.since > before.since
        assert row == changed(
            before, epoch=2, incarnation="b", leader="127.0.0.1:8000", since=row.since, state_ttl=60.0
        )
        assert (await peer.checkpoints.load(scope)).generation == 1

    async def test_leading_again_is_going_on(self, world: StorageWorld) -> None:
        """The same leader at the same epoch keeps since when it leads; after it left it begins again."""
        storage = await led(world)
        first = await only(storage.singletons)
        again, _ = await storage.singletons.lead(leadership(), ADDRESS, None)
        assert again == first
        await storage.singletons.record(leadership(), BUSY, heartbeat=False, leaves=True)
        left = await only(storage.singletons)
        assert (left.leader, left.incarnation, left.since) == ("", "a", first.since)
        back, _ = await storage.singletons.lead(leadership(), ADDRESS, None)
        assert back.leader == ADDRESS
        assert back.since > first.since

    async def test_a_former_leader_is_refused(self, world: StorageWorld) -> None:
        """After another took the shard none of its writes and deletions counts, whatever epoch it names."""
        storage, peer = await led(world), await world.storage()
        await storage.singletons.keep_schedule(leadership(), schedule())
        before = await only(storage.singletons)
        await take_over(peer, SHARDS[:1], runner("b"))
        refused = storage.statistics().refused
        stale = [
            leadership(epoch=1),
            leadership(epoch=2),
            leadership(epoch=1, incarnation="b"),
            leadership(epoch=3, incarnation="b"),
            leadership(shard=ShardId("default", 99)),
        ]
        for each in stale:
            for write in self._writes(storage.singletons, each):
                with pytest.raises(Fenced):
                    await write()
        assert storage.statistics().refused == refused + 5 * len(stale)
        assert await only(peer.singletons) == before
        assert (await peer.singletons.schedules())[0] == [schedule()]
        for write in self._writes(peer.singletons, leadership(epoch=2, incarnation="b")):
            await write()
        assert (await peer.singletons.schedules())[0] == [schedule("new")]

    async def test_a_leader_that_let_its_shard_go_is_refused(self, world: StorageWorld) -> None:
        """A shard without an owner takes nothing either."""
        storage = await led(world)
        await storage.singletons.keep_schedule(leadership(), schedule())
        await storage.release({SHARDS[0]: 1}, "a")
        for write in self._writes(storage.singletons, leadership()):
            with pytest.raises(Fenced):
                await write()
        assert (await storage.singletons.schedules())[0] == [schedule()]

    async def test_singletons_are_listed_by_name(self, world: StorageWorld) -> None:
        """Each with its own leader; names are ordered by their code points."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        names = ["b", "a", "_", "ab", "B", "é"]
        for place, name in enumerate(names):
            made = leadership(name, f"id {name}", shard=SHARDS[place % 5])
            await storage.singletons.lead(made, f"127.0.0.1:{place}", None)
        rows, _ = await storage.singletons.singletons()
        assert [row.singleton for row in rows] == sorted(names)
        assert {row.singleton: (row.leader, row.entity_id) for row in rows} == {
            name: (f"127.0.0.1:{place}", f"id {name}") for place, name in enumerate(names)
        }

    async def test_what_nobody_leads_is_forgotten_after_its_time(self, world: StorageWorld) -> None:
        """State, steps, outcomes, schedules and the row go; without a limit, or before it, everything stays."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        for name, state_ttl in (("short", 0.02), ("long", FAR), ("endless", None)):
            await with_everything(storage, name, state_ttl)
        assert await abandoned(storage.singletons) == 1
        assert await what_is_left(storage, "short") == (False, False, False, False, 0)
        for name in ("long", "endless"):
            assert await what_is_left(storage, name) == (True, True, True, True, 2)
        assert await storage.singletons.remove_abandoned() == 0

    async def test_a_leader_that_comes_back_begins_again(self, world: StorageWorld) -> None:
        """What it wants to write on top of what was forgotten is refused, and its next first version is taken."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        await with_everything(storage, "short", 0.02)
        assert await abandoned(storage.singletons) == 1
        with pytest.raises(VersionConflict):
            await storage.commit_state(StateCommit(SHARDS[0], 1, "short", "singleton", 2, b"late"), "a")
        row, _ = await storage.singletons.lead(leadership("short"), ADDRESS, 0.02)
        assert (row.execution, row.heartbeat_at) == (Execution(), None)
        assert await storage.checkpoints.load(Scope("short", "singleton", BODY)) == Saved()
        await storage.commit_state(StateCommit(SHARDS[0], 1, "short", "singleton", 1, b"new"), "a")
        assert await storage.load_state("short", "singleton") == StoredState(1, b"new")

    async def test_a_singleton_that_is_led_is_not_forgotten(self, world: StorageWorld) -> None:
        """As long as its leader is heard of, silence does not count; once that left, it does."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        async with lock_session(storage, "a") as session:
            await session.heartbeat(runner("a"))
            for name in ("led", "left"):
                await with_everything(storage, name, 0.02)
            await storage.singletons.record(leadership("left"), BUSY, heartbeat=False, leaves=True)
            assert await abandoned(storage.singletons) == 1
            assert await what_is_left(storage, "led") == (True, True, True, True, 2)
            await storage.remove_runner("a")
            assert await abandoned(storage.singletons) == 1
            assert await what_is_left(storage, "led") == (False, False, False, False, 0)

    @staticmethod
    def _writes(store: SingletonStore, leader: Leadership) -> list[Callable[[], Coroutine[Any, Any, object]]]:
        return [
            lambda: store.lead(leader, "127.0.0.1:9000", 1.0),
            lambda: store.record(leader, BUSY, heartbeat=True, leaves=True),
            lambda: store.keep_schedule(leader, changed(schedule(), paused=True)),
            lambda: store.keep_schedule(leader, schedule("new")),
            lambda: store.remove_schedules(leader, ["sweep"]),
        ]


class ScheduleSuite:
    """Schedules: what their leader writes, what operators change."""

    async def test_a_schedule_is_kept_as_its_leader_knows_it(self, world: StorageWorld) -> None:
        """New and written again, to the last bit, for every process; when it was created stays."""
        storage, peer = await led(world), await world.storage()
        assert (await peer.singletons.schedules())[0] == []
        row, bare = (
            schedule(),
            ScheduleRow(
                singleton="coordinator",
                name="bare",
                declared="@hourly|UTC",
                expression="@hourly",
                timezone="UTC",
                created_at=0,
            ),
        )
        for made in (row, changed(row, next_at=None, runs=6, last_error="", paused=True), bare):
            assert await storage.singletons.keep_schedule(leadership(), made) == made
        moved = changed(bare, created_at=5.0, next_at=1 / 3, edited=True, declared="@daily|UTC", expression="@daily")
        kept = changed(moved, created_at=0.0)
        assert await storage.singletons.keep_schedule(leadership(), moved) == kept
        rows, now = await peer.singletons.schedules("coordinator")
        assert rows == [kept, changed(row, next_at=None, runs=6, last_error="", paused=True)]
        assert now > row.created_at

    async def test_schedules_are_listed_by_singleton_and_name(self, world: StorageWorld) -> None:
        """All, or those of one singleton."""
        storage = await led(world)
        made = [schedule(name, singleton) for singleton in ("coordinator", "other") for name in ("B", "a", "b", "日")]
        for row in reversed(made):
            await storage.singletons.keep_schedule(leadership(row.singleton), row)
        assert (await storage.singletons.schedules())[0] == made
        assert (await storage.singletons.schedules("other"))[0] == made[4:]
        assert (await storage.singletons.schedules("nobody"))[0] == []

    async def test_an_operator_has_the_last_word(self, world: StorageWorld) -> None:
        """A leader that does not know of an edit writes nothing and learns of it; then it goes on."""
        storage, operator = await led(world), await world.storage()
        row = await storage.singletons.keep_schedule(leadership(), schedule())
        edited = await operator.singletons.edit_schedule("coordinator", "sweep", ScheduleEdit(paused=True))
        assert edited == changed(row, paused=True, revision=1, planned_from=None, next_at=None)
        assert await storage.singletons.keep_schedule(leadership(), changed(row, runs=99)) == edited
        assert (await storage.singletons.schedules())[0] == [edited]
        assert edited is not None
        later = changed(edited, runs=99, next_at=5.0)
        assert await storage.singletons.keep_schedule(leadership(), later) == later

    async def test_an_edit_changes_what_it_names(self, world: StorageWorld) -> None:
        """Each grows the revision and plans again; a reset goes back to what the code says."""
        storage = await led(world)
        row = await storage.singletons.keep_schedule(leadership(), schedule())
        edits: list[tuple[ScheduleEdit, dict[str, Any]]] = [
            (ScheduleEdit(), {}),
            (ScheduleEdit(paused=True), {"paused": True}),
            (ScheduleEdit(expression="@hourly"), {"expression": "@hourly", "edited": True}),
            (ScheduleEdit(paused=False, timezone="UTC"), {"paused": False, "timezone": "UTC"}),
            (
                ScheduleEdit(reset=True),
                {"expression": "*/5 * * * *", "timezone": "Europe/Berlin", "edited": False},
            ),
            (ScheduleEdit(timezone="UTC"), {"timezone": "UTC", "edited": True}),
            (
                ScheduleEdit(reset=True, expression="@daily", paused=True),
                {"expression": "@daily", "timezone": "Europe/Berlin", "edited": True, "paused": True},
            ),
            (ScheduleEdit(reset=True), {"expression": "*/5 * * * *", "edited": False}),
        ]
        for revision, (edit, changes) in enumerate(edits, 1):
            row = changed(row, **changes, revision=revision, planned_from=None, next_at=None)
            assert await storage.singletons.edit_schedule("coordinator", "sweep", edit) == row
            planned = changed(row, planned_from=1.0, next_at=float(revision))
            row = await storage.singletons.keep_schedule(leadership(), planned)
        for singleton, name in (("coordinator", "other"), ("other", "sweep")):
            assert await storage.singletons.edit_schedule(singleton, name, ScheduleEdit(paused=True)) is None
        assert (await storage.singletons.schedules())[0] == [row]

    async def test_no_edit_is_lost_to_a_leader_that_writes_at_once(self, world: StorageWorld) -> None:
        """Whatever order they come in, each edit counts, and what the leader writes knows of all edits before it."""
        storage, operator = await led(world), await world.storage()
        row = await storage.singletons.keep_schedule(leadership(), schedule())
        for turn in range(1, 21):
            edit = ScheduleEdit(paused=bool(turn % 2))
            async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
                edited = tasks.create_task(operator.singletons.edit_schedule("coordinator", "sweep", edit))
                tasks.create_task(storage.singletons.keep_schedule(leadership(), changed(row, runs=turn)))
            after = edited.result()
            assert after is not None
            [row] = (await storage.singletons.schedules())[0]
            assert row == after
            assert (row.revision, row.paused) == (turn, bool(turn % 2))

    async def test_schedules_that_the_code_has_no_more_are_deleted(self, world: StorageWorld) -> None:
        """Those that are named, of that singleton; none are named by an empty list."""
        storage = await led(world)
        made = [schedule(name, singleton) for singleton in ("coordinator", "other") for name in ("a", "b", "c")]
        for row in made:
            await storage.singletons.keep_schedule(leadership(row.singleton), row)
        await storage.singletons.remove_schedules(leadership(), [])
        assert (await storage.singletons.schedules())[0] == made
        await storage.singletons.remove_schedules(leadership(), ["a", "c", "unknown"])
        assert (await storage.singletons.schedules())[0] == made[1:2] + made[3:]
