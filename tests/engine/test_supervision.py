"""The supervisor: nothing it owns fails unseen, dies for good, or outlives it in secret."""

import asyncio
import inspect
import itertools
import logging
from collections.abc import AsyncIterator

import pytest

from actorhub.core.backoff import Backoff
from actorhub.core.clock import SystemClock
from actorhub.core.errors import MailboxFull, PersistenceError, ShuttingDown
from actorhub.engine.supervision import Supervisor
from tests.ownership.cluster import VirtualClock, VirtualLoop


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    """A supervisor that is closed after the test."""
    made = Supervisor(SystemClock())
    yield made
    await made.aclose(1.0)


async def test_a_failed_task_is_logged_and_counted(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    """The exception of a task that nobody awaits appears in log and statistics."""

    async def fail() -> None:
        raise ValueError("boom")

    task = supervisor.spawn(fail(), "doomed")
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert supervisor.statistics().failures == {"doomed": 1}
    assert supervisor.statistics().tasks == 0
    assert [record.levelno for record in caplog.records if "boom" in record.message] == [logging.ERROR]


def test_a_loop_that_dies_is_started_again_with_growing_pauses() -> None:
    """Each death is counted, each pause is longer, and a loop that returns has ended."""
    loop = VirtualLoop()
    starts: list[float] = []

    async def scenario() -> dict[str, int]:
        supervisor = Supervisor(VirtualClock(loop))

        async def work() -> None:
            starts.append(loop.time())
            if len(starts) < 10:
                raise ValueError("again")

        await supervisor.loop("worker", work, Backoff(0.05, 5.0))
        return dict(supervisor.statistics().restarts)

    assert loop.run_until_complete(scenario()) == {"worker": 9}
    loop.close()
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    bounds = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert all(bound / 2 <= pause <= bound for pause, bound in zip(pauses, bounds, strict=True))


def test_the_backoff_starts_over_after_a_healthy_run() -> None:
    """A loop that worked for longer than the longest pause is not punished for old failures."""
    loop = VirtualLoop()
    deaths: list[float] = []
    starts: list[float] = []

    async def scenario() -> None:
        supervisor = Supervisor(VirtualClock(loop))

        async def work() -> None:
            starts.append(loop.time())
            if len(deaths) == 6:
                return
            await asyncio.sleep(30.0 if len(deaths) == 5 else 0.0)
            deaths.append(loop.time())
            raise ValueError("again")

        await supervisor.loop("worker", work, Backoff(0.1, 2.0))

    loop.run_until_complete(scenario())
    loop.close()
    assert starts[-1] - deaths[-1] <= 0.1


async def test_a_loop_survives_a_cancellation_that_was_not_meant_for_it(supervisor: Supervisor) -> None:
    """A cancelled future inside a loop is a failure of the loop, not its end."""
    runs = 0
    again = asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        again.set()

    task = supervisor.loop("worker", work, Backoff(0.001, 0.001))
    async with asyncio.timeout(5):
        await again.wait()
        await task
    assert supervisor.statistics().restarts == {"worker": 1}


async def test_cancelling_a_loop_ends_it(supervisor: Supervisor) -> None:
    """A loop that is cancelled itself is not started again."""
    task = supervisor.loop("worker", asyncio.Event().wait, Backoff())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert supervisor.statistics().restarts == {}


async def test_a_bounded_wait_ends_even_if_the_work_resists(supervisor: Supervisor) -> None:
    """The caller goes on in time while the work that swallows its cancellation is still there, counted."""
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue  # stubborn on purpose

    with pytest.raises(TimeoutError, match="stubborn took longer"):
        await supervisor.bounded(stubborn(), "stubborn", 0.01)
    assert supervisor.statistics().abandoned == {"stubborn": 1}
    assert supervisor.statistics().tasks == 1
    release.set()


async def test_a_bounded_wait_hands_on_results_and_errors(supervisor: Supervisor) -> None:
    """Results and expected errors reach the caller, and an expected error is not reported as a lost one."""

    async def answer() -> int:
        return 42

    async def refuse() -> int:
        raise MailboxFull("full")

    assert await supervisor.bounded(answer(), "answer", 1.0) == 42
    with pytest.raises(MailboxFull):
        await supervisor.bounded(refuse(), "refuse", 1.0)
    assert supervisor.statistics().failures == {}


async def test_a_result_that_came_while_the_loop_was_blocked_counts(supervisor: Supervisor) -> None:
    """A time-out that is noticed together with the result does not throw the result away."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> str:
        return await future

    loop = asyncio.get_running_loop()
    began = loop.time()

    def block() -> None:
        while loop.time() < began + 0.05:
            pass
        loop.call_soon(future.set_result, "late but here")

    loop.call_soon(block)
    assert await supervisor.bounded(work(), "work", 0.02) == "late but here"


async def test_closing_names_what_does_not_end_and_starts_nothing_new() -> None:
    """Closing cancels all, is bounded, returns the names of stubborn tasks, and refuses new ones."""
    supervisor = Supervisor(SystemClock())
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue  # stubborn on purpose

    _ = supervisor.spawn(stubborn(), "stubborn")
    easy = supervisor.spawn(asyncio.sleep(60), "easy")
    await asyncio.sleep(0)
    assert await supervisor.aclose(0.02) == ("stubborn",)
    assert easy.cancelled()
    with pytest.raises(ShuttingDown, match="late was not started"):
        _ = supervisor.spawn(asyncio.sleep(0), "late")
    release.set()
    assert await supervisor.aclose(1.0) == ()


async def test_closing_from_an_owned_task_does_not_cancel_that_task() -> None:
    """A task may close its own supervisor and go on."""
    supervisor = Supervisor(SystemClock())
    done = asyncio.Event()

    async def closer() -> None:
        await supervisor.aclose(1.0)
        done.set()

    await supervisor.spawn(closer(), "closer")
    assert done.is_set()


async def test_counted_names_are_bounded(supervisor: Supervisor) -> None:
    """Names beyond a limit are counted together."""

    async def fail() -> None:
        raise PersistenceError("no")

    tasks = [supervisor.spawn(fail(), f"task {number}") for number in range(300)]
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    failures = supervisor.statistics().failures
    assert sum(failures.values()) == 300
    assert len(failures) == 257
    assert failures["others"] == 44


@pytest.mark.filterwarnings("error")
async def test_bounded_work_that_never_starts_is_closed(supervisor: Supervisor) -> None:
    """A wait that is cancelled at once, or refused by a closed supervisor, leaves no coroutine without an end."""

    async def work() -> None:
        await asyncio.Event().wait()

    cancelled_at_once, refused = work(), work()
    waiting = supervisor.spawn(supervisor.bounded(cancelled_at_once, "work", 1.0), "waiting")
    await asyncio.sleep(0)
    await supervisor.aclose(1.0)
    assert waiting.cancelled()
    assert inspect.getcoroutinestate(cancelled_at_once) == inspect.CORO_CLOSED
    with pytest.raises(ShuttingDown):
        await supervisor.bounded(refused, "work", 1.0)
    assert inspect.getcoroutinestate(refused) == inspect.CORO_CLOSED


async def test_a_loop_that_a_stranger_cancels_is_reported(supervisor: Supervisor) -> None:
    """Loops that their owner ends, other tasks, and what a closing supervisor cancels are nobody's business."""
    cancelled: list[str] = []
    supervisor.on_loop_cancelled = cancelled.append
    forever = asyncio.Event().wait
    stolen, ended, left = (
        supervisor.loop(name, forever)  # type: ignore[arg-type]
        for name in ("stolen", "ended", "left")
    )
    single = supervisor.spawn(asyncio.sleep(60), "single")
    await asyncio.sleep(0)
    supervisor.end(ended)
    stolen.cancel()
    single.cancel()
    await asyncio.wait([stolen, ended, single])
    await supervisor.aclose(1.0)
    assert left.cancelled()
    assert cancelled == ["stolen"]


async def test_bounded_work_that_a_stranger_cancels_is_not_taken_for_a_shutdown(supervisor: Supervisor) -> None:
    """The caller gets a `TimeoutError`, for which it tries again, and not `ShuttingDown`."""

    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(TimeoutError, match="store was cancelled by a task of the program"):
        await supervisor.bounded(cancelled(), "store", 1.0)
