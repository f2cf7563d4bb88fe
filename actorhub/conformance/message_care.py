"""The promises of `actorhub.storage.message_ports` to people and upkeep, as tests that every store must pass."""

import asyncio

from actorhub.conformance.messages import (
    FAR,
    backlog,
    changed,
    failure,
    failures,
    keyed,
    message,
    opened,
    pending,
    run,
    scheduled,
    store_time,
    stored,
)
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, StorageWorld, runner
from actorhub.storage.message_ports import (
    CancelResult,
    MessageFilter,
    MessageState,
    MessageStore,
    NewMessage,
    NotPending,
    Outcome,
    Readiness,
    RunStart,
    StoredReply,
    Verdict,
)


async def in_every_state(messages: MessageStore) -> dict[MessageState, NewMessage]:
    """Store and settle keyed messages so that there is one in each state, with the ids 1 to 6 in the enum's order."""
    made = {state: keyed(message(number), state.value) for number, state in enumerate(MessageState, 1)}
    made[MessageState.SCHEDULED] = changed(made[MessageState.SCHEDULED], delay=FAR)
    await stored(messages, made.values())
    failed = changed(run(made[MessageState.FAILED]), reply=StoredReply(Outcome.ERROR, b"sold out"))
    await messages.commit_run(run(made[MessageState.DONE]), "a")
    await messages.commit_run(failed, "a")
    await cancelled(messages, made[MessageState.CANCELLED])
    await messages.fail_run(failure(made[MessageState.DEAD]), "a")
    return made


async def cancelled(messages: MessageStore, made: NewMessage, *, retention: float = FAR) -> CancelResult:
    """Return what the cancellation of `made` by its owner `a` found."""
    return await messages.cancel(made.message_id, made.shard, made.epoch, incarnation="a", retention=retention)


def told_by(made: NewMessage) -> NewMessage:
    """Return a message that a run of `made` tells."""
    return message(made.message_id + 1000, "told")


async def listed(messages: MessageStore, wanted: MessageFilter) -> list[int]:
    """Return the ids of the wanted messages."""
    return [row.message_id for row in await messages.messages(wanted)]


async def expired(messages: MessageStore, count: int) -> None:
    """Return once `count` settled messages were forgotten."""
    removed = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while removed < count:
            removed += await messages.remove_expired(1000)
            await asyncio.sleep(0.01)
    assert removed == count


class InspectionSuite:
    """What is known of messages."""

    async def test_a_message_is_found_in_every_state(self, world: StorageWorld) -> None:
        """Who it was for, where it stands, its reply and times; the arguments while they are kept."""
        messages = await opened(world)
        before = await store_time(messages)
        replies = {
            MessageState.DONE: StoredReply(Outcome.VALUE, b"value"),
            MessageState.FAILED: StoredReply(Outcome.ERROR, b"sold out"),
            MessageState.CANCELLED: StoredReply(Outcome.CANCELLED, b""),
            MessageState.DEAD: StoredReply(Outcome.DEAD, b"error 1"),
        }
        for state, made in (await in_every_state(messages)).items():
            row = await messages.find(made.message_id)
            assert row is not None
            assert (row.state, row.reply) == (state, replies.get(state))
            assert (row.message_id, row.shard, row.entity_type) == (made.message_id, SHARDS[0], "orders")
            assert (row.entity_id, row.handler, row.key) == ("ada", "place", state.value)
            assert abs(row.created_at - before) < PATIENCE_SECONDS
            assert (row.deliver_at is not None) == (state is MessageState.SCHEDULED)
            assert (row.finished_at is None) == (state in (MessageState.PENDING, MessageState.SCHEDULED))
            has_arguments = state in (MessageState.PENDING, MessageState.SCHEDULED, MessageState.DEAD)
            assert row.body == (made.body if has_arguments else None) or state is MessageState.CANCELLED
            assert len(row.history) == (state is MessageState.DEAD)
        assert await messages.find(99) is None

    async def test_an_overdue_message_is_pending(self, world: StorageWorld) -> None:
        """Scheduled means not due yet, for a first run and for another attempt."""
        messages = await opened(world)
        await stored(messages, [changed(message(1), delay=0.02), message(2), message(3)])
        await messages.fail_run(failure(message(2), pause=0.02), "a")
        await messages.fail_run(failure(message(3), pause=FAR), "a")
        wanted = MessageFilter(states=frozenset({MessageState.PENDING}))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await listed(messages, wanted) != [1, 2]:  # noqa: ASYNC110 - only the store's clock tells
                await asyncio.sleep(0.01)
        assert await listed(messages, MessageFilter(states=frozenset({MessageState.SCHEDULED}))) == [3]
        overdue = await messages.find(2)
        assert overdue is not None
        assert overdue.state is MessageState.PENDING

    async def test_a_settled_message_tells_when_it_is_forgotten(self, world: StorageWorld) -> None:
        """Each run says how long its reply is kept; dead letters stay until they are purged."""
        messages = await opened(world)
        made = [message(number) for number in range(1, 4)]
        await stored(messages, made)
        await messages.commit_run(changed(run(made[0]), retention=FAR), "a")
        await cancelled(messages, made[1], retention=2 * FAR)
        await messages.fail_run(failure(made[2]), "a")
        now = await store_time(messages)
        ends = [row.expires_at for row in await messages.messages(MessageFilter())]
        assert [None if end is None else round((end - now) / FAR) for end in ends] == [1, 2, None]

    async def test_messages_are_listed_by_what_is_asked_for(self, world: StorageWorld) -> None:
        """Every field of the filter restricts, and they do so together."""
        messages = await opened(world)
        await in_every_state(messages)
        other = [
            changed(message(11), entity_type="baskets"),
            message(12, "eve"),
            changed(message(13), handler="cancel"),
            message(14, "bob", shard=SHARDS[2]),
            keyed(message(15), "k"),
        ]
        await stored(messages, other)
        for number, state in enumerate(MessageState, 1):
            wanted = MessageFilter(states=frozenset({state}), handler="place", entity_type="orders", entity_id="ada")
            expected = [1, 15] if state is MessageState.PENDING else [number]
            assert await listed(messages, wanted) == expected
        ended = frozenset({MessageState.DONE, MessageState.DEAD})
        assert await listed(messages, MessageFilter(states=ended)) == [3, 6]
        assert await listed(messages, MessageFilter(entity_type="baskets")) == [11]
        assert await listed(messages, MessageFilter(entity_id="eve")) == [12]
        assert await listed(messages, MessageFilter(handler="cancel")) == [13]
        assert await listed(messages, MessageFilter(shard=SHARDS[2])) == [14]
        assert await listed(messages, MessageFilter(key="k")) == [15]
        assert await listed(messages, MessageFilter(key="done")) == [3]
        assert await listed(messages, MessageFilter(entity_type="baskets", entity_id="eve")) == []
        assert await listed(messages, MessageFilter(older_than=FAR)) == []
        assert await listed(messages, MessageFilter(older_than=-FAR)) == [*range(1, 7), *range(11, 16)]

    async def test_a_list_is_read_page_by_page(self, world: StorageWorld) -> None:
        """Pages follow each other by id, over all states, without arguments and histories."""
        messages = await opened(world)
        await in_every_state(messages)
        first = await messages.messages(MessageFilter(limit=4))
        assert [row.message_id for row in first] == [1, 2, 3, 4]
        second = await messages.messages(MessageFilter(after_id=4, limit=4))
        assert [row.state for row in (*first, *second)] == list(MessageState)
        assert all(row.body is None and not row.history for row in (*first, *second))
        assert await messages.messages(MessageFilter(after_id=6)) == []


class CareSuite:
    """Cancelling, reviving, purging and forgetting."""

    async def test_a_cancelled_message_never_runs(self, world: StorageWorld) -> None:
        """Pending, scheduled and dead ones end as cancelled."""
        messages = await opened(world)
        made = await in_every_state(messages)
        for state in (MessageState.PENDING, MessageState.SCHEDULED, MessageState.DEAD):
            assert await cancelled(messages, made[state]) is CancelResult.CANCELLED
            row = await messages.find(made[state].message_id)
            assert row is not None
            assert (row.state, row.reply) == (MessageState.CANCELLED, StoredReply(Outcome.CANCELLED, b""))
            start = RunStart(row.message_id, row.shard, 1, 1)
            assert await messages.start_run(start, "a") is Readiness.GONE
        assert (await backlog(messages), await scheduled(messages)) == ([], [])
        assert await messages.retry([1, 2, 6]) == []

    async def test_the_key_of_a_cancelled_message_is_free_again(self, world: StorageWorld) -> None:
        """The next message with it is a new one, whatever its payload, and keeps it when the first one is forgotten."""
        messages = await opened(world)
        made = await in_every_state(messages)
        for number, state in enumerate((MessageState.PENDING, MessageState.SCHEDULED, MessageState.DEAD), start=50):
            assert await cancelled(messages, made[state], retention=0.0) is CancelResult.CANCELLED
            other = keyed(message(number), state.value, b"other")
            assert [answer.verdict for answer in await stored(messages, [other])] == [Verdict.NEW]
        assert await messages.remove_expired(10) == 3
        for number, state in enumerate((MessageState.PENDING, MessageState.SCHEDULED, MessageState.DEAD), start=50):
            assert await cancelled(messages, made[state]) is CancelResult.UNKNOWN
            again = keyed(message(60), state.value, b"other")
            [late] = await stored(messages, [again])
            assert (late.verdict, late.message_id) == (Verdict.PENDING, number)

    async def test_what_has_a_reply_keeps_its_key(self, world: StorageWorld) -> None:
        """A cancellation that comes too late does not free it."""
        messages = await opened(world)
        made = await in_every_state(messages)
        for state in (MessageState.DONE, MessageState.FAILED):
            assert await cancelled(messages, made[state]) is CancelResult.SETTLED
            [late] = await stored(messages, [keyed(message(50), state.value)])
            assert (late.verdict, late.message_id) == (Verdict.SETTLED, made[state].message_id)

    async def test_a_request_that_is_repeated_after_the_cancellation_is_answered(self, world: StorageWorld) -> None:
        """It does not run, and if it took the key again, a second cancellation frees that."""
        messages = await opened(world)
        made = (await in_every_state(messages))[MessageState.PENDING]
        assert await cancelled(messages, made) is CancelResult.CANCELLED
        [late] = await stored(messages, [changed(made, repeated=True)])
        assert (late.verdict, late.reply) == (Verdict.SETTLED, StoredReply(Outcome.CANCELLED, b""))
        assert await cancelled(messages, made) is CancelResult.SETTLED
        [fresh] = await stored(messages, [keyed(message(50), MessageState.PENDING.value)])
        assert (fresh.verdict, fresh.message_id) == (Verdict.NEW, 50)

    async def test_what_has_ended_cannot_be_cancelled(self, world: StorageWorld) -> None:
        """A reply stays; a second cancellation, and one of something unknown, say so."""
        messages = await opened(world)
        made = await in_every_state(messages)
        for state in (MessageState.DONE, MessageState.FAILED, MessageState.CANCELLED):
            assert await cancelled(messages, made[state]) is CancelResult.SETTLED
            row = await messages.find(made[state].message_id)
            assert row is not None
            assert row.state is state
        assert await cancelled(messages, message(99)) is CancelResult.UNKNOWN

    async def test_a_run_and_a_cancellation_that_race_agree(self, world: StorageWorld) -> None:
        """A message ends once: either the run is committed and the cancellation too late, or the other way round."""
        messages, peer = await opened(world), (await world.storage()).messages
        made = [message(number, f"e{number}") for number in range(1, 31)]
        await stored(messages, made)
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            cancellations = [tasks.create_task(cancelled(peer, each)) for each in made]
            runs = [messages.commit_run(changed(run(each), outbox=(told_by(each),)), "a") for each in made]
        outcome = await failures(runs)
        for each, cancellation, error in zip(made, cancellations, outcome, strict=True):
            row = await messages.find(each.message_id)
            assert row is not None
            if error is None:
                assert (cancellation.result(), row.state) == (CancelResult.SETTLED, MessageState.DONE)
            else:
                assert error is NotPending
                assert (cancellation.result(), row.state) == (CancelResult.CANCELLED, MessageState.CANCELLED)
            assert (await messages.find(told_by(each).message_id) is None) == (error is NotPending)

    async def test_only_the_owner_cancels(self, world: StorageWorld) -> None:
        """Another incarnation or epoch changes nothing."""
        messages = await opened(world)
        await stored(messages, [message(1)])
        for epoch, incarnation in ((1, "b"), (2, "a"), (0, "a")):
            found = await messages.cancel(1, SHARDS[0], epoch, incarnation=incarnation, retention=FAR)
            assert found is CancelResult.FENCED
        assert await backlog(messages) == [1]

    async def test_a_message_without_owner_can_be_cancelled(self, world: StorageWorld) -> None:
        """Done for nobody, it is done for whoever takes the shard afterwards."""
        storage = await world.storage()
        messages = storage.messages
        await messages.deposit(message(1))
        await messages.deposit(message(2))
        found = [await messages.cancel(number, SHARDS[0], 0, incarnation=None, retention=FAR) for number in (1, 1, 9)]
        assert found == [CancelResult.CANCELLED, CancelResult.SETTLED, CancelResult.UNKNOWN]
        await storage.take(SHARDS, runner("a"))
        assert await backlog(messages) == [2]

    async def test_revived_messages_run_again_from_the_first_attempt(self, world: StorageWorld) -> None:
        """Dead letters and waiting messages are due at once and keep arguments, key and history; no others change."""
        messages = await opened(world)
        made = await in_every_state(messages)
        waiting = message(7)
        await stored(messages, [waiting])
        await messages.start_run(RunStart(7, SHARDS[0], 1, 1), "a")
        await messages.fail_run(failure(waiting, pause=FAR), "a")
        revived = await messages.retry([7, 6, 5, 4, 3, 2, 99, 6])
        expected = [made[MessageState.SCHEDULED], made[MessageState.DEAD], waiting]
        assert sorted(revived, key=lambda each: each.message_id) == [pending(each) for each in expected]
        assert (await backlog(messages), await scheduled(messages)) == ([1, 2, 6, 7], [])
        row = await messages.find(6)
        assert row is not None
        assert (row.state, row.attempts, row.reply, row.finished_at) == (MessageState.PENDING, 0, None, None)
        assert len(row.history) == 1
        assert await messages.retry([]) == []

    async def test_a_revived_message_fails_again(self, world: StorageWorld) -> None:
        """Its attempts count from one, and each failure is added to the history that it had."""
        messages = await opened(world)
        await stored(messages, [message(1)])
        for _ in range(2):
            assert await messages.start_run(RunStart(1, SHARDS[0], 1, 1), "a") is Readiness.RUN
            assert await messages.fail_run(failure(message(1)), "a") == 0
            await messages.retry([1])
        row = await messages.find(1)
        assert row is not None
        assert [each.attempt for each in row.history] == [1, 1]
        await messages.commit_run(run(message(1)), "a")
        assert await messages.retry([1]) == []

    async def test_purging_deletes_dead_letters_alone(self, world: StorageWorld) -> None:
        """The filter and its limit choose among them; their ids are unknown afterwards and their keys free."""
        messages = await opened(world)
        made = await in_every_state(messages)
        others = [message(number, "eve") for number in range(11, 15)]
        await stored(messages, others)
        for each in others:
            await messages.fail_run(failure(each), "a")
        assert await messages.purge(MessageFilter(states=frozenset({MessageState.DONE}))) == 0
        assert await messages.purge(MessageFilter(older_than=FAR)) == 0
        assert await messages.purge(MessageFilter(entity_id="eve", limit=3)) == 3
        assert await messages.purge(MessageFilter()) == 2
        assert await listed(messages, MessageFilter()) == [1, 2, 3, 4, 5]
        assert await messages.find(6) is None
        again = keyed(message(20), MessageState.DEAD.value, b"other")
        kept = keyed(message(21), MessageState.DONE.value, b"other")
        verdicts = [answer.verdict for answer in await stored(messages, [again, kept])]
        assert verdicts == [Verdict.NEW, Verdict.DUPLICATE_KEY]
        assert made[MessageState.DEAD].message_id not in await backlog(messages)

    async def test_a_dead_letter_can_leave_its_key_to_others(self, world: StorageWorld) -> None:
        """Another message can have it; a retry takes the key back, unless it is another message's by then."""
        messages = await opened(world)
        made, again = keyed(message(1), "k"), keyed(message(2), "k", b"other")
        await stored(messages, [made])
        letter = changed(failure(made), frees_key=True)
        assert [await messages.fail_run(letter, "a") for _ in range(2)] == [0.0, 0.0]
        row = await messages.find(1)
        assert row is not None
        assert (row.state, row.key, row.body) == (MessageState.DEAD, "k", made.body)
        assert [each.message_id for each in await messages.retry([1])] == [1]
        assert [answer.verdict for answer in await stored(messages, [again])] == [Verdict.DUPLICATE_KEY]
        await messages.fail_run(letter, "a")
        assert [answer.verdict for answer in await stored(messages, [again])] == [Verdict.NEW]
        assert await messages.retry([1]) == []
        assert await messages.purge(MessageFilter()) == 1
        assert [answer.verdict for answer in await stored(messages, [keyed(message(3), "k")])] == [
            Verdict.DUPLICATE_KEY
        ]

    async def test_what_a_run_tells_can_have_the_key_that_a_dead_letter_left(self, world: StorageWorld) -> None:
        """An outbox finds the key as free as a caller does."""
        messages = await opened(world)
        made, teller = keyed(message(1), "k"), message(2)
        await stored(messages, [made, teller])
        await messages.fail_run(changed(failure(made), frees_key=True), "a")
        told = keyed(message(3), "k", b"other")
        await messages.commit_run(changed(run(teller), outbox=(told,)), "a")
        assert await messages.find(3) is not None
        assert await messages.retry([1]) == []

    async def test_settled_messages_are_forgotten_after_their_retention(self, world: StorageWorld) -> None:
        """Replies and cancellations whose time is over go in steps, with their keys; nothing else does."""
        messages = await opened(world)
        made = [keyed(message(number, f"e{number}"), "k") for number in range(1, 9)]
        await stored(messages, made)
        for each in made[:4]:
            await messages.commit_run(changed(run(each), retention=0.0), "a")
        await cancelled(messages, made[4], retention=0.0)
        await messages.commit_run(changed(run(made[5]), retention=FAR), "a")
        await messages.fail_run(failure(made[6]), "a")
        before = await store_time(messages)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await store_time(messages) <= before:  # noqa: ASYNC110 - only the store's clock tells
                await asyncio.sleep(0.001)
        assert await messages.remove_expired(2) == 2
        assert await messages.remove_expired(2) == 2
        await expired(messages, 1)
        assert await messages.remove_expired(100) == 0
        assert await listed(messages, MessageFilter()) == [6, 7, 8]
        again = [keyed(changed(each, message_id=each.message_id + 10), "k", b"other") for each in made]
        verdicts = [answer.verdict for answer in await stored(messages, again)]
        assert verdicts == [Verdict.NEW] * 5 + [Verdict.DUPLICATE_KEY] * 3

    async def test_a_forgotten_message_is_unknown(self, world: StorageWorld) -> None:
        """Its reply is no longer found by its id, and the same id is stored as a new one."""
        messages = await opened(world)
        await stored(messages, [message(1)])
        await messages.commit_run(changed(run(message(1)), retention=0.0), "a")
        await expired(messages, 1)
        assert await messages.find(1) is None
        assert await cancelled(messages, message(1)) is CancelResult.UNKNOWN
        [again] = await stored(messages, [changed(message(1), repeated=True)])
        assert again.verdict is Verdict.NEW
