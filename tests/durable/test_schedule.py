"""Messages with a due time: rows until then, on time by the store's clock, cancelled when somebody says so."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta, timezone

import pytest

from actorhub import Cluster, MessageCancelled
from actorhub.core.clock import SystemClock
from actorhub.storage.message_ports import MessageFilter, MessageState
from actorhub.testing import MemoryCluster
from tests.durable.entities import Log, Sender, hub, read
from tests.support.gates import failure, gates, soon
from tests.support.parts import host_of

__all__ = ["hub"]

_clock = SystemClock()
_HOUR = timedelta(hours=1)


def in_seconds(seconds: float) -> datetime:
    """Return a moment from now."""
    return datetime.fromtimestamp(_clock.time() + seconds, UTC)


async def test_a_message_runs_at_its_time(anywhere: Cluster) -> None:
    """Not early, and not late by more than a look; deliver_at and delay."""
    log = anywhere.client(Log)
    for number, when in enumerate((0.2, 0.0)):
        began = _clock.time()
        if when:
            told = await anywhere.tell(log(f"a{number}").add("due"), deliver_at=in_seconds(0.2))
        else:
            told = await anywhere.tell(log(f"a{number}").add("due"), delay=timedelta(seconds=0.2))
        assert await anywhere.reply(told) == 1
        assert 0.195 <= _clock.time() - began < 1.5


@pytest.mark.parametrize("back", [timedelta(0), timedelta(seconds=1), timedelta(days=20_000), timedelta(days=100_000)])
async def test_a_past_time_means_now(anywhere: Cluster, back: timedelta) -> None:
    """Also one before 1970."""
    async with asyncio.timeout(2):
        told = await anywhere.tell(anywhere.client(Log)("a").add("late"), deliver_at=in_seconds(0) - back)
        assert await anywhere.reply(told) == 1


@pytest.mark.parametrize("delay", [timedelta(0), timedelta(seconds=-5), timedelta.min])
async def test_no_delay_and_a_negative_one_mean_now(anywhere: Cluster, delay: timedelta) -> None:
    """Like a past time."""
    async with asyncio.timeout(2):
        told = await anywhere.tell(anywhere.client(Log)("a").add("now"), delay=delay)
        assert await anywhere.reply(told) == 1


async def test_other_time_zones_are_understood(cluster: Cluster) -> None:
    """The moment counts, not the wall clock."""
    zone = timezone(timedelta(hours=-11))
    began = _clock.time()
    told = await cluster.tell(cluster.client(Log)("a").add("due"), deliver_at=in_seconds(0.1).astimezone(zone))
    assert await cluster.reply(told) == 1
    assert 0.095 <= _clock.time() - began < 1.5


async def test_times_that_make_no_sense_are_refused(memory: MemoryCluster, cluster: Cluster) -> None:
    """A naive datetime, two times at once, a time for a volatile handler: the error says what to do."""
    log = cluster.client(Log)("a")
    naive = in_seconds(5).replace(tzinfo=None)
    for call, kind, text in (
        (cluster.tell(log.add("x"), deliver_at=naive), ValueError, "time zone"),
        (cluster.tell(log.add("x"), deliver_at=in_seconds(5), delay=_HOUR), ValueError, "exclude each other"),
        (cluster.tell(log.add_now("x"), delay=_HOUR), TypeError, "durable=True"),
    ):
        error = await failure(call)
        assert isinstance(error, kind)
        assert text in str(error)
    assert not memory.store.messages.messages(MessageFilter())


@pytest.mark.parametrize("far", [timedelta(days=365_000), timedelta.max])
async def test_far_off_times_are_kept_or_refused(anywhere: Cluster, far: timedelta) -> None:
    """A thousand years are fine, what no clock can show is a ValueError, and nothing else is disturbed."""
    log = anywhere.client(Log)("a")
    if far == timedelta.max:
        assert isinstance(await failure(anywhere.tell(log.add("never"), delay=far)), ValueError)
    else:
        told = await anywhere.tell(log.add("never"), delay=far)
        assert await anywhere.cancel(told)
    told = await anywhere.tell(log.add("last day"), deliver_at=datetime.max.replace(tzinfo=UTC))
    assert await log.add("now") == 1
    assert await anywhere.cancel(told)


async def test_due_messages_run_in_the_order_of_their_times(anywhere: Cluster) -> None:
    """Whatever order they were told in."""
    log = anywhere.client(Log)("a")
    due = in_seconds(0.3)
    for number in (3, 1, 4, 0, 2):
        await anywhere.tell(log.add(str(number)), deliver_at=due + timedelta(milliseconds=30 * number))
    assert await read(anywhere, "a", 5) == ["0", "1", "2", "3", "4"]


async def test_each_of_many_due_messages_runs_on_time(memory: MemoryCluster, client: Cluster) -> None:
    """Two hundred within half a second, told while the schedule polls the store: none is late by a poll."""
    log = client.client(Log)
    ids: list[int] = []
    for number in range(200):
        ids.append(await client.tell(log(f"e{number % 20}").add("x"), delay=timedelta(milliseconds=300 + number)))
        if number % 20 == 0:
            await client.poll_storage()
    async with asyncio.timeout(2):
        for message_id in ids:
            await client.reply(message_id)


async def test_a_message_told_during_the_first_look_is_on_time(memory: MemoryCluster) -> None:
    """A runner that just started has its due messages in mind from the beginning."""
    runner = await memory.start_runner()
    async with asyncio.timeout(3):
        ids = [
            await runner.tell(runner.client(Log)(f"e{number}").add("x"), delay=timedelta(milliseconds=100))
            for number in range(20)
        ]
        for message_id in ids:
            assert await runner.reply(message_id) == 1


async def test_far_off_messages_cost_no_memory(memory: MemoryCluster, runner: Cluster, client: Cluster) -> None:
    """Two thousand messages for tomorrow are rows, and nothing else."""
    log = client.client(Log)
    for number in range(2000):
        await client.tell(log(f"e{number % 50}").add("tomorrow"), delay=timedelta(days=1))
    await client.poll_storage()
    statistics = host_of(runner).delivery.statistics()
    assert (statistics.in_memory, statistics.scheduled) == (0, 0)
    assert len(memory.store.messages.messages(MessageFilter(limit=5000))) == 2000


async def test_a_message_that_is_not_due_can_be_cancelled(memory: MemoryCluster, cluster: Cluster) -> None:
    """Soon or far off: it never runs, who waits hears it, and cancelling it again finds nothing."""
    log = cluster.client(Log)("a")
    for delay in (timedelta(seconds=0.3), _HOUR):
        told = await cluster.tell(log.add("no"), delay=delay)
        waiting = soon(failure(cluster.reply(told)))
        await asyncio.sleep(0.02)
        assert await cluster.cancel(told)
        assert isinstance(await waiting, MessageCancelled)
        assert isinstance(await failure(cluster.reply(told)), MessageCancelled)
        assert not await cluster.cancel(told)
    await asyncio.sleep(0.4)
    assert await log.read() == []


async def test_a_message_that_is_not_due_can_be_run_at_once(cluster: Cluster) -> None:
    """reset() does not wait for its time."""
    told = await cluster.tell(cluster.client(Log)("a").add("now"), delay=_HOUR)
    waiting = soon(cluster.reply(told))
    await asyncio.sleep(0.02)
    assert await cluster.reset(told)
    async with asyncio.timeout(2):
        assert await waiting == 1


async def test_due_messages_survive_their_runner(memory: MemoryCluster) -> None:
    """The next owner runs them on time, though nobody tells it."""
    first = await memory.start_runner()
    client = await memory.client()
    began = _clock.time()
    ids = [await client.tell(client.client(Log)(f"e{n}").add("x"), delay=timedelta(seconds=1)) for n in range(10)]
    await memory.start_runner()
    await memory.kill(first)
    for message_id in ids:
        assert await client.reply(message_id) == 1
    assert 1.0 <= _clock.time() - began < 4


async def test_due_messages_wait_for_a_busy_entity(cluster: Cluster) -> None:
    """A message whose time comes while another one runs is next."""
    log = cluster.client(Log)("a")
    held = soon(log.hold())
    await gates["a"].came()
    told = await cluster.tell(log.add("due"), delay=timedelta(seconds=0.05))
    await asyncio.sleep(0.1)
    gates["a"].open()
    assert await held == 1
    assert await cluster.reply(told) == 2


@pytest.mark.parametrize(("at", "seconds"), [(-60.0, None), (0.2, None), (None, 0.2), (None, 0.0), (None, -1.0)])
async def test_handlers_tell_for_later(anywhere: Cluster, at: float | None, seconds: float | None) -> None:
    """What a handler told with a time runs at that time, or at once if it is past."""
    sender = anywhere.client(Sender)("s")
    began = _clock.time()
    told = await sender.send_later("a", "due", at=None if at is None else in_seconds(at), seconds=seconds)
    async with asyncio.timeout(3):
        assert await anywhere.reply(told) == 1
    if (at or seconds or 0) > 0:
        assert _clock.time() - began >= 0.195


async def test_a_key_counts_for_due_messages(cluster: Cluster) -> None:
    """A second tell with the key is the first one, with the first one's time."""
    log = cluster.client(Log)("a")
    told = await cluster.tell(log.add("x"), delay=timedelta(seconds=0.2), key="k")
    assert await cluster.tell(log.add("x"), key="k") == told
    assert await log.read() == []
    assert await cluster.reply(told) == 1


async def test_the_row_of_a_due_message_says_when(memory: MemoryCluster, cluster: Cluster) -> None:
    """It is scheduled, with the time that was given."""
    due = in_seconds(3600)
    told = await cluster.tell(cluster.client(Log)("a").add("x"), deliver_at=due)
    row = memory.store.messages.find(told)
    assert row is not None
    assert row.state == MessageState.SCHEDULED
    assert row.deliver_at == pytest.approx(due.timestamp())
    assert list(itertools.chain(memory.store.messages.messages(MessageFilter(key="none")))) == []
