"""What was written while the answer was lost is not written a second time."""

import asyncio
from asyncio import Future
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import pytest

from actorhub.conformance.messages import backlog, changed, failure, keyed, message, opened, results, run, stored
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS
from actorhub.core.clock import SystemClock
from actorhub.storage.message_ports import (
    MessageState,
    MessageStore,
    NotPending,
    Readiness,
    RunCommit,
    RunStart,
    StoredReply,
    Verdict,
)
from actorhub.storage.ports import StoredState
from actorhub.storage.postgres import PostgresStorage
from tests.storage.conftest import PostgresWorld
from tests.storage.lossy_link import LossyLink

ResultT = TypeVar("ResultT")

VOLATILE = changed(run(message(0)), message_id=0, reply=None)


class Far:
    """A storage behind a link that loses answers, and one that is not."""

    def __init__(self, far: PostgresStorage, near: MessageStore, link: LossyLink) -> None:
        self.storage = far
        self.messages = far.messages
        self.near = near
        self._link = link

    async def lose(self, request: Callable[[], "Future[ResultT]"]) -> "Future[ResultT]":
        """Return the future of a request that was carried out unheard; it is repeated after `mend`."""
        self._link.lose_next_answer()
        future = request()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._link.lost.wait()
        return future

    async def mend(self, future: "Future[ResultT]") -> ResultT:
        """Return what the repeated request brings."""
        self._link.mend()
        [result] = await results([future])
        return result


@pytest.fixture
async def far(postgres_world: PostgresWorld) -> AsyncIterator[Far]:
    """Two storages on one database, whose shards belong to `a` at epoch 1."""
    near = await opened(postgres_world)
    async with LossyLink(postgres_world.url).served() as link:
        storage = PostgresStorage(link.url, clock=SystemClock())
        await storage.open()
        yield Far(storage, near, link)
        await storage.aclose()


async def test_a_stored_message_is_stored_once(far: Far) -> None:
    """The repeated request finds its own message pending."""
    await stored(far.messages, [message(1)])
    lost = await far.lose(lambda: far.messages.store(keyed(message(2), "k"), "a"))
    answer = await far.mend(lost)
    assert (answer.verdict, answer.message_id) == (Verdict.PENDING, 2)
    assert await backlog(far.near) == [1, 2]


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_deposit_that_was_settled_in_between_does_not_run_again(far: Far, key: str | None) -> None:
    """Its sender learns how it ended, although it did not say that it repeats itself."""
    await far.messages.deposit(message(1))
    made = message(2) if key is None else keyed(message(2), key)
    lost = await far.lose(lambda: far.messages.deposit(made))
    await far.near.commit_run(run(made), "a")
    answer = await far.mend(lost)
    assert (answer.verdict, answer.reply) == (Verdict.SETTLED, run(made).reply)
    assert await backlog(far.near) == [1]


async def test_a_started_run_is_counted_once(far: Far) -> None:
    """The repeated start may run."""
    await stored(far.messages, [message(1), message(2)])
    await far.messages.start_run(RunStart(1, SHARDS[0], 1, 1), "a")
    lost = await far.lose(lambda: far.messages.start_run(RunStart(2, SHARDS[0], 1, 1), "a"))
    assert await far.mend(lost) is Readiness.RUN
    row = await far.near.find(2)
    assert row is not None
    assert row.attempts == 1


async def test_a_committed_run_is_written_once(far: Far) -> None:
    """State, reply and outbox are there once, even if what was told is settled by then."""
    await stored(far.messages, [message(1, "eve"), message(2)])
    await far.messages.commit_run(run(message(1, "eve"), 1), "a")
    told = keyed(message(3, "told"), "k")
    lost = await far.lose(lambda: far.messages.commit_run(changed(run(message(2), 1), outbox=(told,)), "a"))
    await far.near.commit_run(run(told), "a")
    await far.mend(lost)
    row = await far.near.find(2)
    assert row is not None
    assert (row.state, row.reply) == (MessageState.DONE, run(message(2)).reply)
    assert await far.storage.load_state("orders", "ada") == StoredState(1, b"v1")
    assert await backlog(far.near) == []


@pytest.mark.parametrize("key", [None, "k"])
async def test_what_a_volatile_run_told_is_told_once(far: Far, key: str | None) -> None:
    """A run without a state or a message of its own has its outbox to be known by."""
    await far.messages.commit_run(changed(VOLATILE, outbox=(message(1, "told"),)), "a")
    told = message(2, "told") if key is None else keyed(message(2, "told"), key)
    lost = await far.lose(lambda: far.messages.commit_run(changed(VOLATILE, outbox=(told,)), "a"))
    await far.near.commit_run(run(told), "a")
    await far.mend(lost)
    assert await backlog(far.near) == [1]


async def test_a_run_of_a_message_that_something_else_settled_is_refused(far: Far) -> None:
    """Another value for the same message is not taken for this run's."""
    await stored(far.messages, [message(1)])
    await far.near.commit_run(run(message(1)), "a")
    other: RunCommit = changed(run(message(1)), reply=StoredReply(run(message(1)).reply.outcome, b"other"))  # type: ignore[union-attr]
    with pytest.raises(NotPending):
        await far.messages.commit_run(other, "a")


async def test_a_failed_run_is_noted_once(far: Far) -> None:
    """History, due time and dead letter are those of the first time."""
    made = [message(1), message(2), message(3)]
    await stored(far.messages, made)
    await far.messages.fail_run(failure(made[0]), "a")
    again = await far.lose(lambda: far.messages.fail_run(failure(made[1], pause=100.0), "a"))
    row = await far.near.find(2)
    assert row is not None
    assert await far.mend(again) == row.deliver_at
    dead = await far.lose(lambda: far.messages.fail_run(failure(made[2]), "a"))
    assert await far.mend(dead) == 0
    for message_id in (2, 3):
        row = await far.near.find(message_id)
        assert row is not None
        assert [each.attempt for each in row.history] == [1]
