"""The promises of the storage ports about entities whose shard becomes another one, as tests for every storage.

Subclass `MovedEntitySuite` in a test module, and give it a fixture `world` that makes the storages of one test.
"""

import pytest

from actorhub.conformance.messages import (
    FAR,
    changed,
    failure,
    failures,
    keyed,
    message,
    opened,
    pending,
    results,
    run,
    stored,
)
from actorhub.conformance.storage import SHARDS, StorageWorld, commit, lock_session, outcomes, runner
from actorhub.core.address import ShardId
from actorhub.storage.message_ports import MessageStore, NotPending, RunStart, Verdict
from actorhub.storage.ports import Fenced, Storage, StoredState, VersionConflict

HERE, THERE, ELSEWHERE = SHARDS[0], SHARDS[1], ShardId("other", 0)
ADA = ("orders", "ada")


async def waiting_in(messages: MessageStore, shard: ShardId) -> list[int]:
    """Return the ids of an order's messages that are due at once, as the owner of the shard loads them."""
    return [row.message_id for row in await messages.load_entities([(shard, *ADA)], 100)]


async def home_of(storage: Storage) -> tuple[int, ShardId | None]:
    """Return the version of an order's state, and its shard."""
    state = await storage.load_state(*ADA)
    assert state is not None
    return state.version, state.shard


class MovedEntitySuite:
    """A release of a program places entities in other shards than the one before, and both may run."""

    async def test_epochs_of_different_shards_are_not_compared(self, world: StorageWorld) -> None:
        """What was committed in a shard with many owners is followed by commits in one with few, and back."""
        storage = await world.storage()
        for _ in range(9):
            await storage.take([HERE], runner("a"))
        await storage.take([THERE, ELSEWHERE], runner("a"))
        made = message(1, shard=ELSEWHERE)
        await storage.messages.store(made, "a")
        await storage.commit_state(commit("ada", 1, epoch=9), "a")
        await storage.commit_state(commit("ada", 2, shard=THERE), "a")
        await storage.messages.commit_run(run(made, 3), "a")
        await storage.commit_state(commit("ada", 4, epoch=9), "a")
        assert await home_of(storage) == (4, HERE)

    async def test_a_commit_in_another_shard_is_not_taken_for_a_repetition(self, world: StorageWorld) -> None:
        """Two owners that write the same bytes as the same version at the same epoch: one of them is refused."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        await storage.commit_state(commit("ada", 1), "a")
        refused = await outcomes(storage, [commit("ada", 1, shard=THERE)], "a")
        assert [type(error) for error in refused] == [VersionConflict]
        volatile = changed(run(message(0, "eve"), 1), reply=None)
        await storage.messages.commit_run(volatile, "a")
        with pytest.raises(VersionConflict):
            await storage.messages.commit_run(changed(volatile, shard=THERE), "a")
        await stored(storage.messages, [message(1)])
        await storage.messages.commit_run(run(message(1), 2), "a")
        with pytest.raises(NotPending):
            await storage.messages.commit_run(changed(run(message(1), 2), shard=THERE), "a")

    async def test_an_entity_moves_with_its_state_and_messages(self, world: StorageWorld) -> None:
        """In order, with keys, due times and counts; a shard that is neither of the two keeps what it has."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        messages = storage.messages
        await storage.commit_state(commit("ada", 1), "a")
        later, other = changed(message(4), delay=FAR), message(5, shard=SHARDS[2])
        await stored(messages, [message(3), keyed(message(1), "k"), message(2), later, other, message(6, "eve")])
        await messages.start_run(RunStart(2, HERE, 1, 1), "a")
        before = await messages.find(4)
        assert await storage.move_entity(ADA, source=HERE, source_owner="a", target=THERE, incarnation="a") == 4
        assert (await waiting_in(messages, HERE), await waiting_in(messages, THERE)) == ([], [1, 2, 3])
        assert await waiting_in(messages, SHARDS[2]) == [5]
        rows = await messages.load_entities([(THERE, *ADA)], 1)
        assert rows == [pending(changed(keyed(message(1), "k"), shard=THERE))]
        found, after = await messages.find(2), await messages.find(4)
        assert found is not None
        assert before is not None
        assert after is not None
        assert (found.attempts, after.deliver_at, after.shard) == (1, before.deliver_at, THERE)
        assert [row.message_id for row in (await messages.load_scheduled([THERE], FAR * 1e6, 9))[0]] == [4]
        again = await messages.store(keyed(message(9, shard=THERE), "k"), "a")
        assert (again.verdict, again.message_id) == (Verdict.PENDING, 1)
        assert [row.message_id for row in await messages.load_entities([(HERE, "orders", "eve")], 9)] == [6]
        assert await home_of(storage) == (1, THERE)

    async def test_a_moved_entity_goes_on_at_its_new_shard(self, world: StorageWorld) -> None:
        """Whatever the epochs are: its messages run, fail, and are counted there."""
        storage = await world.storage()
        for _ in range(5):
            await storage.take([HERE], runner("a"))
        await storage.take([THERE], runner("b"))
        messages = storage.messages
        await storage.commit_state(commit("ada", 1, epoch=5), "a")
        made = [message(1, epoch=5), message(2, epoch=5)]
        await stored(messages, made)
        await storage.move_entity(ADA, source=HERE, source_owner="a", target=THERE, incarnation="b")
        moved = [changed(each, shard=THERE, epoch=1) for each in made]
        await results([messages.start_run(RunStart(1, THERE, 1, 1), "b")])
        await messages.commit_run(run(moved[0], 2), "b")
        assert await messages.fail_run(failure(moved[1]), "b") == 0
        assert await home_of(storage) == (2, THERE)
        assert await storage.load_state(*ADA) == StoredState(2, b"v2")

    async def test_only_an_owner_of_one_of_the_shards_moves_an_entity(self, world: StorageWorld) -> None:
        """Anybody else is refused, and nothing is moved; moving what is not there moves nothing."""
        storage = await world.storage()
        await storage.take([HERE], runner("a"))
        await storage.take([THERE], runner("b"))
        await stored(storage.messages, [message(1)])
        for source_owner, target, incarnation in (
            ("a", THERE, "c"), ("a", ELSEWHERE, "b"), ("c", THERE, "b"), ("b", THERE, "b"), (None, ELSEWHERE, "c"),
        ):  # fmt: skip
            with pytest.raises(Fenced):
                await storage.move_entity(
                    ADA, source=HERE, source_owner=source_owner, target=target, incarnation=incarnation
                )
        assert await waiting_in(storage.messages, HERE) == [1]
        assert await storage.move_entity(ADA, source=HERE, source_owner="a", target=THERE, incarnation="a") == 1
        assert await storage.move_entity(ADA, source=HERE, source_owner="a", target=THERE, incarnation="b") == 0

    async def test_a_shard_whose_owner_is_gone_gives_its_entities_away(self, world: StorageWorld) -> None:
        """It was released, or its owner is not heard of; that of a living owner does not."""
        storage = await world.storage()
        epochs = await storage.take([HERE], runner("a"))
        await storage.take([THERE], runner("b"))
        await stored(storage.messages, [message(1)])
        async with lock_session(storage, "a") as session:
            await session.heartbeat(runner("a"))
        with pytest.raises(Fenced):
            await storage.move_entity(ADA, source=HERE, source_owner=None, target=THERE, incarnation="b")
        await storage.remove_runner("a")
        assert await storage.move_entity(ADA, source=HERE, source_owner=None, target=THERE, incarnation="b") == 1
        await storage.release(epochs, "a")
        await storage.messages.deposit(message(2))
        assert await storage.move_entity(ADA, source=HERE, source_owner=None, target=THERE, incarnation="b") == 1

    async def test_messages_of_unhosted_groups_are_found(self, world: StorageWorld) -> None:
        """Each entity once, whether its messages are due or not; those of the groups that are named are left out."""
        messages, types = await opened(world), ["orders", "books"]
        strays = [message(1, shard=ELSEWHERE), message(2, shard=ELSEWHERE), message(3, "eve", shard=ELSEWHERE)]
        made = [message(9), *strays[:2], changed(strays[2], delay=FAR)]
        assert await failures([messages.deposit(each) for each in made]) == [None] * 4
        found = [(ELSEWHERE, *ADA), (ELSEWHERE, "orders", "eve")]
        assert await messages.strays(types, ["default"], None, 9) == found
        assert await messages.strays(types, ["default", "other"], None, 9) == []
        assert await messages.strays(["books"], ["default"], None, 9) == []

    async def test_messages_of_unhosted_groups_are_found_page_by_page(self, world: StorageWorld) -> None:
        """By shard, type and id, whatever the messages wait for: one that stays where it is does not hide the next."""
        messages, types = await opened(world), ["orders", "books"]
        shards = (ShardId("lost", 3), ShardId("lost", 20), ShardId("other", 1))
        wanted = [(shard, "orders", name) for shard in shards for name in ("Zoe", "ada", "eve")]
        made = [message(9 - each, name, shard=shard) for each, (shard, _, name) in enumerate(wanted)]
        await failures([messages.deposit(changed(one, delay=FAR) if one.message_id % 2 else one) for one in made])
        found = [await messages.strays(types, ["default"], None, 2)]
        while found[-1]:
            found.append(await messages.strays(types, ["default"], found[-1][-1], 2))
        assert [stray for page in found for stray in page] == wanted
        assert [len(page) for page in found] == [2, 2, 2, 2, 1, 0]
