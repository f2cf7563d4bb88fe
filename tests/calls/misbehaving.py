"""Entities whose handlers do what a script says, however odd, and write down what of it must be committed."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final, cast
from weakref import WeakSet

import msgspec

from actorhub import ActorhubError, Entity, EntityError, Hub, Retry, Singleton, cron, current, handler
from actorhub._call import Call, CallTarget
from actorhub.cluster import Cluster, part_of
from actorhub.engine.model.records import ACTIVE, Cell
from actorhub.engine.model.run import running
from actorhub.entity import Declared
from tests.support.gates import soon

ENDINGS: Final = (
    "return", "return", "return", "return nothing", "return an odd object", "raise", "raise a domain error",
    "raise odd text", "raise without text", "raise something huge", "raise CancelledError", "raise GeneratorExit",
    "raise SystemExit", "raise KeyboardInterrupt", "leave an odd state", "leave another type",
    "never end", "never give in",
)  # fmt: skip
"""How it ends. The last two are only for handlers with a timeout."""

_ERRORS: Final[dict[str, Callable[[int], BaseException]]] = {
    "raise": lambda _: ValueError("on purpose"),
    "raise a domain error": lambda number: Refused(number=number),
    "raise odd text": lambda _: ValueError("half \ud800 of a pair, and \x00"),
    "raise without text": lambda _: _NoText(),
    "raise something huge": lambda _: ValueError("x" * 300_000),
    "raise CancelledError": lambda _: asyncio.CancelledError(),
    "raise GeneratorExit": lambda _: GeneratorExit(),
    "raise SystemExit": lambda _: SystemExit(3),
    "raise KeyboardInterrupt": lambda _: KeyboardInterrupt(),
}
_marks: Final = count()
_LIMIT: Final = timedelta(milliseconds=60)
_GIVES_IN_AFTER: Final = 3.0
"""Seconds after which even a handler that never gives in ends, so that the test can."""


class Script(msgspec.Struct, frozen=True):
    """What one call does."""

    number: int
    acts: tuple[str, ...]
    ending: str


class State(msgspec.Struct):
    """Marks of what was done, in order."""

    marks: list[str] = []
    anything: Any = None


class Refused(EntityError):
    """A domain error."""

    number: int


class _NoText(Exception):
    def __str__(self) -> str:
        raise SystemExit


class Trace:
    """What one run did."""

    def __init__(self) -> None:
        self.marks: list[str] = []
        self.saved = 0
        """How many of the marks are certainly committed, whatever becomes of the run."""
        self.is_over = False
        self.may_save_more = False
        """A task that it left behind may have committed more of them."""


class Records:
    """What all runs of a test did."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, int], list[Trace]] = defaultdict(list)
        """By entity and script: a durable message may run more than once."""
        self.inside: list[object] = []
        """Instances in the middle of something that nobody else may see."""
        self.overlaps: list[str] = []
        """Entities of which two runs were in the middle of something at once."""
        self.ticks: dict[datetime, Script] = {}
        """What the method of a schedule is to do at its fire times."""
        self.kept: list[asyncio.Task[Any]] = []
        self.kept_weakly: WeakSet[asyncio.Task[Any]] = WeakSet()


class Shelf:
    """Where the handlers find the records of their test."""

    def __init__(self) -> None:
        self.records = Records()

    def clear(self) -> Records:
        """Begin a new test."""
        self.records = Records()
        return self.records


shelf: Final = Shelf()


class Acting:
    """Does what a script says, in a handler of `entity`."""

    def __init__(self, entity: "Entity[State]", script: Script) -> None:
        self._entity = entity
        self._script = script
        self._trace = Trace()
        shelf.records.runs[current().entity_id, script.number].append(self._trace)

    async def perform(self) -> int:
        """Do all of it."""
        try:
            with _alone(self._entity):
                for act in self._script.acts:
                    await _ACTS[act](self)
            return await end(self._entity, self._script)
        finally:
            self._trace.is_over = True

    async def do(self, act: str) -> None:
        """Do one act; a stream does each in a step of its own."""
        with _alone(self._entity):
            await _ACTS[act](self)

    def on_step_committed(self) -> None:
        """What was done so far stays, whatever becomes of the stream."""
        self._trace.saved = len(self._trace.marks)

    def _name(self) -> str:
        return f"{self._script.number}.{next(_marks)}"

    async def mark(self) -> None:
        name = self._name()
        self._entity.state.marks.append(name)
        self._trace.marks.append(name)

    async def pause(self) -> None:
        await asyncio.sleep(0)

    async def block(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0.001)

    async def save(self) -> None:
        marks = len(self._trace.marks)
        try:
            await self._entity.save()
        except BaseException:
            self._trace.may_save_more = True
            raise
        self._trace.saved = max(self._trace.saved, marks)

    async def save_twice(self) -> None:
        await asyncio.gather(self.save(), self.save())

    async def leave_a_save(self) -> None:
        self._leave_save(0)

    async def leave_a_late_save(self) -> None:
        self._leave_save(20)

    def _leave_save(self, rounds: int) -> None:
        async def save() -> None:
            for _ in range(rounds):
                await asyncio.sleep(0)
            with suppress(RuntimeError, ActorhubError):
                await self._entity.save()

        self._trace.may_save_more = True
        _ = soon(save())

    async def leave_a_late_change(self) -> None:
        run = running.get()
        assert run is not None
        _ = soon(self._change_late(run.cell))

    async def _change_late(self, cell: Cell) -> None:
        """Change the state while no run does: in the middle of another run it would be as good as that one's."""
        for _ in range(200):
            await asyncio.sleep(0)
            if self._trace.is_over and cell.phase == ACTIVE and cell.load == cell.nested == 0:
                self._entity.state.marks.append("late")
                break

    async def cancel_itself(self) -> None:
        _task().cancel()

    async def cancel_in_vain(self) -> None:
        _task().cancel()
        _task().uncancel()

    async def keep_its_task(self) -> None:
        _ = soon(_keep(_task(), self._trace, shelf.records.kept.append))

    async def keep_its_task_weakly(self) -> None:
        _ = soon(_keep(_task(), self._trace, shelf.records.kept_weakly.add))

    async def cancel_kept_tasks(self) -> None:
        for kept in (*shelf.records.kept, *shelf.records.kept_weakly):
            kept.cancel()

    async def call_back(self) -> None:
        name = self._name()
        self._trace.marks.append(name)
        try:
            await current().client(Relay)("relay").call_back(current().entity_id, name, fails=False)
        except ActorhubError:
            self._trace.marks.remove(name)
            raise

    async def call_back_in_vain(self) -> None:
        await current().client(Relay)("relay").call_back(current().entity_id, self._name(), fails=True)

    async def tell(self) -> None:
        await current().tell(current().client(Relay)("relay").hear(self._script.number))

    async def swallow_a_cancellation(self) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.002)


@contextmanager
def _alone(entity: object) -> Iterator[None]:
    """Note if two runs are in an instance at once, neither of which is within the other."""
    records = shelf.records
    if entity in records.inside:
        records.overlaps.append(current().entity_id)
    records.inside.append(entity)
    try:
        yield
    finally:
        records.inside.remove(entity)


_ACTS: Final = {
    act.__name__: act
    for act in (
        Acting.mark, Acting.pause, Acting.block, Acting.save, Acting.save_twice, Acting.leave_a_save,
        Acting.leave_a_late_save, Acting.leave_a_late_change, Acting.cancel_itself, Acting.cancel_in_vain,
        Acting.keep_its_task, Acting.keep_its_task_weakly, Acting.cancel_kept_tasks, Acting.call_back,
        Acting.call_back_in_vain, Acting.tell, Acting.swallow_a_cancellation,
    )
}  # fmt: skip
ACTS: Final = tuple(_ACTS)
"""What a handler does before it ends."""
_IN_STREAMS: Final = ("mark", "pause", "block", "save", "tell", "swallow_a_cancellation")


def _task() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    assert task is not None
    return task


async def _keep(task: "asyncio.Task[object]", trace: Trace, keep: "Callable[[asyncio.Task[object]], None]") -> None:
    """Keep the task of a handler, to be cancelled when that is over."""
    for _ in range(1000):
        if trace.is_over:
            break
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    keep(task)


async def end(entity: "Declared[State]", script: Script) -> int:
    """End as the script says."""
    ending = script.ending
    if ending in _ERRORS:
        raise _ERRORS[ending](script.number)
    if ending == "return nothing":
        return cast("int", None)
    if ending == "return an odd object":
        return cast("int", object())
    if ending == "leave an odd state":
        entity.state.anything = object()
    elif ending == "leave another type":
        entity.state.anything = (1, 2)
    elif ending == "never end":
        await asyncio.sleep(3600)
    elif ending == "never give in":
        await _never_give_in()
    return script.number


async def _never_give_in() -> None:
    until = asyncio.get_running_loop().time() + _GIVES_IN_AFTER
    while asyncio.get_running_loop().time() < until:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)


class Actor(Entity[State]):
    """Does what scripts say, in every kind of handler."""

    @handler(timeout=_LIMIT)
    async def plain(self, script: Script) -> int:
        return await Acting(self, script).perform()

    @handler(durable=True, timeout=_LIMIT, retry=Retry(attempts=2, initial=timedelta(milliseconds=1)))
    async def durable(self, script: Script) -> int:
        return await Acting(self, script).perform()

    @handler(durable=True, timeout=_LIMIT, retry=Retry(attempts=2, initial=timedelta(milliseconds=1)))
    async def in_a_step(self, script: Script) -> int:
        async def step() -> int:
            return await end(self, script)

        await current().step("before", _nothing)
        return await current().step("odd", step)

    @handler(timeout=_LIMIT)
    async def stream(self, script: Script) -> AsyncIterator[int]:
        """Do each act in a step of its own; a mark is committed with its step."""
        acting = Acting(self, script)
        try:
            for place, act in enumerate(script.acts):
                if act in _IN_STREAMS:
                    await acting.do(act)
                yield place
                acting.on_step_committed()
            await end(self, script)
        finally:
            with _alone(self):
                await asyncio.sleep(0)

    async def read(self) -> State:
        return self.state

    @handler(reentrant=True)
    async def within(self, mark: str, fails: bool) -> int:
        """Be called back."""
        self.state.marks.append(mark)
        await asyncio.sleep(0)
        if fails:
            raise ValueError("within")
        return len(self.state.marks)

    @handler(reentrant=True, timeout=_LIMIT)
    async def from_elsewhere(self, script: Script) -> int:
        """Be called by who does not know of a running handler."""
        return await Acting(self, script).perform()


class Waker(Entity[State], max_idle=timedelta(milliseconds=30)):
    """Does what its id says when it is activated, once in two, and when it leaves memory."""

    async def on_activate(self) -> None:
        ending = current().entity_id
        runs = shelf.records.runs[ending, 0]
        runs.append(Trace())
        if len(runs) % 2:
            await end(self, Script(0, (), ending))

    async def on_deactivate(self) -> None:
        await end(self, Script(0, (), current().entity_id))

    async def read(self) -> State:
        return self.state


class Relay(Entity, concurrency=1000):
    """Calls back, and hears what is told."""

    async def call_back(self, entity_id: str, mark: str, fails: bool) -> None:
        try:
            await current().client(Actor)(entity_id).within(mark, fails)
        except ActorhubError:
            if not fails:
                raise

    async def hear(self, number: int) -> int:
        return number


class Loop(Singleton[State]):
    """Ends its main loop as it is told, and answers meanwhile."""

    def __init__(self) -> None:
        self._script: asyncio.Queue[Script] = asyncio.Queue()

    async def run(self) -> None:
        script = await self._script.get()
        await end(self, script)

    async def do(self, script: Script) -> None:
        self._script.put_nowait(script)

    @handler(timeout=_LIMIT)
    async def plain(self, script: Script) -> int:
        return await end(self, script)

    @cron("@yearly", retry=Retry(attempts=2, initial=timedelta(milliseconds=1)))
    async def tick(self, at: datetime) -> int:
        return await end(self, shelf.records.ticks[at])

    async def read(self) -> State:
        return self.state


async def _nothing() -> None:
    pass


def tick(cluster: Cluster, script: Script, timeout: timedelta) -> Call:
    """Return the call with which a person runs the method of a schedule."""
    at = datetime.fromtimestamp(script.number, UTC)
    shelf.records.ticks[at] = script
    loop = hub.specs["loop"]
    assert loop.singleton_id is not None
    spec = loop.crons["tick"]
    target = CallTarget(part_of(cluster).node, timeout=timeout.total_seconds())
    return Call(target, spec, loop.singleton_id, spec.bind(at))


hub: Final = Hub()
for _entity in (Actor, Waker, Relay, Loop):
    hub.register(_entity)
