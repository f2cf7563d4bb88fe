"""The promises of `actorhub.storage.checkpoint_ports`, as tests that every store must pass.

Subclass `CheckpointWriteSuite` and `CompletionSuite` in a test module and give it a fixture `world` that makes the
storages of one test.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from hashlib import blake2b

import pytest

from actorhub.conformance.message_runs import start
from actorhub.conformance.messages import (
    FAR,
    ODD_IDS,
    backlog,
    changed,
    failure,
    keyed,
    message,
    run,
    scheduled,
    stored,
)
from actorhub.conformance.singletons import leadership
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, MeasuredStorage, StorageWorld, runner, take_over
from actorhub.core.address import ShardId
from actorhub.core.errors import DuplicateKey
from actorhub.storage.checkpoint_ports import (
    BODY,
    Checkpoint,
    CheckpointStore,
    CheckpointWrite,
    Completion,
    CompletionKind,
    Saved,
    Scope,
)
from actorhub.storage.message_ports import MessageStore, NotPending, Readiness, RolledBack, RunCommit
from actorhub.storage.ports import Fenced, StateCommit, StoredState, VersionConflict


def scope(message_id: int = BODY, entity_id: str = "ada", *, entity_type: str = "orders") -> Scope:
    """Return the scope of a durable message, or of a singleton's `run`."""
    return Scope(entity_type, entity_id, message_id)


def steps(results: Mapping[str, bytes], message_id: int = BODY, *, entity_id: str = "ada") -> CheckpointWrite:
    """Return notes of steps by name."""
    kept = tuple(Checkpoint(name, data) for name, data in results.items())
    return CheckpointWrite(scope=scope(message_id, entity_id), stored=kept)


def closing(message_id: int = BODY, *, entity_id: str = "ada") -> CheckpointWrite:
    """Return notes that make a scope's checkpoints history."""
    return CheckpointWrite(scope=scope(message_id, entity_id), closes=True)


def noted(notes: CheckpointWrite, version: int = 0, *, epoch: int = 1, shard: ShardId = SHARDS[0]) -> RunCommit:
    """Return a commit of `notes`, and with `version` of a state."""
    return RunCommit(
        shard=shard,
        epoch=epoch,
        entity_type=notes.scope.entity_type,
        entity_id=notes.scope.entity_id,
        version=version,
        data=b"v%d" % version if version else b"",
        checkpoints=notes,
    )


def outcome(
    token: str, data: bytes = b"value", *, of: Scope | None = None, kind: CompletionKind = CompletionKind.VALUE
) -> Completion:
    """Return the outcome of a deferred value."""
    token_hash = blake2b(token.encode(), digest_size=16).digest()
    return Completion(token_hash=token_hash, scope=of or scope(), kind=kind, data=data)


async def owned(world: StorageWorld) -> MeasuredStorage:
    """Return a storage whose shards belong to `a` at epoch 1, where `a` leads the singleton `orders`."""
    storage = await world.storage()
    await storage.take(SHARDS, runner("a"))
    await storage.singletons.lead(leadership("orders", "ada"), "127.0.0.1:7000", None)
    return storage


async def is_refused(commit: Awaitable[bool]) -> bool:
    """Await a commit; return whether it was rolled back."""
    try:
        await commit
    except RolledBack:
        return True
    return False


async def attempts_of(messages: MessageStore, message_id: int) -> int:
    """Return how many runs of a message are counted."""
    row = await messages.find(message_id)
    assert row is not None
    return row.attempts


async def orphans(checkpoints: CheckpointStore, count: int, *, step: int = 1) -> None:
    """Return once `count` orphans were removed, `step` at a time, and there are no others."""
    removed = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while removed < count:
            found = await checkpoints.remove_orphans(0.0, step)
            assert found <= step
            removed += found
    assert removed == count
    assert await checkpoints.remove_orphans(0.0, 100) == 0


class CheckpointWriteSuite:
    """Checkpoints are written and forgotten by the commits of runs."""

    async def test_a_step_is_there_for_whoever_goes_on(self, world: StorageWorld) -> None:
        """After its commit every process finds it, and a scope without steps has none."""
        storage, peer = await owned(world), await world.storage()
        assert await peer.checkpoints.load(scope(7)) == Saved()
        assert await storage.messages.commit_with_checkpoints(noted(steps({"fetch": b"page 1"}, 7)), "a") is False
        await storage.messages.commit_with_checkpoints(noted(steps({"parse": b"", "": b"nameless"}, 7)), "a")
        found = await peer.checkpoints.load(scope(7))
        assert found == Saved(checkpoints={"fetch": b"page 1", "parse": b"", "": b"nameless"})

    async def test_a_stored_step_keeps_its_result(self, world: StorageWorld) -> None:
        """A second result of the same name is refused with all that comes along: what a step leaves, it leaves once."""
        storage = await owned(world)
        await storage.messages.commit_with_checkpoints(noted(steps({"fetch": b"first"})), "a")
        for results in ({"fetch": b"first"}, {"fetch": b"second", "parse": b"third"}):
            with pytest.raises(RolledBack):
                await storage.messages.commit_with_checkpoints(
                    changed(noted(steps(results)), outbox=(message(41),)), "a"
                )
            assert await storage.messages.find(41) is None
        assert (await storage.checkpoints.load(scope())).checkpoints == {"fetch": b"first"}

    async def test_of_two_commits_of_a_step_at_once_one_is_written(self, world: StorageWorld) -> None:
        """The twin of one whose outcome nobody knew: exactly one of them leaves its messages."""
        storage = await owned(world)
        for number in range(10):
            twins = [
                changed(noted(steps({f"{number}": b"%d" % n})), outbox=(message(100 * number + n),)) for n in (1, 2)
            ]
            async with asyncio.TaskGroup() as tasks:
                done = [
                    tasks.create_task(is_refused(storage.messages.commit_with_checkpoints(twin, "a"))) for twin in twins
                ]
            refused = [task.result() for task in done]
            found = [await storage.messages.find(twin.outbox[0].message_id) is not None for twin in twins]
            assert sorted(refused) == [False, True]
            assert found == [not one for one in refused]

    async def test_scopes_share_nothing(self, world: StorageWorld) -> None:
        """Type, id, message and name are compared as they are: no folding, trimming or normalisation."""
        storage = await owned(world)
        messages = [BODY, 1, 2, (1 << 63) - 1]
        for entity_id in ODD_IDS:
            for message_id in messages:
                results = {name: f"{entity_id}/{message_id}/{name}".encode() for name in ODD_IDS}
                made = noted(steps(results, message_id, entity_id=entity_id))
                await storage.messages.commit_with_checkpoints(made, "a")
        for entity_id in ODD_IDS:
            for message_id in messages:
                found = await storage.checkpoints.load(scope(message_id, entity_id))
                assert found.checkpoints == {name: f"{entity_id}/{message_id}/{name}".encode() for name in ODD_IDS}
        assert await storage.checkpoints.load(scope(entity_type="other")) == Saved()

    async def test_a_result_may_be_large(self, world: StorageWorld) -> None:
        """Several megabytes come back as they were."""
        storage = await owned(world)
        data = bytes(range(256)) * (3 * 1024 * 4)
        await storage.messages.commit_with_checkpoints(noted(steps({"large": data, "small": b"1"}, 7)), "a")
        assert (await storage.checkpoints.load(scope(7))).checkpoints == {"large": data, "small": b"1"}

    async def test_state_messages_and_steps_are_committed_together(self, world: StorageWorld) -> None:
        """All are there at once, and the statistics count one run."""
        storage = await owned(world)
        made = changed(noted(steps({"fetch": b"1"}), 1), outbox=(message(10, "told"),))
        before = storage.statistics().settled
        await storage.messages.commit_with_checkpoints(made, "a")
        assert await storage.load_state("orders", "ada") == StoredState(1, b"v1")
        assert await backlog(storage.messages) == [10]
        assert (await storage.checkpoints.load(scope())).checkpoints == {"fetch": b"1"}
        assert storage.statistics().settled == before + 1

    async def test_a_run_without_notes_is_committed_as_ever(self, world: StorageWorld) -> None:
        """It settles its message and counts the next run."""
        storage = await owned(world)
        await stored(storage.messages, [message(1), message(2)])
        assert (
            await storage.messages.commit_with_checkpoints(changed(run(message(1), 1), next_start=start(2)), "a")
            is True
        )
        assert await attempts_of(storage.messages, 2) == 1
        assert await backlog(storage.messages) == [2]

    @pytest.mark.parametrize("reason", [Fenced, VersionConflict, NotPending, DuplicateKey])
    async def test_a_refused_run_leaves_no_notes(self, world: StorageWorld, reason: type[Exception]) -> None:
        """Whichever part is refused: no step is written, none forgotten, no attempts are set back."""
        storage = await owned(world)
        messages = storage.messages
        await stored(messages, [changed(message(1), attempts=3), keyed(message(2), "used", b"other")])
        await messages.commit_with_checkpoints(noted(steps({"fetch": b"1"}, 1)), "a")
        await messages.start_run(start(1, 3), "a")
        refused = changed(run(message(1), 1), checkpoints=closing(1))
        if reason is Fenced:
            await take_over(storage, SHARDS[:1], runner("b"))
        elif reason is VersionConflict:
            refused = changed(refused, version=2)
        elif reason is NotPending:
            refused = changed(refused, message_id=9)
        else:
            refused = changed(refused, outbox=(keyed(message(13), "used"),))
        before = storage.statistics().refused
        for notes in (refused.checkpoints, steps({"parse": b"2"}, 1)):
            with pytest.raises(reason):
                await messages.commit_with_checkpoints(changed(refused, checkpoints=notes), "a")
        assert storage.statistics().refused == before + 2
        assert await storage.checkpoints.load(scope(1)) == Saved(checkpoints={"fetch": b"1"})
        assert await attempts_of(messages, 1) == 3
        assert await storage.load_state("orders", "ada") is None

    async def test_a_former_owner_notes_nothing(self, world: StorageWorld) -> None:
        """Neither the old epoch nor the old incarnation writes or forgets a step, of notes alone as well."""
        storage, peer = await owned(world), await world.storage()
        await storage.messages.commit_with_checkpoints(noted(steps({"fetch": b"1"})), "a")
        await storage.checkpoints.complete(outcome("t"))
        await take_over(peer, SHARDS[:1], runner("b"))
        for notes in (steps({"late": b"2"}), steps({"late": b"2"}, 7), closing(), closing(7)):
            for epoch, incarnation in ((1, "a"), (2, "a"), (1, "b"), (3, "b")):
                with pytest.raises(Fenced):
                    await storage.messages.commit_with_checkpoints(noted(notes, epoch=epoch), incarnation)
        assert await peer.checkpoints.load(scope()) == Saved(checkpoints={"fetch": b"1"})
        assert await peer.checkpoints.load(scope(7)) == Saved()
        assert await peer.checkpoints.completions([outcome("t").token_hash]) != {}
        await peer.messages.commit_with_checkpoints(noted(closing(), epoch=2), "b")
        assert await peer.checkpoints.load(scope()) == Saved(generation=1)

    async def test_nobody_notes_for_a_released_shard(self, world: StorageWorld) -> None:
        """Without an owner, and before there ever was one, a shard takes no notes."""
        storage = await owned(world)
        await storage.release(dict.fromkeys(SHARDS, 1), "a")
        unknown = ShardId("default", 99)
        for made in (noted(steps({"fetch": b"1"})), noted(closing(), shard=unknown)):
            with pytest.raises(Fenced):
                await storage.messages.commit_with_checkpoints(made, "a")
        assert await storage.checkpoints.load(scope()) == Saved()

    async def test_progress_sets_the_attempts_back(self, world: StorageWorld) -> None:
        """A message with a new step has all its attempts again; its next failure is noted like a first one."""
        storage = await owned(world)
        messages = storage.messages
        await stored(messages, [message(1), message(2)])
        failed = failure(message(1), pause=0.0)
        await messages.fail_run(failed, "a")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await messages.start_run(start(1, 2), "a") is Readiness.EARLY:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await messages.commit_with_checkpoints(noted(steps({"fetch": b"1"}, 1)), "a")
        assert await attempts_of(messages, 1) == 0
        assert (await backlog(messages), await scheduled(messages)) == ([1, 2], [])
        assert await messages.fail_run(failed, "a") > 0
        row = await messages.find(1)
        assert row is not None
        assert [each.attempt for each in row.history] == [1, 1]
        assert row.attempts == 1, "a run that failed after its progress counts"
        await messages.commit_with_checkpoints(noted(steps({"fetch": b"1"})), "a")
        assert await messages.start_run(start(2, 5), "a") is Readiness.RUN
        assert await attempts_of(messages, 2) == 5

    async def test_a_settled_message_has_no_steps(self, world: StorageWorld) -> None:
        """The run that settles it makes them history; outcomes stay a while, for whoever completes too late."""
        storage = await owned(world)
        await stored(storage.messages, [message(1), message(2)])
        for number in (1, 2):
            await storage.messages.commit_with_checkpoints(noted(steps({"fetch": b"%d" % number}, number)), "a")
            await storage.checkpoints.complete(outcome(f"t{number}", of=scope(number)))
        await storage.messages.commit_with_checkpoints(changed(run(message(1), 1), checkpoints=closing(1)), "a")
        assert await storage.checkpoints.load(scope(1)) == Saved()
        assert await storage.checkpoints.load(scope(2)) == Saved(checkpoints={"fetch": b"2"})
        hashes = [outcome(f"t{number}").token_hash for number in (1, 2)]
        assert set(await storage.checkpoints.completions(hashes)) == set(hashes)
        assert not await storage.checkpoints.complete(outcome("t1", b"too late", of=scope(1)))
        assert await backlog(storage.messages) == [2]
        await orphans(storage.checkpoints, 1)
        assert list(await storage.checkpoints.completions(hashes)) == hashes[1:]

    async def test_a_next_run_is_counted_along_with_notes(self, world: StorageWorld) -> None:
        """One that may not start is not counted, and the notes are written nevertheless."""
        storage = await owned(world)
        messages = storage.messages
        await stored(messages, [message(1), message(2), changed(message(3), delay=FAR)])
        for settled, following, counted in ((1, 2, True), (2, 3, False)):
            await messages.commit_with_checkpoints(noted(steps({"fetch": b"1"}, settled)), "a")
            made = changed(run(message(settled)), checkpoints=closing(settled), next_start=start(following, 4))
            assert await messages.commit_with_checkpoints(made, "a") is counted
            assert await messages.commit_with_checkpoints(made, "a") is False
            assert await attempts_of(messages, following) == (4 if counted else 0)
            assert await storage.checkpoints.load(scope(settled)) == Saved()

    async def test_a_saved_body_begins_its_next_generation(self, world: StorageWorld) -> None:
        """Its steps are history with the state that they led to, and their names are free again."""
        storage = await owned(world)
        for generation in range(3):
            await storage.messages.commit_with_checkpoints(noted(steps({"fetch": b"%d" % generation})), "a")
            found = await storage.checkpoints.load(scope())
            assert found == Saved(generation=generation, checkpoints={"fetch": b"%d" % generation})
            await storage.messages.commit_with_checkpoints(noted(closing(), generation + 1), "a")
        assert await storage.checkpoints.load(scope()) == Saved(generation=3)
        assert await storage.load_state("orders", "ada") == StoredState(3, b"v3")

    async def test_steps_of_the_commit_that_closes_are_history_too(self, world: StorageWorld) -> None:
        """Nothing is left of notes that store and close."""
        storage = await owned(world)
        made = changed(closing(), stored=(Checkpoint("last", b"1"),))
        await storage.messages.commit_with_checkpoints(noted(made, 1), "a")
        assert await storage.checkpoints.load(scope()) == Saved(generation=1)

    async def test_a_repeated_commit_changes_no_notes(self, world: StorageWorld) -> None:
        """What was written before was written with its notes: no second generation, no step of the next one lost."""
        storage, peer = await owned(world), await world.storage()
        made = noted(closing(), 1)
        await storage.messages.commit_with_checkpoints(made, "a")
        await storage.messages.commit_with_checkpoints(made, "a")
        await storage.messages.commit_with_checkpoints(noted(steps({"fetch": b"1"})), "a")
        await storage.messages.commit_with_checkpoints(made, "a")
        await take_over(peer, SHARDS, runner("b"))
        await storage.messages.commit_with_checkpoints(made, "a")
        assert await storage.checkpoints.load(scope()) == Saved(generation=1, checkpoints={"fetch": b"1"})

    async def test_versions_are_shared_with_other_commits(self, world: StorageWorld) -> None:
        """A save goes on from what a plain commit left, and the other way round."""
        storage = await owned(world)
        await storage.messages.commit_with_checkpoints(noted(closing(), 1), "a")
        await storage.commit_state(StateCommit(SHARDS[0], 1, "orders", "ada", 2, b"two"), "a")
        with pytest.raises(VersionConflict):
            await storage.messages.commit_with_checkpoints(noted(closing(), 2), "a")
        await storage.messages.commit_with_checkpoints(noted(closing(), 3), "a")
        assert await storage.load_state("orders", "ada") == StoredState(3, b"v3")
        assert await storage.checkpoints.load(scope()) == Saved(generation=2)

    async def test_a_state_tells_its_age(self, world: StorageWorld) -> None:
        """It grows until the next commit, by the store's clock."""
        storage = await owned(world)
        await storage.messages.commit_with_checkpoints(noted(closing(), 1), "a")
        ages = [0.0]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while ages[-1] < 0.05:
                found = await storage.load_state("orders", "ada")
                assert found is not None
                assert found.age >= ages[-1]
                ages.append(found.age)
        for commit in (
            StateCommit(SHARDS[0], 1, "orders", "ada", 2, b""),
            StateCommit(SHARDS[0], 1, "new", "", 1, b""),
        ):
            await storage.commit_state(commit, "a")
        fresh = await storage.load_state("new", "")
        assert fresh is not None
        assert 0 <= fresh.age < PATIENCE_SECONDS


class CompletionSuite:
    """Outcomes of deferred values, and what is left of messages that are gone."""

    async def test_the_first_completion_wins(self, world: StorageWorld) -> None:
        """It may be repeated; another value, and a failure, come too late."""
        storage, peer = await world.storage(), await world.storage()
        first = outcome("t", b"first", of=scope(7))
        late = [outcome("t", b"second", of=scope(7)), changed(first, kind=CompletionKind.FAILED)]
        assert await storage.checkpoints.complete(first)
        for again in (first, *late):
            assert await peer.checkpoints.complete(again) is (again is first)
        assert await peer.checkpoints.completions([first.token_hash]) == {first.token_hash: first}

    async def test_outcomes_are_found_by_their_tokens(self, world: StorageWorld) -> None:
        """Those that have none are left out; asking for nothing returns nothing."""
        checkpoints = (await world.storage()).checkpoints
        made = [outcome(f"t{number}", bytes([number]) * 1000, of=scope(number)) for number in range(20)]
        failed = outcome("failed", b"error", of=scope(3, "日本 語"), kind=CompletionKind.FAILED)
        for each in (*made[:10], failed):
            await checkpoints.complete(each)
        assert await checkpoints.completions([]) == {}
        wanted = [each.token_hash for each in (*made[5:], failed)]
        assert await checkpoints.completions(wanted) == {each.token_hash: each for each in (*made[5:10], failed)}

    async def test_of_rivals_at_once_one_wins(self, world: StorageWorld) -> None:
        """However many complete a value from wherever, all see the same outcome."""
        checkpoints = [(await world.storage()).checkpoints for _ in range(4)]
        for turn in range(10):
            async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
                made = [outcome(f"t{turn}", b"%d" % place) for place in range(4)]
                done = [tasks.create_task(each.complete(mine)) for each, mine in zip(checkpoints, made, strict=True)]
            [winner] = [mine for mine, task in zip(made, done, strict=True) if task.result()]
            assert await checkpoints[0].completions([winner.token_hash]) == {winner.token_hash: winner}

    async def test_what_is_left_of_gone_messages_is_forgotten(self, world: StorageWorld) -> None:
        """Pending messages, dead letters and bodies keep what they have; of others it goes, in small steps."""
        storage = await owned(world)
        messages, checkpoints = storage.messages, storage.checkpoints
        await stored(messages, [message(number) for number in range(1, 6)])
        for number in (BODY, *range(1, 7)):
            await messages.commit_with_checkpoints(noted(steps({"a": b"1", "b": b"2"}, number)), "a")
            await checkpoints.complete(outcome(f"t{number}", of=scope(number)))
        await messages.commit_run(run(message(1)), "a")
        await messages.cancel(2, SHARDS[0], 1, incarnation="a", retention=FAR)
        await messages.fail_run(failure(message(3)), "a")
        await messages.fail_run(failure(message(4), pause=FAR), "a")
        assert await checkpoints.remove_orphans(FAR, 100) == 0
        await orphans(checkpoints, 9, step=2)
        for number in range(7):
            is_kept = number not in {1, 2, 6}
            found = await checkpoints.load(scope(number))
            assert found.checkpoints == ({"a": b"1", "b": b"2"} if is_kept else {})
            assert bool(await checkpoints.completions([outcome(f"t{number}").token_hash])) is is_kept

    async def test_the_cluster_has_one_secret(self, world: StorageWorld) -> None:
        """Whoever asks, first or later or all at once, gets the same 16 bytes."""
        storages = [await world.storage() for _ in range(4)]
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(each.secret()) for each in storages]
        [secret] = {each.result() for each in asked}
        assert len(secret) == 16
        assert await (await world.storage()).secret() == secret
