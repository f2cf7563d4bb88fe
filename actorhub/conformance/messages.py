"""The promises of `actorhub.storage.message_ports` about storing and loading, as tests that every store must pass.

Subclass `StoreSuite` and `LoadSuite` in a test module, likewise the suites of `message_runs` and
`message_care`, and give it a fixture `world` that makes the storages of one test.
"""

import asyncio
from asyncio import Future
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TypeVar

import msgspec
import pytest

from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, StorageWorld, runner, take_over
from actorhub.core.address import ShardId
from actorhub.core.errors import PersistenceError
from actorhub.storage.message_ports import (
    MessageStore,
    NewMessage,
    Outcome,
    PendingMessage,
    RunCommit,
    RunFailure,
    Stored,
    StoredReply,
    Verdict,
)

ResultT = TypeVar("ResultT")

changed = msgspec.structs.replace
"""Returns a copy of a struct with other fields."""

FAR = 3600.0
"""Seconds until something that does not happen during a test."""

ODD_IDS = [
    "日本 語",
    "🦊" * 30,
    "a'b\"c\\d%",
    "e\u0301",
    "\u00e9",
    " ",
    "  ",
    "A",
    "a",
    "B",
    "b",
    "a ",
    "_",
    "-1",
    "10",
    "9",
]
"""Ids that a store must neither fold, trim nor normalise."""


def message(message_id: int, entity_id: str = "ada", *, shard: ShardId = SHARDS[0], epoch: int = 1) -> NewMessage:
    """Return a message to an order."""
    return NewMessage(
        message_id=message_id,
        shard=shard,
        epoch=epoch,
        entity_type="orders",
        entity_id=entity_id,
        handler="place",
        body=b"arguments %d" % message_id,
    )


def keyed(made: NewMessage, key: str, payload: bytes = b"same") -> NewMessage:
    """Return `made` with an idempotency key."""
    return changed(made, key=key, payload_hash=blake2b(payload, digest_size=16).digest())


def pending(made: NewMessage, *, attempts: int = 0) -> PendingMessage:
    """Return `made` as its owner loads it, where it is due at once."""
    return PendingMessage(
        message_id=made.message_id,
        shard=made.shard,
        entity_type=made.entity_type,
        entity_id=made.entity_id,
        handler=made.handler,
        body=made.body,
        headers=made.headers,
        key=made.key,
        attempts=attempts,
    )


def run(made: NewMessage, version: int = 0, *, value: bytes = b"value") -> RunCommit:
    """Return what a run of `made` leaves behind: a value, and with `version` a state."""
    return RunCommit(
        shard=made.shard,
        epoch=made.epoch,
        entity_type=made.entity_type,
        entity_id=made.entity_id,
        version=version,
        data=b"v%d" % version if version else b"",
        message_id=made.message_id,
        reply=StoredReply(Outcome.VALUE, value),
    )


def failure(made: NewMessage, attempts: int = 1, *, pause: float | None = None) -> RunFailure:
    """Return a failed run of `made`; without a pause it was the last."""
    return RunFailure(
        shard=made.shard,
        epoch=made.epoch,
        message_id=made.message_id,
        pause=pause,
        attempts=attempts,
        error=b"error %d" % attempts,
        error_type="ValueError",
        error_text=f"failure {attempts}",
        traceback="Traceback …",
    )


async def opened(world: StorageWorld) -> MessageStore:
    """Return the messages of a storage whose shards belong to `a` at epoch 1."""
    storage = await world.storage()
    await storage.take(SHARDS, runner("a"))
    return storage.messages


async def stored(messages: MessageStore, made: Iterable[NewMessage]) -> list[Stored]:
    """Return the answers to `made`, stored at once by `a`."""
    return await results([messages.store(each, "a") for each in made])


async def results(futures: Sequence["Future[ResultT]"]) -> list[ResultT]:
    """Return what the futures bring."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [await future for future in futures]


async def failures(futures: Sequence["Future[ResultT]"]) -> list[type[BaseException] | None]:
    """Return the classes of the errors that the futures bring, `None` for a result."""
    await asyncio.wait(futures, timeout=PATIENCE_SECONDS)
    raised = [future.exception() for future in futures]
    return [None if error is None else type(error) for error in raised]


async def backlog(messages: MessageStore, shards: Sequence[ShardId] = SHARDS) -> list[int]:
    """Return the ids of all messages of `shards` that are due at once."""
    found, done = await messages.load_backlog(dict.fromkeys(shards, ("", "")), 1000, 1000)
    assert done == frozenset(shards)
    return sorted(each.message_id for each in found)


async def scheduled(messages: MessageStore, within: float = 2 * FAR) -> list[int]:
    """Return the ids of all messages with a due time that ends `within` seconds, by that."""
    found, _ = await messages.load_scheduled(SHARDS, await store_time(messages) + within, 1000)
    return [each.message_id for each in found]


async def store_time(messages: MessageStore) -> float:
    """Return the store's clock."""
    _, now = await messages.load_scheduled(SHARDS, 0.0, 1)
    return now


class StoreSuite:
    """How messages get into the store."""

    async def test_a_message_is_loaded_as_it_was_stored(self, world: StorageWorld) -> None:
        """Every field comes back, odd text and any bytes included."""
        messages = await opened(world)
        plain = message(1)
        rich = changed(
            keyed(message(2, "日本 '\" 語", shard=SHARDS[3]), "clé 🦊"),
            body=bytes(range(256)) * 1000,
            headers={"traceparent": "00-ab", "クラス": ""},
            attempts=1,
        )
        for made, attempts in ((plain, 0), (rich, 1)):
            [answer] = await stored(messages, [made])
            assert answer == Stored(verdict=Verdict.NEW, message_id=made.message_id)
            [found] = await messages.load_entities([(made.shard, "orders", made.entity_id)], 10)
            assert found == pending(made, attempts=attempts)

    async def test_a_message_is_stored_once_per_id(self, world: StorageWorld) -> None:
        """The same message again, at once or later, by its owner or as a deposit, changes nothing."""
        messages = await opened(world)
        first, twin = await stored(messages, [message(1), message(1)])
        again = await messages.store(changed(message(1), repeated=True, attempts=1), "a")
        deposited = await messages.deposit(message(1))
        assert [first.verdict, twin.verdict, again.verdict, deposited.verdict] == [Verdict.NEW] + [Verdict.PENDING] * 3
        assert {first.message_id, twin.message_id, again.message_id, deposited.message_id} == {1}
        assert await messages.load_entities([(SHARDS[0], "orders", "ada")], 10) == [pending(message(1))]

    async def test_a_key_names_one_message(self, world: StorageWorld) -> None:
        """A second message with the key learns of the first, one with another payload is refused; neither is stored."""
        messages = await opened(world)
        await stored(messages, [keyed(message(1), "k")])
        same, other = await stored(messages, [keyed(message(2), "k"), keyed(message(3), "k", b"other")])
        assert same == Stored(verdict=Verdict.PENDING, message_id=1)
        assert other == Stored(verdict=Verdict.DUPLICATE_KEY, message_id=1)
        deposits = [messages.deposit(keyed(message(4), "k")), messages.deposit(keyed(message(5), "k", b"other"))]
        assert [each.verdict for each in await results(deposits)] == [Verdict.PENDING, Verdict.DUPLICATE_KEY]
        assert await backlog(messages) == [1]
        assert [await messages.find(message_id) for message_id in (2, 3, 4, 5)] == [None] * 4

    async def test_messages_of_one_key_that_are_stored_at_once_become_one(self, world: StorageWorld) -> None:
        """Whatever the number of processes, one is new, the others learn its id, another payload is refused."""
        first, second = await opened(world), (await world.storage()).messages
        futures = [
            (first, second)[number % 2].store(keyed(message(number), "k", b"%d" % (number // 20)), "a")
            for number in range(1, 22)
        ]
        answers = await results(futures)
        [winner] = [each.message_id for each in answers if each.verdict is Verdict.NEW]
        assert {each.message_id for each in answers} == {winner}
        refused = sum(each.verdict is Verdict.DUPLICATE_KEY for each in answers)
        assert refused == (2 if winner < 20 else 19)
        assert await backlog(first) == [winner]

    async def test_a_key_belongs_to_entity_and_handler(self, world: StorageWorld) -> None:
        """The same key elsewhere, and every other text, is another key: nothing is folded, cut or joined."""
        messages = await opened(world)
        alike = [
            changed(message(0), key="k"),
            changed(message(0), key="k", handler="cancel"),
            changed(message(0), key="k", entity_type="baskets"),
            changed(message(0, "eve"), key="k"),
            changed(message(0, "e"), key="vek"),
            *(changed(message(0), key=key) for key in ("K", "k ", "", "é", "e\u0301", "x" * 10_000, "x" * 9_999 + "y")),
        ]
        made = [keyed(each, each.key or "", b"%d" % n) for n, each in enumerate(alike)]
        made = [changed(each, message_id=number) for number, each in enumerate(made, 1)]
        assert {answer.verdict for answer in await stored(messages, made)} == {Verdict.NEW}
        again = [changed(each, message_id=each.message_id + 100) for each in made]
        answers = await stored(messages, again)
        assert answers == [Stored(verdict=Verdict.PENDING, message_id=each.message_id) for each in made]

    async def test_a_late_caller_gets_the_stored_reply(self, world: StorageWorld) -> None:
        """After the message was settled, its id (if it says so) and its key lead to the reply; nothing is stored."""
        messages = await opened(world)
        made = [keyed(message(1), "k"), message(2)]
        await stored(messages, made)
        error = changed(run(made[1]), reply=StoredReply(Outcome.ERROR, b"sold out"))
        await results([messages.commit_run(run(made[0]), "a"), messages.commit_run(error, "a")])
        late = [changed(made[0], repeated=True), changed(made[1], repeated=True), keyed(message(3), "k")]
        expected = [(1, Outcome.VALUE, b"value"), (2, Outcome.ERROR, b"sold out"), (1, Outcome.VALUE, b"value")]
        for answers in (await stored(messages, late), await results([messages.deposit(each) for each in late])):
            assert {answer.verdict for answer in answers} == {Verdict.SETTLED}
            replies = [(answer.message_id, answer.reply) for answer in answers]
            assert replies == [(message_id, StoredReply(outcome, body)) for message_id, outcome, body in expected]
        [refused] = await stored(messages, [keyed(message(4), "k", b"other")])
        assert (refused.verdict, refused.message_id) == (Verdict.DUPLICATE_KEY, 1)
        assert await backlog(messages) == []

    async def test_only_the_owner_stores(self, world: StorageWorld) -> None:
        """Another incarnation, an older or later epoch, and a shard that nobody owns are refused: nothing is stored."""
        storage, peer = await world.storage(), await world.storage()
        unowned = await storage.messages.store(message(9, epoch=0), "a")
        await storage.take(SHARDS, runner("a"))
        await take_over(peer, SHARDS[:1], runner("b"))
        await storage.release({SHARDS[1]: 1}, "a")
        refused = [
            storage.messages.store(message(1), "a"),
            storage.messages.store(message(2, epoch=2), "a"),
            storage.messages.store(message(3, shard=SHARDS[1]), "a"),
            peer.messages.store(message(4), "b"),
            peer.messages.store(message(5, epoch=3), "b"),
        ]
        answers = [unowned, *await results(refused)]
        assert answers == [Stored(verdict=Verdict.FENCED, message_id=each) for each in (9, 1, 2, 3, 4, 5)]
        assert await backlog(storage.messages) == []
        assert (await peer.messages.store(message(1, epoch=2), "b")).verdict is Verdict.NEW

    async def test_each_message_of_a_group_gets_its_own_answer(self, world: StorageWorld) -> None:
        """Refused and repeated messages fail no neighbour, nor does one that cannot be written."""
        messages = await opened(world)
        await stored(messages, [keyed(message(1), "k")])
        made = [message(number, f"e{number}") for number in range(10, 30)]
        made[3] = changed(made[3], epoch=7)
        made[5] = keyed(message(15), "k", b"other")
        made[7] = message(1)
        futures = [messages.store(each, "a") for each in made]
        broken = messages.store(message(99, "\ud800"), "a")
        verdicts = [answer.verdict for answer in await results(futures)]
        expected = {3: Verdict.FENCED, 5: Verdict.DUPLICATE_KEY, 7: Verdict.PENDING}
        assert verdicts == [expected.get(number, Verdict.NEW) for number in range(20)]
        await asyncio.wait([broken], timeout=PATIENCE_SECONDS)
        assert broken.exception() is None or isinstance(broken.exception(), PersistenceError)

    async def test_a_due_time_is_kept_by_the_stores_clock(self, world: StorageWorld) -> None:
        """A delay counts from the store's now, a moment stays as it is, and the answer tells both."""
        messages = await opened(world)
        before = await store_time(messages)
        delayed, at = await stored(
            messages, [changed(message(1), delay=FAR), changed(message(2), deliver_at=before + 2 * FAR)]
        )
        after = await store_time(messages)
        assert before + FAR <= delayed.deliver_at <= after + FAR
        assert at.deliver_at == pytest.approx(before + 2 * FAR, abs=1e-3)
        assert before <= delayed.now <= after
        assert before <= at.now <= after
        again = await messages.store(changed(message(1), delay=5 * FAR), "a")
        assert (again.verdict, again.deliver_at) == (Verdict.PENDING, delayed.deliver_at)
        assert await backlog(messages) == []
        found, _ = await messages.load_scheduled(SHARDS, after + 3 * FAR, 10)
        assert [(each.message_id, each.deliver_at) for each in found] == [(1, delayed.deliver_at), (2, at.deliver_at)]

    async def test_a_past_time_is_due_at_once(self, world: StorageWorld) -> None:
        """A message for a moment that is over waits in line with the others."""
        messages = await opened(world)
        now = await store_time(messages)
        late = [changed(message(1), deliver_at=now - FAR), changed(message(2), delay=0.0), message(3)]
        assert [(each.deliver_at, each.now) for each in await stored(messages, late)] == [(0.0, 0.0)] * 3
        assert await backlog(messages) == [1, 2, 3]

    async def test_a_deposit_needs_no_owner(self, world: StorageWorld) -> None:
        """Whoever takes the shard next finds it; the epoch is not looked at."""
        storage, owner = await world.storage(), await world.storage()
        made = [message(1, epoch=0), changed(message(2, epoch=9), delay=FAR)]
        assert [each.verdict for each in await results([storage.messages.deposit(each) for each in made])] == [
            Verdict.NEW
        ] * 2
        await owner.take(SHARDS, runner("a"))
        assert await backlog(owner.messages) == [1]
        assert await scheduled(owner.messages) == [2]
        await storage.messages.deposit(message(3))
        assert await backlog(owner.messages) == [1, 3]

    async def test_what_was_deposited_before_a_take_is_found_after_it(self, world: StorageWorld) -> None:
        """No deposit slips through while the shard changes hands: acknowledged before the take, found after it."""
        depositor, owner = await world.storage(), await world.storage()
        acknowledged: list[int] = []

        async def deposit() -> None:
            for number in range(1, 101):
                await depositor.messages.deposit(message(number, f"e{number}"))
                acknowledged.append(number)

        async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            deposits = tasks.create_task(deposit())
            while not deposits.done():
                before = list(acknowledged)
                await take_over(owner, SHARDS, runner("b"))
                assert set(before) <= set(await backlog(owner.messages))
        assert await backlog(owner.messages) == acknowledged

    async def test_a_cancelled_request_harms_no_other(self, world: StorageWorld) -> None:
        """Cancelled futures drop their own results alone."""
        messages = await opened(world)
        futures = [messages.store(message(number), "a") for number in range(1, 7)]
        for future in (futures[0], futures[3]):
            future.cancel()
        answers = await results([futures[number] for number in (1, 2, 4, 5)])
        assert [(each.verdict, each.message_id) for each in answers] == [
            (Verdict.NEW, number) for number in (2, 3, 5, 6)
        ]

    async def test_a_closed_storage_takes_no_messages(self, world: StorageWorld) -> None:
        """What was queued before the end is done, and everything after it fails."""
        storage, peer = await world.storage(), await world.storage()
        await storage.take(SHARDS, runner("a"))
        queued = storage.messages.store(message(1), "a")
        await storage.aclose()
        assert queued.done()
        assert queued.exception() is None
        assert await backlog(peer.messages) == [1]
        with pytest.raises(PersistenceError):
            await storage.messages.store(message(2), "a")
        with pytest.raises(PersistenceError):
            await storage.messages.find(1)


class LoadSuite:
    """How an owner finds messages."""

    async def test_the_backlog_is_read_entity_by_entity(self, world: StorageWorld) -> None:
        """Each call gives the first messages of the next entities of each shard, and says where nothing is left."""
        messages = await opened(world)
        one = [message(10 * number + turn, f"e{number}") for number in range(1, 6) for turn in (3, 1, 2)]
        two = [message(100 + number, f"x{number}", shard=SHARDS[1]) for number in range(2)]
        await stored(messages, [*one, *two, changed(message(900, "e0"), delay=FAR)])
        places = {SHARDS[0]: ("", ""), SHARDS[1]: ("", ""), SHARDS[2]: ("", "")}
        found, done = await messages.load_backlog(places, 2, 2)
        assert ids_by_entity(found) == {"e1": [11, 12], "e2": [21, 22], "x0": [100], "x1": [101]}
        assert [each.message_id for each in found if each.shard == SHARDS[0]] == [11, 12, 21, 22]
        assert done == {SHARDS[1], SHARDS[2]}
        found, done = await messages.load_backlog({SHARDS[0]: ("orders", "e2")}, 2, 10)
        assert ids_by_entity(found) == {"e3": [31, 32, 33], "e4": [41, 42, 43]}
        assert done == frozenset()
        found, done = await messages.load_backlog({SHARDS[0]: ("orders", "e4"), SHARDS[1]: ("orders", "x")}, 1, 1)
        assert ids_by_entity(found) == {"e5": [51], "x0": [100]}
        assert done == {SHARDS[0]}
        found, done = await messages.load_backlog({SHARDS[0]: ("orders", "e5")}, 2, 2)
        assert not found
        assert done == {SHARDS[0]}

    async def test_a_walk_through_the_backlog_meets_every_entity_once(self, world: StorageWorld) -> None:
        """Types and ids of any text have one order, and the cursor follows it."""
        messages = await opened(world)
        entities = [(entity_type, each) for entity_type in ("Orders", "orders", "orders2") for each in ODD_IDS]
        made = [
            changed(message(number, entity_id), entity_type=entity_type)
            for number, (entity_type, entity_id) in enumerate(entities, 1)
        ]
        await stored(messages, made)
        met = [("", "")]
        done = frozenset[ShardId]()
        while not done:
            found, done = await messages.load_backlog({SHARDS[0]: met[-1]}, 5, 1)
            met += [(each.entity_type, each.entity_id) for each in found]
        assert met[1:] == sorted(entities)

    async def test_only_due_pending_messages_are_a_backlog(self, world: StorageWorld) -> None:
        """Settled, cancelled, dead and scheduled ones, and those that wait for their next run, are not met."""
        messages = await opened(world)
        made = [message(number) for number in range(1, 7)]
        made[5] = changed(made[5], delay=FAR)
        await stored(messages, made)
        await messages.commit_run(run(made[0]), "a")
        await messages.cancel(2, SHARDS[0], 1, incarnation="a", retention=FAR)
        await messages.fail_run(failure(made[2]), "a")
        await messages.fail_run(failure(made[3], pause=FAR), "a")
        assert await backlog(messages) == [5]
        assert await messages.load_entities([(SHARDS[0], "orders", "ada")], 10) == [pending(made[4])]
        assert sorted(await scheduled(messages)) == [4, 6]

    async def test_entities_are_loaded_by_name(self, world: StorageWorld) -> None:
        """Of each named entity the first messages by id; nothing of others, and nothing for no names."""
        messages = await opened(world)
        made = [message(number, f"e{number % 3}", shard=SHARDS[number % 3]) for number in range(30, 0, -1)]
        await stored(messages, made)
        wanted = [(SHARDS[0], "orders", "e0"), (SHARDS[2], "orders", "e2"), (SHARDS[2], "orders", "e1")]
        found = await messages.load_entities([*wanted, (SHARDS[2], "other", "e2")], 3)
        assert ids_by_entity(found) == {"e0": [3, 6, 9], "e2": [2, 5, 8]}
        assert await messages.load_entities([], 3) == []
        found, done = await messages.load_backlog({}, 3, 3)
        assert not found
        assert not done

    async def test_scheduled_messages_are_read_by_due_time(self, world: StorageWorld) -> None:
        """Of the named shards, those due before the given moment, the earliest first, as many as asked for."""
        messages = await opened(world)
        now = await store_time(messages)
        due = {1: 300.0, 2: 100.0, 3: 200.0, 4: 150.0, 5: 400.0}
        made = [
            changed(message(number, f"e{number}", shard=SHARDS[1 if number == 4 else 0]), deliver_at=now + FAR + after)
            for number, after in due.items()
        ]
        await stored(messages, made)
        found, clock = await messages.load_scheduled(SHARDS[:1], now + FAR + 301, 10)
        assert [each.message_id for each in found] == [2, 3, 1]
        assert found[0] == changed(pending(made[1]), deliver_at=found[0].deliver_at)
        assert now <= clock <= now + PATIENCE_SECONDS
        found, _ = await messages.load_scheduled(SHARDS[:2], now + 2 * FAR, 3)
        assert [each.message_id for each in found] == [2, 4, 3]
        assert (await messages.load_scheduled([], now + 2 * FAR, 3))[0] == []
        assert (await messages.load_scheduled(SHARDS, now + FAR, 3))[0] == []

    async def test_overdue_messages_ripen(self, world: StorageWorld) -> None:
        """A due message is found by its due time until it is moved in line; one that is not due stays where it is."""
        messages = await opened(world)
        made = [changed(message(1), delay=0.02), changed(message(2), delay=FAR), message(3), message(4)]
        first, *_ = await stored(messages, made)
        await messages.commit_run(run(made[3]), "a")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await store_time(messages) <= first.deliver_at:  # noqa: ASYNC110 - only the store's clock tells
                await asyncio.sleep(0.01)
        assert await scheduled(messages, 0.0) == [1]
        assert await backlog(messages) == [3]
        await messages.promote_due([1, 2, 3, 4, 5])
        await messages.promote_due([])
        assert await backlog(messages) == [1, 3]
        assert await scheduled(messages) == [2]
        assert await messages.load_entities([(SHARDS[0], "orders", "ada")], 1) == [pending(made[0])]


def ids_by_entity(found: Iterable[PendingMessage]) -> dict[str, list[int]]:
    """Return the message ids of each entity id, in the order in which they were found."""
    grouped: dict[str, list[int]] = {}
    for each in found:
        grouped.setdefault(each.entity_id, []).append(each.message_id)
    return grouped
