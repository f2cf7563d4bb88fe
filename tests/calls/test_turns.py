"""Whose turn it is: one handler at a time, in order, unless a declaration says otherwise."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import CallCycle, CallTimeout, Cluster, Entity, HandlerFailed, Hub, MailboxFull, current, handler
from actorhub.cluster import part_of
from actorhub.core.config import Settings
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates, outcomes, soon


class Desk(Entity[list[str]], mailbox_capacity=5):
    async def hold(self) -> str:
        await gates[current().entity_id].pass_through()
        return "held"

    async def write(self, text: str) -> None:
        seen = list(self.state)
        await asyncio.sleep(0)
        self.state = [*seen, text]

    @handler(readonly=True)
    async def look(self) -> int:
        await gates["readers"].pass_through()
        return len(self.state)

    @handler(readonly=True)
    async def read(self) -> list[str]:
        return self.state

    @handler(reentrant=True)
    async def note(self, text: str) -> int:
        self.state.append(text)
        return len(self.state)

    @handler(reentrant=True)
    async def slow_note(self, text: str) -> None:
        await gates["slow"].pass_through()
        self.state.append(text)

    async def with_note(self, text: str, fail: bool = False) -> int:
        self.state.append(f"before {text}")
        count = await current().client(Desk)(current().entity_id).note(text)
        if fail:
            raise ValueError("both are undone")
        return count

    async def ask_around(self, path: list[str]) -> list[str]:
        if not path:
            return [*current().chain, f"desk/{current().entity_id}"]
        return await current().client(Desk)(path[0]).ask_around(path[1:])

    async def descend(self, depth: int) -> int:
        return depth if depth == 0 else await current().client(Desk)(f"d{depth}").descend(depth - 1)

    async def grouped(self) -> list[int]:
        async def number(n: int) -> int:
            await asyncio.sleep(0)
            return n

        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(number(n)) for n in range(3)]
        return [task.result() for task in found]

    async def group_fails(self) -> None:
        async def wrong() -> None:
            raise ValueError("inside")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wrong())
            await asyncio.sleep(10)

    async def times_itself_out(self) -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        except TimeoutError:
            return "timed out inside"
        return "never"

    async def cancels_itself(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        task.cancel()

    async def awaits_a_cancelled_future(self) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def same_task(self) -> bool:
        before = asyncio.current_task()
        await asyncio.sleep(0)
        return asyncio.current_task() is before


class Pool(Entity, concurrency=3):
    async def work(self) -> None:
        await gates[current().entity_id].pass_through()


hub = Hub()
hub.register(Desk)
hub.register(Pool)


async def test_handlers_of_one_entity_never_interleave(anywhere: Cluster) -> None:
    """A hundred read-modify-writes with an await in the middle lose nothing."""
    desk = anywhere.client(Desk).options(on_full="wait")("a")
    assert await outcomes(*(desk.write(str(n)) for n in range(100))) == [None] * 100
    assert sorted(await desk.read(), key=int) == [str(n) for n in range(100)]


async def test_messages_of_one_sender_start_in_the_order_in_which_they_were_sent(anywhere: Cluster) -> None:
    """Calls that are sent one after the other without waiting run in that order."""
    desk = anywhere.client(Desk).options(on_full="wait")("a")
    for n in range(100):
        await anywhere.tell(desk.write(str(n)))
    assert await desk.read() == [str(n) for n in range(100)]
    await outcomes(*(desk.write(str(n)) for n in range(100, 200)))
    assert await desk.read() == [str(n) for n in range(200)]


async def test_entities_do_not_wait_for_each_other(cluster: Cluster) -> None:
    """A suspended handler holds its own entity only."""
    desk = cluster.client(Desk)
    held = soon(desk("a").hold())
    await gates["a"].came()
    await desk("b").write("x")
    gates["a"].open()
    assert await held == "held"


async def test_readonly_handlers_run_beside_each_other(cluster: Cluster) -> None:
    """Three readers are inside at once."""
    desk = cluster.client(Desk)("a")
    readers = soon(outcomes(*(desk.look() for _ in range(3))))
    await gates["readers"].came(3)
    assert gates["readers"].inside == 3
    gates["readers"].open()
    assert await readers == [0, 0, 0]


async def test_readonly_handlers_do_not_run_beside_writers(cluster: Cluster) -> None:
    """A reader waits for the writer before it, and a writer for the readers before it."""
    desk = cluster.client(Desk)("a")
    writer = soon(desk.hold())
    await gates["a"].came()
    reader = soon(desk.look())
    await until(lambda: _queued(cluster, 1) or cluster.runner is None)
    await asyncio.sleep(0.02)
    assert gates["readers"].entered == 0
    gates["a"].open()
    await gates["readers"].came()
    second_writer = soon(desk.write("x"))
    await asyncio.sleep(0.02)
    gates["readers"].open()
    assert (await writer, await reader) == ("held", 0)
    await second_writer
    assert await desk.read() == ["x"]


def _queued(cluster: Cluster, count: int) -> bool:
    host = part_of(cluster).node.router.host
    return host is not None and host.statistics().queued == count


async def test_a_reader_does_not_overtake_a_waiting_writer(cluster: Cluster) -> None:
    """Readers that keep coming cannot starve a writer."""
    desk = cluster.client(Desk)("a")
    first = soon(desk.look())
    await gates["readers"].came()
    writer = soon(desk.write("x"))
    await asyncio.sleep(0.01)
    late = soon(desk.look())
    await asyncio.sleep(0.01)
    assert gates["readers"].entered == 1
    gates["readers"].open()
    await writer
    assert (await first, await late) == (0, 1)


async def test_concurrency_bounds_how_many_run_at_once(cluster: Cluster) -> None:
    """Three of ten run interleaved, never more."""
    work = soon(outcomes(*(cluster.client(Pool)("p").work() for _ in range(10))))
    await gates["p"].came(3)
    await asyncio.sleep(0.02)
    assert gates["p"].inside == 3
    gates["p"].open()
    assert await work == [None] * 10
    assert gates["p"].most_inside == 3


async def test_a_reentrant_handler_may_be_called_back(anywhere: Cluster) -> None:
    """An entity that waits can be called by the one it waits for; both changes are one commit."""
    desk = anywhere.client(Desk)("a")
    assert await desk.with_note("x") == 2
    assert await desk.read() == ["before x", "x"]


async def test_what_a_nested_run_changed_is_undone_with_the_run_around_it(cluster: Cluster) -> None:
    """When the outer handler raises, the reentrant one's change goes too."""
    desk = cluster.client(Desk)("a")
    with pytest.raises(HandlerFailed, match="both are undone"):
        await desk.with_note("x", fail=True)
    assert await desk.read() == []


async def test_a_call_that_comes_back_is_a_cycle_with_its_path(anywhere: Cluster) -> None:
    """The error names every entity on the way; nobody hangs."""
    desk = anywhere.client(Desk)
    error = await failure(desk("a").ask_around(["b", "c", "a"]))
    assert isinstance(error, CallCycle)
    assert error.path == ("desk/a", "desk/b", "desk/c", "desk/a")
    assert "desk/a -> desk/b -> desk/c -> desk/a" in str(error)
    assert await desk("a").ask_around(["b", "c"]) == ["desk/a", "desk/b", "desk/c"]
    error = await failure(desk("a").ask_around(["a"]))
    assert isinstance(error, CallCycle)
    assert error.path == ("desk/a", "desk/a")


async def test_chains_are_bounded_in_depth(memory: MemoryCluster) -> None:
    """A chain of the allowed depth works, one longer fails with its path."""
    memory.settings = Settings(shards_per_group=16, max_call_depth=4, grace=timedelta(seconds=1))
    runner = await memory.start_runner()
    desk = runner.client(Desk)
    assert await desk("top").descend(4) == 0
    error = await failure(desk("top").descend(5))
    assert isinstance(error, CallCycle)
    assert "deeper than 4" in str(error)
    assert len(error.path) == 6


async def test_a_full_mailbox_says_when_to_come_back(cluster: Cluster) -> None:
    """The sixth waiting message fails at once with a hint, and the five others are served."""
    desk = cluster.client(Desk)("a")
    held = soon(desk.hold())
    await gates["a"].came()
    waiting = soon(outcomes(*(desk.write(str(n)) for n in range(6))))
    await asyncio.sleep(0.02)
    error = await failure(desk.write("seventh"))
    assert isinstance(error, MailboxFull)
    assert error.retry_after > timedelta(0)
    assert not error.possibly_executed
    gates["a"].open()
    await held
    found = await waiting
    assert [type(one) for one in found] == [type(None)] * 5 + [MailboxFull]
    assert await desk.read() == ["0", "1", "2", "3", "4"]


async def test_a_caller_may_wait_for_room(cluster: Cluster) -> None:
    """With on_full="wait" everything is queued, and served in order."""
    desk = cluster.client(Desk).options(on_full="wait")("a")
    held = soon(desk.hold())
    await gates["a"].came()
    waiting = soon(outcomes(*(desk.write(str(n)) for n in range(20))))
    await asyncio.sleep(0.02)
    gates["a"].open()
    await held
    assert await waiting == [None] * 20
    assert await desk.read() == [str(n) for n in range(20)]


async def test_task_groups_and_timeouts_work_inside_handlers(anywhere: Cluster) -> None:
    """A handler has a task of its own for as long as it runs."""
    desk = anywhere.client(Desk)("a")
    assert await desk.grouped() == [0, 1, 2]
    assert await desk.times_itself_out() == "timed out inside"
    assert await desk.same_task()
    with pytest.raises(HandlerFailed, match="ValueError: inside"):
        await desk.group_fails()


async def test_a_handler_that_cancels_itself_harms_nobody_else(cluster: Cluster) -> None:
    """Cancellations of user code stay inside the run that made them."""
    desk = cluster.client(Desk)
    for _ in range(5):
        found = await outcomes(
            desk("a").cancels_itself(),
            desk("a").awaits_a_cancelled_future(),
            *(desk(f"other {n}").times_itself_out() for n in range(5)),
        )
        assert isinstance(found[1], HandlerFailed)
        assert found[2:] == ["timed out inside"] * 5


async def test_a_handler_that_never_suspends_does_not_stop_the_others(cluster: Cluster) -> None:
    """A flood of handlers without an await leaves room for timers."""
    desk = cluster.client(Desk).options(on_full="wait")
    flood = soon(outcomes(*(desk(str(n % 50)).read() for n in range(5000))))
    error = await failure(desk.options(timeout=timedelta(milliseconds=300))("slow").hold())
    assert isinstance(error, CallTimeout)
    assert len(await flood) == 5000
