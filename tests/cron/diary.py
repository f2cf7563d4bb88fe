"""A singleton whose schedules write down when they ran, for the tests of schedules."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from actorhub import Cluster, Hub, Retry, Singleton, cron, current
from actorhub.storage.message_ports import MessageFilter, MessageState
from actorhub.storage.singleton_ports import ScheduleEdit, ScheduleRow
from actorhub.testing import MemoryCluster, SteppedClock, until

SOON = Retry(attempts=3, initial=timedelta(milliseconds=5), maximum=timedelta(milliseconds=20))
ONCE = Retry(attempts=1)
NOBODY_MINDS = timedelta(days=36_000)
"""Older than any fire time of a test."""
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
BEFORE_NOON = NOON - timedelta(seconds=50)
JUST = timedelta(milliseconds=20)
"""How long before a fire time the clock is set."""
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


async def _nothing(at: float) -> None:
    """Do nothing more."""


class Stage:
    """What a test sees of the runs of a schedule, and what it has them do."""

    def __init__(self) -> None:
        self.began: list[float] = []
        """The fire time of each run that began, on whatever runner."""
        self.act: Callable[[float], Awaitable[None]] = _nothing
        """What a run does before it writes."""
        self.hub = Hub()
        """The program of which the schedule is part."""
        self.singleton: type[Diary] = Diary

    def declare(self, expression: str, **options: Any) -> Hub:
        """Declare the singleton with a schedule called `tick`, as another release of the program would."""
        stage = self
        options = {"skip_if_older_than": NOBODY_MINDS, "retry": SOON, **options}

        class Ticking(Diary, name="diary"):
            @cron(expression, **options)
            async def tick(self, at: datetime) -> int:
                stage.began.append(at.timestamp())
                await stage.act(at.timestamp())
                self.state.append(at.timestamp())
                return current().attempt

        self.singleton = Ticking
        self.hub = Hub()
        self.hub.register(Ticking)
        return self.hub


class Diary(Singleton[list[float]], name="diary"):
    """Knows which fire times ran."""

    async def read(self) -> list[float]:
        return self.state

    async def poke(self) -> None:
        """Do nothing: it waits for its turn, like any handler."""


def moment(fire_time: float) -> datetime:
    """Return a fire time as a datetime."""
    return datetime.fromtimestamp(fire_time, UTC)


def written(memory: MemoryCluster) -> list[float]:
    """Return the fire times whose runs were committed, in their order."""
    stored = memory.stored("diary", "diary")
    return [] if stored is None else msgspec.msgpack.decode(stored.data, type=list[float])


def row(memory: MemoryCluster, name: str = "tick") -> ScheduleRow:
    """Return what is stored of a schedule; what is not yet, as if it had never run."""
    for found in memory.store.singletons.schedules("diary"):
        if found.name == name:
            return found
    return ScheduleRow(singleton="diary", name=name, declared="", expression="", timezone="", created_at=0)


async def noon_comes(memory: MemoryCluster, name: str = "tick") -> Cluster:
    """Start a runner, and set the clock just before noon once that is planned."""
    runner = await memory.start_runner()
    await comes(memory, NOON.timestamp(), name)
    return runner


async def comes(memory: MemoryCluster, at: float, name: str = "tick") -> None:
    """See the fire time planned, and the clock set just before it."""
    await planned(memory, at, name)
    await at_time(memory, moment(at) - JUST)


async def planned(memory: MemoryCluster, at: float | None = None, name: str = "tick") -> ScheduleRow:
    """Wait until the schedule's next fire time is planned; `at`: this one."""

    def is_planned() -> bool:
        next_at = row(memory, name).next_at
        return next_at is not None and at in (None, next_at)

    await until(is_planned, f"a plan for {at and moment(at)}")
    return row(memory, name)


async def ran(memory: MemoryCluster, *fire_times: float) -> None:
    """Wait until just these fire times' runs are committed, in this order, and nothing more is under way."""
    await until(lambda: len(written(memory)) >= len(fire_times), f"{len(fire_times)} runs")
    await idle(memory)
    assert [moment(at) for at in written(memory)] == [moment(at) for at in fire_times]


async def idle(memory: MemoryCluster) -> None:
    """Wait until every pending message is due later, and every schedule is planned and written."""
    await until(lambda: _is_idle(memory), "an idle diary")


def _is_idle(memory: MemoryCluster) -> bool:
    states = frozenset({MessageState.PENDING})
    busy = memory.store.messages.messages(MessageFilter(states=states))
    now = memory.clock.time()
    rows = memory.store.singletons.schedules("diary")
    return not busy and all(found.paused or (found.next_at is not None and found.next_at > now) for found in rows)


async def edit(memory: MemoryCluster, runner: Cluster, name: str = "tick", **change: Any) -> ScheduleRow:
    """Change a schedule as an operator does, and have its leader look."""
    edited = memory.store.singletons.edit_schedule("diary", name, ScheduleEdit(**change))
    assert edited is not None
    await runner.poll_storage()
    return edited


async def at_time(memory: MemoryCluster, when: datetime) -> None:
    """Set the clock, and have every runner look at what time it is."""
    clock = memory.clock
    assert isinstance(clock, SteppedClock)
    clock.set(when)
    for runner in memory.runners:
        await runner.poll_storage()
