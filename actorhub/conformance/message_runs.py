"""The promises of `actorhub.storage.message_ports` about runs, as tests that every store must pass."""

import asyncio

import pytest

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
    results,
    run,
    scheduled,
    store_time,
    stored,
)
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, StorageWorld, runner, take_over
from actorhub.core.errors import DuplicateKey
from actorhub.storage.message_ports import (
    MessageState,
    NotPending,
    Outcome,
    Readiness,
    RunStart,
    StoredReply,
    Verdict,
)
from actorhub.storage.ports import Fenced, StateCommit, StoredState, VersionConflict


def start(message_id: int, attempts: int = 1, *, epoch: int = 1) -> RunStart:
    """Return the start of a run."""
    return RunStart(message_id, SHARDS[0], epoch, attempts)


class StartSuite:
    """Runs are counted before they start."""

    async def test_a_run_is_counted_before_it_starts(self, world: StorageWorld) -> None:
        """Whoever loads the message next sees the count; the same start again counts once."""
        messages = await opened(world)
        await stored(messages, [message(1)])
        for attempts in (1, 1, 2, 2, 2):
            assert await messages.start_run(start(1, attempts), "a") is Readiness.RUN
            assert await messages.load_entities([(SHARDS[0], "orders", "ada")], 1) == [
                pending(message(1), attempts=attempts)
            ]

    async def test_a_run_that_was_cut_short_is_uncounted(self, world: StorageWorld) -> None:
        """Only by the owner, and only where it is the last count; asking twice takes one back."""
        messages = await opened(world)
        await stored(messages, [message(number) for number in range(1, 5)])
        await results([messages.start_run(start(number, 2), "a") for number in range(1, 5)])
        await messages.commit_run(run(message(4)), "a")
        await messages.uncount_runs([start(2, 2)], "b")
        await messages.uncount_runs([start(2, 2, epoch=2)], "a")
        for _ in range(2):
            await messages.uncount_runs([start(1, 2), start(3, 1), start(4, 2), start(99, 1)], "a")
        found = await messages.load_entities([(SHARDS[0], "orders", "ada")], 9)
        assert [(each.message_id, each.attempts) for each in found] == [(1, 1), (2, 2), (3, 2)]

    async def test_a_message_that_ended_does_not_run(self, world: StorageWorld) -> None:
        """Settled, failed, cancelled, dead and unknown ones are gone."""
        messages = await opened(world)
        made = [message(number) for number in range(1, 4)]
        await stored(messages, made)
        await messages.commit_run(run(made[0]), "a")
        await messages.cancel(2, SHARDS[0], 1, incarnation="a", retention=FAR)
        await messages.fail_run(failure(made[2]), "a")
        found = await results([messages.start_run(start(number), "a") for number in (1, 2, 3, 4)])
        assert found == [Readiness.GONE] * 4

    async def test_no_message_runs_before_its_time(self, world: StorageWorld) -> None:
        """The store's clock decides; an early start is not counted, and one in time is."""
        messages = await opened(world)
        made = [changed(message(1), delay=0.2), changed(message(2), delay=FAR)]
        soon, _ = await stored(messages, made)
        assert await messages.start_run(start(2), "a") is Readiness.EARLY
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await messages.start_run(start(1), "a") is Readiness.EARLY:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await store_time(messages) >= soon.deliver_at
        found, _ = await messages.load_scheduled(SHARDS, await store_time(messages) + 2 * FAR, 10)
        assert [(each.message_id, each.attempts) for each in found] == [(1, 1), (2, 0)]

    async def test_only_the_owner_starts_runs(self, world: StorageWorld) -> None:
        """Another incarnation and another epoch count nothing."""
        messages = await opened(world)
        await stored(messages, [message(1)])
        await take_over(await world.storage(), SHARDS, runner("b"))
        refused = [(start(1), "a"), (start(1, epoch=2), "a"), (start(1), "b"), (start(1, epoch=3), "b")]
        found = await results([messages.start_run(each, incarnation) for each, incarnation in refused])
        assert found == [Readiness.FENCED] * 4
        assert await messages.load_entities([(SHARDS[0], "orders", "ada")], 1) == [pending(message(1))]
        assert await messages.start_run(start(1, epoch=2), "b") is Readiness.RUN

    async def test_each_start_of_a_group_gets_its_own_answer(self, world: StorageWorld) -> None:
        """Fenced, early and gone ones do not hold up their neighbours."""
        messages = await opened(world)
        await stored(messages, [message(1), changed(message(2), delay=FAR), message(3), message(4)])
        starts = [start(1), start(2), start(9), start(3, epoch=2), start(4, 7)]
        assert await results([messages.start_run(each, "a") for each in starts]) == [
            Readiness.RUN, Readiness.EARLY, Readiness.GONE, Readiness.FENCED, Readiness.RUN
        ]  # fmt: skip
        found = await messages.load_entities([(SHARDS[0], "orders", "ada")], 10)
        assert [(each.message_id, each.attempts) for each in found] == [(1, 1), (3, 0), (4, 7)]


class CommitSuite:
    """What a run leaves behind is written together or not at all."""

    async def test_a_run_leaves_state_reply_and_messages(self, world: StorageWorld) -> None:
        """All three are there at once, for every process."""
        storage, peer = await world.storage(), await world.storage()
        await storage.take(SHARDS[:1], runner("a"))
        await stored(storage.messages, [message(1)])
        told = (
            message(10, "eve", shard=SHARDS[4], epoch=0),
            keyed(message(11, "bob"), "k"),
            changed(message(12, "bob"), delay=FAR),
        )
        await storage.messages.commit_run(changed(run(message(1), 1), outbox=told), "a")
        assert await peer.load_state("orders", "ada") == StoredState(1, b"v1")
        settled = await peer.messages.find(1)
        assert settled is not None
        assert settled.reply == StoredReply(Outcome.VALUE, b"value")
        assert await backlog(peer.messages) == [10, 11]
        assert await scheduled(peer.messages) == [12]
        assert await peer.messages.load_entities([(SHARDS[4], "orders", "eve")], 1) == [pending(told[0])]

    async def test_a_volatile_run_leaves_state_and_messages(self, world: StorageWorld) -> None:
        """Without a durable message of its own, a run commits what it changed and told, together or each alone."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        volatile = changed(run(message(0)), reply=None)
        both = changed(volatile, version=1, data=b"one", outbox=(message(1),))
        for each in (both, changed(volatile, version=2, data=b"two"), changed(volatile, outbox=(message(2),))):
            await storage.messages.commit_run(each, "a")
        assert await storage.load_state("orders", "ada") == StoredState(2, b"two")
        assert await backlog(storage.messages) == [1, 2]

    async def test_states_of_runs_and_of_plain_commits_are_the_same(self, world: StorageWorld) -> None:
        """Each goes on from the version that the other left."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        await stored(storage.messages, [message(1)])
        await storage.commit_state(StateCommit(SHARDS[0], 1, "orders", "ada", 1, b"one"), "a")
        await storage.messages.commit_run(run(message(1), 2), "a")
        await storage.commit_state(StateCommit(SHARDS[0], 1, "orders", "ada", 3, b"three"), "a")
        assert await storage.load_state("orders", "ada") == StoredState(3, b"three")

    @pytest.mark.parametrize("reason", [Fenced, VersionConflict, NotPending, DuplicateKey])
    async def test_a_refused_run_leaves_nothing(self, world: StorageWorld, reason: type[Exception]) -> None:
        """Whichever part is refused, none of the others is written, and the keys it would have taken stay free."""
        storage = await world.storage()
        messages = storage.messages
        await storage.take(SHARDS, runner("a"))
        await stored(messages, [message(1), keyed(message(2), "used", b"other")])
        told = (message(10), keyed(message(11), "free"), message(12))
        refused = changed(run(message(1), 1), outbox=told)
        if reason is Fenced:
            await take_over(storage, SHARDS[:1], runner("b"))
        elif reason is VersionConflict:
            refused = changed(refused, version=2)
        elif reason is NotPending:
            await messages.cancel(1, SHARDS[0], 1, incarnation="a", retention=FAR)
        else:
            refused = changed(refused, outbox=(*told, keyed(message(13), "used")))
        with pytest.raises(reason):
            await messages.commit_run(refused, "a")
        assert await storage.load_state("orders", "ada") is None
        assert await backlog(messages) == ([2] if reason is NotPending else [1, 2])
        assert [await messages.find(number) for number in (10, 11, 12, 13)] == [None] * 4
        freed = await messages.deposit(keyed(message(14), "free", b"another"))
        assert freed.verdict is Verdict.NEW

    async def test_a_refused_run_does_not_fail_its_neighbours(self, world: StorageWorld) -> None:
        """Of runs that are committed at once, each gets its own outcome."""
        storage = await world.storage()
        messages = storage.messages
        await storage.take(SHARDS, runner("a"))
        made = [message(number, f"e{number}", shard=SHARDS[number % 2]) for number in range(1, 11)]
        await stored(messages, [*made[:8], keyed(message(99), "used", b"other")])
        await take_over(storage, SHARDS[3:4], runner("b"))
        runs = [changed(run(each, 1), outbox=(message(100 + each.message_id, "told"),)) for each in made]
        runs[1] = changed(runs[1], shard=SHARDS[3])
        runs[3] = changed(runs[3], version=5)
        runs[5] = changed(runs[5], outbox=(message(106, "told"), keyed(message(206), "used")))
        broken = messages.commit_run(changed(run(message(300, "\ud800"), 1), message_id=0, reply=None), "a")
        outcome = await failures([messages.commit_run(each, "a") for each in runs])
        expected = {1: Fenced, 3: VersionConflict, 5: DuplicateKey, 8: NotPending, 9: NotPending}
        assert outcome == [expected.get(number) for number in range(10)]
        await asyncio.wait([broken], timeout=PATIENCE_SECONDS)
        good = [each.message_id for number, each in enumerate(made) if number not in expected]
        assert await backlog(messages) == sorted([2, 4, 6, 99, *(100 + number for number in good)])
        states = [await storage.load_state("orders", each.entity_id) for each in made]
        assert [each.message_id for each, state in zip(made, states, strict=True) if state] == good

    async def test_runs_of_one_entity_committed_at_once_keep_their_order(self, world: StorageWorld) -> None:
        """A chain of versions queued in one go is written in order."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        made = [message(number) for number in range(1, 9)]
        await stored(storage.messages, made)
        futures = [storage.messages.commit_run(run(each, each.message_id), "a") for each in made]
        assert await failures(futures) == [None] * 8
        assert await storage.load_state("orders", "ada") == StoredState(8, b"v8")
        assert await backlog(storage.messages) == []

    async def test_messages_and_runs_share_round_trips(self, world: StorageWorld) -> None:
        """Far fewer groups than requests; the counts say so."""
        storage = await world.storage()
        messages = storage.messages
        await storage.take(SHARDS, runner("a"))
        made = [message(number, f"e{number}") for number in range(1, 201)]
        await stored(messages, made)
        await results([messages.start_run(start(each.message_id), "a") for each in made])
        await results([messages.commit_run(run(each, 1), "a") for each in made[:150]])
        await results([messages.fail_run(failure(each), "a") for each in made[150:]])
        counts = storage.statistics()
        assert (counts.stored, counts.started, counts.settled, counts.failed_runs) == (200, 200, 150, 50)
        assert (counts.refused, counts.failed, counts.waiting) == (0, 0, 0)
        assert counts.message_batches <= 12

    async def test_the_next_run_is_counted_with_the_commit(self, world: StorageWorld) -> None:
        """It needs no start of its own, and its count is there as soon as the commit is."""
        storage = await world.storage()
        messages = storage.messages
        await storage.take(SHARDS, runner("a"))
        made = [message(1), message(2), message(3, "eve"), message(4, "eve"), message(5, "bob")]
        await stored(messages, made)
        runs = [changed(run(made[0], 1), next_start=start(2)), changed(run(made[2]), next_start=start(4)), run(made[4])]
        assert await results([messages.commit_run(each, "a") for each in runs]) == [True, True, False]
        rows = [await messages.find(number) for number in (2, 4)]
        assert [row and (row.state, row.attempts) for row in rows] == [(MessageState.PENDING, 1)] * 2
        assert await messages.commit_run(run(made[1], 2), "a") is False
        assert storage.statistics().started == 2

    async def test_a_next_run_that_may_not_start_is_not_counted(self, world: StorageWorld) -> None:
        """One that is gone, not due or unknown: the run before it is written nevertheless, like its neighbours."""
        messages = await opened(world)
        made = [message(number, f"e{number % 4}") for number in range(1, 5)]
        rest = [changed(message(5, "e1"), delay=FAR), message(6, "e2"), message(8, "e0")]
        await stored(messages, [*made, *rest])
        await messages.commit_run(run(rest[1]), "a")
        following = [start(5), start(6), start(7), start(8)]
        runs = [changed(run(each), next_start=then) for each, then in zip(made, following, strict=True)]
        assert await results([messages.commit_run(each, "a") for each in runs]) == [False, False, False, True]
        early, due = await messages.find(5), await messages.find(8)
        assert early is not None
        assert due is not None
        assert (early.attempts, due.attempts) == (0, 1)
        assert await backlog(messages) == [8]

    async def test_a_refused_run_counts_no_next_one(self, world: StorageWorld) -> None:
        """Nor does one that was written before count its next run a second time."""
        messages = await opened(world)
        await stored(messages, [message(1), message(2), message(3, "eve"), message(4, "eve")])
        refused, good = changed(run(message(1), 7), next_start=start(2)), changed(run(message(3)), next_start=start(4))
        futures = [messages.commit_run(refused, "a"), messages.commit_run(good, "a")]
        assert await failures(futures) == [VersionConflict, None]
        assert futures[1].result() is True
        await messages.commit_run(good, "a")
        rows = [await messages.find(number) for number in (2, 4)]
        assert [row and row.attempts for row in rows] == [0, 1]
        await messages.commit_run(run(message(4)), "a")
        assert await messages.commit_run(good, "a") is False

    async def test_a_repeated_commit_is_harmless(self, world: StorageWorld) -> None:
        """The same run again succeeds and changes nothing: after others ran, and after the shard was lost as well."""
        storage = await world.storage()
        messages = storage.messages
        await storage.take(SHARDS, runner("a"))
        made = [message(1), message(2)]
        await stored(messages, made)
        first = changed(run(made[0], 1), outbox=(message(10), keyed(message(11), "k")))
        assert await failures([messages.commit_run(first, "a"), messages.commit_run(first, "a")]) == [None, None]
        await messages.commit_run(run(made[1], 2), "a")
        await messages.commit_run(run(message(10)), "a")
        await messages.commit_run(first, "a")
        await take_over(storage, SHARDS, runner("b"))
        await messages.commit_run(first, "a")
        assert await storage.load_state("orders", "ada") == StoredState(2, b"v2")
        assert await backlog(messages) == [11]

    async def test_a_repeated_volatile_commit_is_harmless(self, world: StorageWorld) -> None:
        """Its state tells that it was written; without one, its messages do, if they say that they are repeated."""
        messages = await opened(world)
        with_state = changed(run(message(0), 1), reply=None, outbox=(message(1),))
        without = changed(run(message(0)), reply=None, outbox=(changed(message(2), repeated=True), message(3)))
        for made in (with_state, with_state, without, without):
            await messages.commit_run(made, "a")
        assert await backlog(messages) == [1, 2, 3]
        for settled in (1, 2):
            await messages.commit_run(run(message(settled)), "a")
        for made in (with_state, without):
            await messages.commit_run(made, "a")
        assert await backlog(messages) == [3]

    async def test_a_second_run_of_a_settled_message_is_refused(self, world: StorageWorld) -> None:
        """Another outcome, another state and a message that nobody knows are not pending: the first reply stays."""
        storage = await world.storage()
        messages = storage.messages
        await storage.take(SHARDS, runner("a"))
        await stored(messages, [message(1)])
        await messages.commit_run(run(message(1)), "a")
        others = [run(message(1), value=b"second"), run(message(9))]
        assert await failures([messages.commit_run(each, "a") for each in others]) == [NotPending, NotPending]
        settled = await messages.find(1)
        assert settled is not None
        assert settled.reply == StoredReply(Outcome.VALUE, b"value")

    async def test_a_key_in_the_outbox_names_one_message(self, world: StorageWorld) -> None:
        """What was told before, in this run or by anyone, is not stored again; the run is not refused for it."""
        messages = await opened(world)
        await stored(messages, [message(1), keyed(message(2), "pending"), keyed(message(3), "settled")])
        await messages.commit_run(run(message(3)), "a")
        told = (
            keyed(message(10), "pending"),
            keyed(message(11), "settled"),
            keyed(message(12), "twice"),
            keyed(message(13), "twice"),
            message(2),
            message(14),
            message(14),
        )
        await messages.commit_run(changed(run(message(1)), outbox=told), "a")
        assert await backlog(messages) == [2, 12, 14]
        [late] = await stored(messages, [keyed(message(15), "twice")])
        assert (late.verdict, late.message_id) == (Verdict.PENDING, 12)

    async def test_keys_that_contradict_each_other_refuse_the_run(self, world: StorageWorld) -> None:
        """Two payloads under one key in one outbox leave nothing; in two runs at once, one of these is refused."""
        messages = await opened(world)
        made = [message(number) for number in range(1, 4)]
        await stored(messages, made)
        twice = (keyed(message(10), "k"), keyed(message(11), "k", b"other"))
        assert await failures([messages.commit_run(changed(run(made[0]), outbox=twice), "a")]) == [DuplicateKey]
        assert await backlog(messages) == [1, 2, 3]
        rivals = [changed(run(each), outbox=(told,)) for each, told in zip(made[1:], twice, strict=True)]
        outcome = await failures([messages.commit_run(each, "a") for each in rivals])
        assert sorted(outcome, key=repr) == [DuplicateKey, None]
        winner = outcome.index(None)
        assert await backlog(messages) == sorted([1, (3, 2)[winner], (10, 11)[winner]])

    async def test_runs_and_senders_that_race_for_a_key_agree(self, world: StorageWorld) -> None:
        """Whoever is first, all processes see the same message under the key, and the other payload is refused."""
        messages, peer = await opened(world), (await world.storage()).messages
        for turn in range(10):
            made = [message(100 * turn + number) for number in range(1, 7)]
            await stored(messages, made)
            mine, other = keyed(message(100 * turn + 50), f"k{turn}"), keyed(message(100 * turn + 60), f"k{turn}", b"-")
            deposits = [peer.deposit(changed(other, message_id=other.message_id + number)) for number in range(3)]
            runs = [
                messages.commit_run(
                    changed(run(each), outbox=(changed(mine, message_id=mine.message_id + number),)), "a"
                )
                for number, each in enumerate(made)
            ]
            outcome = set(await failures(runs))
            verdicts = [answer.verdict for answer in await results(deposits)]
            if outcome == {None}:
                assert verdicts == [Verdict.DUPLICATE_KEY] * 3
            else:
                assert outcome == {DuplicateKey}
                assert sorted(verdicts) == [Verdict.NEW, Verdict.PENDING, Verdict.PENDING]
            [found] = [each for each in await backlog(messages) if each % 100 >= 50 and each // 100 == turn]
            assert (found % 100 < 60) == (outcome == {None})


class FailureSuite:
    """Failed runs are tried again or become dead letters."""

    async def test_a_failed_run_is_tried_again_after_its_pause(self, world: StorageWorld) -> None:
        """Until then it is early; the count and the history stay."""
        messages = await opened(world)
        await stored(messages, [message(1)])
        await messages.start_run(start(1), "a")
        before = await store_time(messages)
        due = await messages.fail_run(failure(message(1), pause=FAR), "a")
        assert before + FAR <= due <= await store_time(messages) + FAR
        assert await messages.start_run(start(1, 2), "a") is Readiness.EARLY
        [waiting], _ = await messages.load_scheduled(SHARDS, due + 1, 10)
        assert waiting == changed(pending(message(1), attempts=1), deliver_at=due)
        row = await messages.find(1)
        assert row is not None
        assert (row.state, row.attempts, row.deliver_at) == (MessageState.SCHEDULED, 1, due)
        [failed] = row.history
        assert before <= failed.at <= due
        assert (failed.attempt, failed.error_type, failed.error_text) == (1, "ValueError", "failure 1")
        assert failed.traceback == "Traceback …"

    async def test_the_last_failure_makes_a_dead_letter(self, world: StorageWorld) -> None:
        """It keeps arguments, headers, key and the whole history; its error is the reply, and it does not run."""
        messages = await opened(world)
        made = changed(keyed(message(1), "k"), headers={"trace": "1"})
        await stored(messages, [made])
        assert await messages.fail_run(failure(made, pause=0.0), "a") > 0
        assert await messages.start_run(start(1, 2), "a") is Readiness.RUN
        assert await messages.fail_run(failure(made, 2), "a") == 0
        assert await messages.start_run(start(1, 3), "a") is Readiness.GONE
        row = await messages.find(1)
        assert row is not None
        assert (row.state, row.attempts, row.key, row.headers) == (MessageState.DEAD, 2, "k", {"trace": "1"})
        assert row.body == made.body
        assert row.reply == StoredReply(Outcome.DEAD, b"error 2")
        assert [(each.attempt, each.error_text) for each in row.history] == [(1, "failure 1"), (2, "failure 2")]
        assert (await backlog(messages), await scheduled(messages)) == ([], [])
        [late] = await stored(messages, [keyed(message(2), "k")])
        assert (late.verdict, late.message_id, late.reply) == (Verdict.SETTLED, 1, row.reply)

    async def test_a_repeated_failure_is_noted_once(self, world: StorageWorld) -> None:
        """Noting the same failed run again changes neither history nor due time."""
        messages = await opened(world)
        await stored(messages, [message(1)])
        again = failure(message(1), pause=FAR)
        first, second = await results([messages.fail_run(again, "a"), messages.fail_run(again, "a")])
        assert first == second == await messages.fail_run(again, "a")
        last = failure(message(1), 2)
        assert await results([messages.fail_run(last, "a"), messages.fail_run(last, "a")]) == [0, 0]
        row = await messages.find(1)
        assert row is not None
        assert [each.attempt for each in row.history] == [1, 2]

    async def test_a_failure_is_refused_like_a_commit(self, world: StorageWorld) -> None:
        """Former owners and settled messages change nothing, and fail no neighbour."""
        storage = await world.storage()
        messages = storage.messages
        await storage.take(SHARDS, runner("a"))
        made = [message(1), message(2), message(3, shard=SHARDS[1])]
        await stored(messages, made)
        await messages.commit_run(run(made[1]), "a")
        await take_over(storage, SHARDS[1:2], runner("b"))
        before = storage.statistics().refused
        noted = [made[0], made[1], made[2], changed(made[2], epoch=2), message(9)]
        outcome = await failures([messages.fail_run(failure(each), "a") for each in noted])
        assert outcome == [None, NotPending, Fenced, Fenced, NotPending]
        assert storage.statistics().refused == before + 4
        rows = [await messages.find(number) for number in (1, 2, 3)]
        assert [row and row.state for row in rows] == [MessageState.DEAD, MessageState.DONE, MessageState.PENDING]
        assert await backlog(messages) == [3]
