"""current().sleep(): by the store's clock, never early, and not begun again by a restart."""

import asyncio
import time
from datetime import timedelta

import pytest

from actorhub import Cluster, HandlerFailed, current
from actorhub.core.clock import SystemClock
from actorhub.engine.durable.server_clock import ServerClock
from actorhub.engine.runs import lookout
from actorhub.storage.memory import MemoryStore
from actorhub.testing import MemoryCluster, until
from tests.steps.entities import Clerk, doing, hub, note, owner, saved
from tests.support.gates import failure, gates, outcomes, soon

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the clerks do."""
    doing.clear()


def times() -> list[float]:
    """Return when entity `a` was where, as it noted it."""
    return [float(text) for text in gates["times"].left]


def now() -> None:
    """Note that entity `a` is here now."""
    gates["times"].left.append(str(time.time()))


@pytest.mark.parametrize("milliseconds", [0, 1, 30, 200])
async def test_a_sleep_is_exact(anywhere: Cluster, milliseconds: int) -> None:
    """Never shorter than asked for, and a little longer at most."""

    async def work(_: Clerk) -> None:
        now()
        await current().sleep(timedelta(milliseconds=milliseconds))
        now()

    doing["a"] = work
    await anywhere.client(Clerk)("a").work()
    began, ended = times()
    assert milliseconds <= (ended - began) * 1000 < milliseconds + 400


async def test_a_sleep_of_less_than_nothing_is_over(runner: Cluster) -> None:
    """As with asyncio.sleep."""

    async def work(_: Clerk) -> str:
        await current().sleep(timedelta(seconds=-5))
        return "awake"

    doing["a"] = work
    assert await runner.client(Clerk)("a").work() == "awake"


async def test_a_retry_does_not_sleep_again(runner: Cluster) -> None:
    """Named or not: a sleep that is over is over for every run of the message."""

    async def work(_: Clerk) -> None:
        await current().sleep(timedelta(seconds=0.15))
        await current().sleep(timedelta(seconds=0.15), name="second")
        now()
        if len(times()) < 3:
            raise RuntimeError("crashed")

    doing["a"] = work
    await runner.client(Clerk)("a").work()
    first, _, last = times()
    assert last - first < 0.15


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_sleep_goes_on_elsewhere(memory: MemoryCluster, end: str) -> None:
    """Counted from the first run that came there, however often its runner is lost or leaves."""
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()

    async def work(_: Clerk) -> None:
        now()
        await current().sleep(timedelta(seconds=0.8))
        now()

    doing["a"] = work
    told = await client.tell(client.client(Clerk)("a").work())
    for number in (1, 2):
        await until(lambda: len(times()) == number)  # noqa: B023 - awaited at once
        await asyncio.sleep(0.1)
        await getattr(memory, end)(owner(memory, client))
    async with asyncio.timeout(10):
        await client.reply(told)
    began, *_, ended = times()
    assert len(times()) == 4
    assert 0.8 <= ended - began < 1.6


async def test_sleeps_are_numbered_within_a_run(memory: MemoryCluster, cluster: Cluster) -> None:
    """Each without a name is one of its own; names, and steps that are called the same, are others."""

    async def work(_: Clerk) -> list[str]:
        now()
        for _number in range(2):
            await current().sleep(timedelta(seconds=0.05))
        for name in ("1", "2", "2"):
            await current().sleep(timedelta(seconds=0.05), name=name)
        for name in ("1", "2", "sleep 1"):
            assert await current().step(name, str, "a step") == "a step"
        now()
        return sorted(saved(memory, current().message_id).checkpoints)

    doing["a"] = work
    assert len(await cluster.client(Clerk)("a").work()) == 7
    began, ended = times()
    assert 0.2 <= ended - began < 0.6


async def test_sleeps_at_once_are_as_long_as_the_longest(runner: Cluster) -> None:
    """In a TaskGroup, by name, beside steps."""

    async def work(_: Clerk) -> None:
        now()
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(current().sleep(timedelta(milliseconds=10 * number), name=f"{number}"))
            tasks.create_task(current().step("beside", note))
        now()

    doing["a"] = work
    await runner.client(Clerk)("a").work()
    began, ended = times()
    assert 0.19 <= ended - began < 0.6


class Skewed(SystemClock):
    """A runner's clock that is an hour off, while the store's is right."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def time(self) -> float:
        """Return a wrong time."""
        return super().time() + self._seconds


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
async def test_a_runner_whose_clock_is_wrong_sleeps_right(seconds: float) -> None:
    """Even before it heard the store's time from anything else, and also when another one goes on."""
    async with MemoryCluster(hub, clock=Skewed(seconds)) as memory:
        memory.store = MemoryStore(SystemClock())
        first = await memory.start_runner()
        client = await memory.client()

        async def work(_: Clerk) -> None:
            now()
            await current().sleep(timedelta(seconds=0.3))
            now()

        doing["a"] = work
        told = await client.tell(client.client(Clerk)("a").work())
        await until(lambda: len(times()) == 1)
        await asyncio.sleep(0.1)
        await memory.kill(first)
        await memory.start_runner()
        async with asyncio.timeout(5):
            await client.reply(told)
    began, *_, ended = times()
    assert 0.3 <= ended - began < 1.5


async def test_a_sleep_is_not_over_before_the_store_says_so(runner: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this process believes of the store's clock: it is asked."""

    def wrong(_: ServerClock) -> float:
        return time.time() + 1e6

    monkeypatch.setattr(ServerClock, "now", wrong)

    async def work(_: Clerk) -> None:
        now()
        await current().sleep(timedelta(seconds=0.2))
        now()

    doing["a"] = work
    await runner.client(Clerk)("a").work()
    began, ended = times()
    assert 0.2 <= ended - began < 0.6


async def test_a_sleep_outlasts_a_store_that_is_away(
    memory: MemoryCluster, runner: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on sleeping until the store can say what time it is; that is not a failed run."""
    monkeypatch.setattr(lookout, "_RETRY", 0.05)

    async def work(_: Clerk) -> None:
        await current().sleep(timedelta(seconds=0.2))

    doing["a"] = work
    told = await runner.tell(runner.client(Clerk)("a").work())
    await until(lambda: len(saved(memory, told).checkpoints) == 1)
    await asyncio.sleep(0.05)
    memory.store.available = False
    await until(lambda: "or a sleep is over" in caplog.text)
    memory.store.available = True
    await runner.reply(told)
    assert gates["a"].log == ["run 1"]


async def test_the_timeout_of_a_handler_counts_in_sleeps_too(runner: Cluster) -> None:
    """Per run, as in waits: what takes longer than a run may take is for `delay=`."""

    async def work(_: Clerk) -> None:
        await current().sleep(timedelta(hours=1))

    doing["a"] = work
    error = await failure(runner.client(Clerk)("a").work_in_time())
    assert isinstance(error, HandlerFailed)
    assert error.type == "CallTimeout"
    assert len(gates["a"].log) == 2


async def test_hundreds_sleep_at_once(memory: MemoryCluster) -> None:
    """Each for as long as it asked, while their runner is killed."""
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()

    async def work(_: Clerk) -> None:
        gates["times"].log.append(current().entity_id)
        await current().sleep(timedelta(seconds=0.5))

    for number in range(200):
        doing[f"e{number}"] = work
    asks = soon(outcomes(*(client.client(Clerk)(f"e{number}").work() for number in range(200))))
    await until(lambda: len(gates["times"].log) == 200)
    await memory.kill(memory.runners[0])
    async with asyncio.timeout(10):
        assert await asks == [None] * 200
