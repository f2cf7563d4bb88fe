"""The promises of `actorhub.storage.message_ports` about keys, mostly those that runs give: tests for every store."""

import asyncio

from actorhub.conformance.checkpoints import closing, noted, owned, steps
from actorhub.conformance.message_care import cancelled, expired, in_every_state, listed
from actorhub.conformance.messages import FAR, changed, failure, keyed, message, opened, run, store_time, stored
from actorhub.conformance.storage import PATIENCE_SECONDS, StorageWorld
from actorhub.core.idempotency import run_key
from actorhub.storage.message_ports import (
    KeyUse,
    MessageFilter,
    MessageKey,
    MessageState,
    MessageStore,
    NewMessage,
    Outcome,
    StoredReply,
    Verdict,
)


def sent_by(sender: int, number: int) -> NewMessage:
    """Return message `number`, which the run of the durable message `sender` sends."""
    return keyed(message(number, f"e{number}"), run_key((str(sender),), "", b"payload", 1))


def sent_by_body(generation: int, number: int) -> NewMessage:
    """Return message `number`, which the `run` of the singleton `orders` sends."""
    return keyed(message(number, f"e{number}"), run_key(("orders", "ada", str(generation)), "", b"payload", 1))


def key_of(made: NewMessage) -> MessageKey:
    """Return the key of a message that has one."""
    assert made.key is not None
    return MessageKey(made.entity_type, made.entity_id, made.handler, made.key)


async def settled(messages: MessageStore, *made: NewMessage) -> None:
    """Store and settle messages whose retention is over at once."""
    await stored(messages, made)
    for each in made:
        await messages.commit_run(changed(run(each), retention=0.0), "a")


async def all_forgotten(messages: MessageStore, *made: NewMessage) -> None:
    """Settle the messages; return once all of them were forgotten."""
    await settled(messages, *made)
    await expired(messages, len(made))
    for each in made:
        assert await messages.find(each.message_id) is None


async def none_forgotten(messages: MessageStore, *made: NewMessage) -> None:
    """Settle the messages; return once the retention of all of them was prolonged."""
    await settled(messages, *made)
    await expired(messages, len(made))
    for each in made:
        row = await messages.find(each.message_id)
        assert row is not None
        assert row.expires_at is not None
        assert row.finished_at is not None
        assert row.expires_at - row.finished_at > FAR - PATIENCE_SECONDS
    verdicts = {answer.verdict for answer in await stored(messages, [changed(each, message_id=99) for each in made])}
    assert verdicts == {Verdict.SETTLED}


class KeySuite:
    """Freeing keys, and keeping those of what may be sent again."""

    async def test_a_key_leads_to_its_message(self, world: StorageWorld) -> None:
        """With its hash, and with its arguments until it is settled with a reply; a dead letter's are kept."""
        messages = await opened(world)
        made = [keyed(message(number), f"k{number}") for number in range(1, 5)]
        await stored(messages, made)
        await messages.commit_run(run(made[1]), "a")
        await messages.fail_run(changed(failure(made[2])), "a")
        await messages.fail_run(changed(failure(made[3]), frees_key=True), "a")
        found = [await messages.find_key(key_of(each)) for each in made]
        kept = [KeyUse(message_id=each.message_id, payload_hash=each.payload_hash, body=each.body) for each in made]
        assert found == [kept[0], changed(kept[1], body=None), kept[2], None]
        assert await messages.find_key(changed(key_of(made[0]), handler="cancel")) is None

    async def test_a_key_is_freed_if_its_message_ended_with_an_error(self, world: StorageWorld) -> None:
        """Or as a dead letter, or cancelled; one that waits or has a value keeps it, and so does another handler's."""
        messages = await opened(world)
        made = await in_every_state(messages)
        keys = [key_of(each) for each in made.values()]
        await messages.free_keys([*keys, MessageKey("orders", "ada", "place", "unknown")])
        again = {state: keyed(message(30 + n), state.value, b"other") for n, state in enumerate(made)}
        answers = await stored(messages, again.values())
        new = {state for state, answer in zip(again, answers, strict=True) if answer.verdict is Verdict.NEW}
        assert new == {MessageState.FAILED, MessageState.CANCELLED, MessageState.DEAD}
        await messages.free_keys([MessageKey(key.entity_type, key.entity_id, "other", key.key) for key in keys])
        await messages.free_keys([])
        [late] = await stored(messages, [keyed(message(50), MessageState.DEAD.value, b"other")])
        assert (late.verdict, late.message_id) == (Verdict.PENDING, again[MessageState.DEAD].message_id)

    async def test_a_freed_key_belongs_to_the_next_message(self, world: StorageWorld) -> None:
        """That the former one is forgotten or purged changes nothing for it; to retry it is refused."""
        messages = await opened(world)
        failed, dead = keyed(message(1, "e1"), "k"), keyed(message(2, "e2"), "k")
        await stored(messages, [failed, dead])
        refused = changed(run(failed), reply=StoredReply(Outcome.ERROR, b"no"), retention=0.0)
        await messages.commit_run(refused, "a")
        await messages.fail_run(failure(dead), "a")
        await messages.free_keys([key_of(failed), key_of(dead)])
        next_ones = [changed(failed, message_id=11), changed(dead, message_id=12)]
        await stored(messages, next_ones)
        await expired(messages, 1)
        assert await messages.retry([2]) == []
        assert await messages.purge(MessageFilter()) == 1
        assert await listed(messages, MessageFilter()) == [11, 12]
        late = [changed(each, message_id=each.message_id + 10) for each in next_ones]
        answers = await stored(messages, late)
        assert [answer.message_id for answer in answers] == [11, 12]

    async def test_a_dead_letter_that_is_retried_takes_its_freed_key_back(self, world: StorageWorld) -> None:
        """Unless another message has it by then: the next sender joins it, so that it does not run beside another."""
        messages = await opened(world)
        dead = keyed(message(1), "k")
        await stored(messages, [dead])
        await messages.fail_run(failure(dead), "a")
        await messages.free_keys([key_of(dead)])
        assert [each.message_id for each in await messages.retry([1])] == [1]
        [late] = await stored(messages, [changed(dead, message_id=2)])
        assert (late.verdict, late.message_id) == (Verdict.PENDING, 1)

    async def test_a_repeated_request_for_a_dead_letter_takes_no_key(self, world: StorageWorld) -> None:
        """The key that the dead letter left stays free for a corrected message, and comes back with a retry."""
        messages = await opened(world)
        letters = [keyed(message(number, f"e{number}"), "k") for number in (1, 2, 3)]
        await stored(messages, letters)
        for letter in letters:
            await messages.fail_run(changed(failure(letter), frees_key=True), "a")
        repeated = await stored(messages, [changed(letter, repeated=True) for letter in letters])
        assert [answer.verdict for answer in repeated] == [Verdict.SETTLED] * 3
        corrected, retried, blamed = [keyed(message(10 + number, f"e{number}"), "k", b"x") for number in (1, 2, 3)]
        assert await messages.find_key(key_of(corrected)) is None
        assert [answer.verdict for answer in await stored(messages, [corrected])] == [Verdict.NEW]
        for _ in range(2):
            assert [row.message_id for row in await messages.retry([2])] == [2]
            await messages.fail_run(changed(failure(letters[1]), frees_key=True), "a")
        assert [answer.verdict for answer in await stored(messages, [retried])] == [Verdict.NEW]
        await messages.free_keys([key_of(letters[2])])
        assert [answer.verdict for answer in await stored(messages, [blamed])] == [Verdict.NEW]

    async def test_a_cancelled_message_is_found_by_the_key_that_it_left(self, world: StorageWorld) -> None:
        """The latest one, if it was cancelled after that time, until it is forgotten; no other one is."""
        messages = await opened(world)
        first, second, other = keyed(message(1), "k"), keyed(message(2), "k"), keyed(message(3), "other")
        before = await store_time(messages)
        await stored(messages, [first, other])
        assert await messages.cancelled_since(key_of(first), before - 1) == 0
        await cancelled(messages, first)
        assert await messages.cancelled_since(key_of(first), before - 1) == 1
        assert await messages.cancelled_since(key_of(first), before + FAR) == 0
        await stored(messages, [second])
        await cancelled(messages, second, retention=0.0)
        assert await messages.cancelled_since(key_of(first), before - 1) == 2
        await expired(messages, 1)
        assert await messages.cancelled_since(key_of(first), before - 1) in (0, 1)
        assert await messages.cancelled_since(key_of(other), before - 1) == 0
        assert [answer.verdict for answer in await stored(messages, [keyed(message(4), "k")])] == [Verdict.NEW]

    async def test_the_key_of_a_run_stays_with_a_cancelled_message(self, world: StorageWorld) -> None:
        """Each repetition of the run must learn that it was cancelled, until the key is freed; a user's key is free."""
        messages = await opened(world)
        sent, users = sent_by(7, 1), keyed(message(2), "k")
        await stored(messages, [sent, users])
        for each in (sent, users, sent):
            await cancelled(messages, each)
        again = [changed(sent, message_id=11), changed(users, message_id=12)]
        verdicts = [answer.verdict for answer in await stored(messages, again)]
        assert verdicts == [Verdict.SETTLED, Verdict.NEW]
        await messages.free_keys([key_of(sent)])
        [late] = await stored(messages, [changed(sent, message_id=21)])
        assert late.verdict is Verdict.NEW

    async def test_what_a_run_sent_is_kept_while_the_run_can_be_repeated(self, world: StorageWorld) -> None:
        """While its message is pending, scheduled or a dead letter; then an hour more at a time is enough."""
        messages = await opened(world)
        waits, fails, dies = message(1), message(2), message(3)
        await stored(messages, [changed(waits, delay=FAR), fails, dies])
        await messages.fail_run(failure(fails, pause=FAR), "a")
        await messages.fail_run(failure(dies), "a")
        await none_forgotten(messages, *(sent_by(sender, 10 + sender) for sender in (1, 2, 3)))
        assert await messages.remove_expired(10) == 0

    async def test_what_a_run_sent_is_forgotten_with_what_sent_it(self, world: StorageWorld) -> None:
        """Once the run's message has a reply, was cancelled or is gone."""
        messages = await opened(world)
        await stored(messages, [message(1), message(2)])
        await messages.commit_run(run(message(1)), "a")
        await cancelled(messages, message(2))
        await all_forgotten(messages, *(sent_by(sender, 10 + sender) for sender in (1, 2, 3)))

    async def test_what_a_singleton_s_run_sent_is_kept_beside_its_steps(self, world: StorageWorld) -> None:
        """Until a save makes them history; without steps there is nothing that the next run goes on from."""
        storage = await owned(world)
        messages = storage.messages
        await all_forgotten(messages, sent_by_body(0, 11))
        await messages.commit_with_checkpoints(noted(steps({"fetch": b"1"})), "a")
        await none_forgotten(messages, sent_by_body(0, 12))
        await all_forgotten(messages, sent_by_body(1, 13))
        await messages.commit_with_checkpoints(noted(closing()), "a")
        await all_forgotten(messages, sent_by_body(0, 14))

    async def test_of_many_that_are_kept_none_holds_the_others_up(self, world: StorageWorld) -> None:
        """Each call looks at so many, and those that are kept are not looked at again soon."""
        messages = await opened(world)
        await stored(messages, [message(1)])
        kept = [sent_by(1, 100 + number) for number in range(20)]
        await settled(messages, *kept, *(message(200 + number) for number in range(5)))
        removed = 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while removed < 25:
                found = await messages.remove_expired(4)
                assert found <= 4
                removed += found
        left = await listed(messages, MessageFilter())
        assert left == [1, *(each.message_id for each in kept)]
