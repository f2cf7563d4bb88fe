"""The promises of `actorhub.storage.message_ports` about rows that cannot be read, as tests for every store."""

from typing import Any

from actorhub.conformance.message_care import cancelled, listed
from actorhub.conformance.messages import FAR, changed, failure, message, opened, stored
from actorhub.conformance.storage import SHARDS, StorageWorld
from actorhub.storage.message_ports import CancelResult, MessageFilter, MessageState, MessageStore, NewMessage, Outcome


def unreadable(made: NewMessage, headers: Any = None) -> NewMessage:  # noqa: ANN401 - what no type allows
    """Return a message with headers that are not text, as another language or a hand may have stored them."""
    return changed(made, headers={"tenant": headers})


async def _bad_one(world: StorageWorld, **changes: float) -> MessageStore:
    """Return a store with messages 1 to 3 of one entity, of which 2 cannot be read."""
    messages = await opened(world)
    await stored(messages, [changed(made, **changes) for made in (message(1), unreadable(message(2)), message(3))])
    return messages


class UnreadableSuite:
    """A row that cannot be read is loaded without what is unreadable, and treated like any other."""

    async def test_a_row_that_cannot_be_read_is_loaded_beside_its_neighbours(self, world: StorageWorld) -> None:
        """It says what is wrong; by entity, in a walk, and where it is due later."""
        messages = await _bad_one(world)
        place = {SHARDS[0]: ("", "")}
        walk, _ = await messages.load_backlog(place, 10, 10)
        for rows in (walk, await messages.load_entities([(SHARDS[0], "orders", "ada")], 10)):
            assert [row.message_id for row in rows] == [1, 2, 3]
            assert [row.unreadable[:8] for row in rows] == ["", "headers:", ""]
            assert "tenant" in rows[1].unreadable
            assert rows[1].headers is None

    async def test_one_that_is_due_later_is_loaded_too(self, world: StorageWorld) -> None:
        """The scan for due messages gets all three."""
        messages = await _bad_one(world, delay=FAR)
        _, now = await messages.load_scheduled((), 0.0, 0)
        rows, _ = await messages.load_scheduled([SHARDS[0]], now + 2 * FAR, 10)
        assert [bool(row.unreadable) for row in sorted(rows, key=lambda row: row.message_id)] == [False, True, False]

    async def test_people_can_look_at_it(self, world: StorageWorld) -> None:
        """What is readable of it is shown, and what is not is named."""
        messages = await _bad_one(world)
        assert await listed(messages, MessageFilter()) == [1, 2, 3]
        row = await messages.find(2)
        assert row is not None
        assert (row.entity_id, row.body, row.headers) == ("ada", message(2).body, None)
        assert "tenant" in row.unreadable

    async def test_it_can_be_buried_retried_cancelled_and_purged(self, world: StorageWorld) -> None:
        """It goes through all states of a message; what is wrong with it stays known as long as its headers do."""
        messages = await _bad_one(world)
        await messages.fail_run(failure(message(2)), "a")
        row = await messages.find(2)
        assert row is not None
        assert (row.state, bool(row.unreadable), len(row.history)) == (MessageState.DEAD, True, 1)
        [retried] = await messages.retry([2])
        assert retried.unreadable
        await messages.fail_run(failure(message(2)), "a")
        assert await messages.purge(MessageFilter(entity_id="ada")) == 1
        await stored(messages, [unreadable(message(4))])
        assert await cancelled(messages, message(4)) == CancelResult.CANCELLED
        row = await messages.find(4)
        assert row is not None
        assert row.reply is not None
        assert (row.reply.outcome, row.unreadable) == (Outcome.CANCELLED, "")
