"""Entities whose handlers do what a script says, however odd, and write down what of it must be committed."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any, Final
from weakref import WeakSet

import msgspec

from actorhub import Entity, EntityError, Hub, Retry, Singleton, current, handler
from tests.support.gates import soon

ACTS: Final = (
    "mark", "pause", "save", "save twice", "leave a save", "leave a late save", "cancel itself", "cancel in vain",
    "keep its task", "keep its task weakly", "cancel kept tasks", "call back", "call back in vain", "tell", "block",
    "swallow a cancellation",
)  # fmt: skip
"""What a handler does before it ends."""

ENDINGS: Final = (
    "return", "return", "return", "return nothing", "return an odd object", "raise", "raise a domain error",
    "raise odd text", "raise without text", "raise something huge", "raise CancelledError", "raise GeneratorExit",
    "raise SystemExit", "raise KeyboardInterrupt", "leave an odd state", "leave another type",
    "never end", "never give in",
)  # fmt: skip
"""How it ends."""

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
        self.may_save_more = False
        """A task that it left behind may have committed more of them."""


class Records:
    """What all runs of a test did."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, int], list[Trace]] = defaultdict(list)
        """By entity and script: a durable message may run more than once."""
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


async def _perform(entity: Any, script: Script) -> object:
    """Do what the script says, in a handler of `entity`."""
    trace = Trace()
    shelf.records.runs[current().entity_id, script.number].append(trace)
    for place, act in enumerate(script.acts):
        await _act(entity, script, act, place, trace)
    return await _end(entity, script.ending, script.number)


async def _act(entity: Any, script: Script, act: str, place: int, trace: Trace) -> None:
    records, name = shelf.records, f"{script.number}.{next(_marks)}"
    task = asyncio.current_task()
    match act:
        case "mark":
            entity.state.marks.append(name)
            trace.marks.append(name)
        case "pause":
            await asyncio.sleep(0)
        case "save":
            await _save(entity, trace)
        case "save twice":
            await asyncio.gather(_save(entity, trace), _save(entity, trace))
        case "leave a save" | "leave a late save":
            trace.may_save_more = True
            _ = soon(_save_later(entity, 0 if act == "leave a save" else 3))
        case "cancel itself" if task is not None:
            task.cancel()
        case "cancel in vain" if task is not None:
            task.cancel()
            task.uncancel()
        case "keep its task" if task is not None:
            _ = soon(_keep(task, records.kept.append))
        case "keep its task weakly" if task is not None:
            _ = soon(_keep(task, records.kept_weakly.add))
        case "cancel kept tasks":
            for kept in (*records.kept, *records.kept_weakly):
                kept.cancel()
        case "call back" | "call back in vain":
            fails = act == "call back in vain"
            if not fails:
                trace.marks.append(f"{name} nested")
            try:
                await current().client(Relay)("relay").call_back(current().entity_id, f"{name} nested", fails)
            except Exception:
                if not fails:
                    trace.marks.remove(f"{name} nested")
                    raise
        case "tell":
            await current().tell(current().client(Relay)("relay").hear(script.number))
        case "block":
            for _ in range(20):
                await asyncio.sleep(0.001)
        case "swallow a cancellation":
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.002)
        case _:
            pass


async def _keep(task: "asyncio.Task[Any]", keep: Any) -> None:
    """Keep the task of a handler for when that is over."""
    coroutine: Any = task.get_coro()
    for _ in range(100):
        if task.done() or coroutine is None:
            break
        await asyncio.sleep(0.001)
    keep(task)


async def _save(entity: Any, trace: Trace) -> None:
    marks = len(trace.marks)
    try:
        await entity.save()
    except BaseException:
        trace.may_save_more = True
        raise
    trace.saved = max(trace.saved, marks)


async def _save_later(entity: Any, rounds: int) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0)
    with suppress(Exception):
        await entity.save()


async def _end(entity: Any, ending: str, number: int) -> object:
    errors: dict[str, BaseException] = {
        "raise": ValueError("on purpose"),
        "raise a domain error": Refused(number=number),
        "raise odd text": ValueError("half \ud800 of a pair, and \x00"),
        "raise without text": _NoText(),
        "raise something huge": ValueError("x" * 300_000),
        "raise CancelledError": asyncio.CancelledError(),
        "raise GeneratorExit": GeneratorExit(),
        "raise SystemExit": SystemExit(3),
        "raise KeyboardInterrupt": KeyboardInterrupt(),
    }
    if ending in errors:
        raise errors[ending]
    match ending:
        case "return nothing":
            return None
        case "return an odd object":
            return object()
        case "leave an odd state":
            entity.state.anything = object()
        case "leave another type":
            entity.state.anything = (1, 2)
        case "never end":
            await asyncio.sleep(3600)
        case "never give in":
            end = asyncio.get_running_loop().time() + _GIVES_IN_AFTER
            while asyncio.get_running_loop().time() < end:
                with suppress(BaseException):
                    await asyncio.sleep(0.05)
        case _:
            pass
    return number


class Actor(Entity[State]):
    """Does what scripts say, in every kind of handler."""

    @handler(timeout=_LIMIT)
    async def plain(self, script: Script) -> int:
        return await _perform(self, script)  # type: ignore[return-value]

    @handler(durable=True, timeout=_LIMIT, retry=Retry(attempts=2, initial=timedelta(milliseconds=1)))
    async def durable(self, script: Script) -> int:
        return await _perform(self, script)  # type: ignore[return-value]

    @handler(durable=True, timeout=_LIMIT, retry=Retry(attempts=2, initial=timedelta(milliseconds=1)))
    async def in_a_step(self, script: Script) -> int:
        async def step() -> int:
            return await _end(self, script.ending, script.number)  # type: ignore[return-value]

        await current().step("before", _nothing)
        return await current().step("odd", step)

    @handler(timeout=_LIMIT)
    async def stream(self, script: Script) -> AsyncIterator[int]:
        """Do each act in a step of its own; a mark is committed with its step."""
        trace = Trace()
        shelf.records.runs[current().entity_id, script.number].append(trace)
        try:
            for place, act in enumerate(script.acts):
                if act in ("mark", "pause", "save", "block", "swallow a cancellation", "tell"):
                    await _act(self, script, act, place, trace)
                yield place
                trace.saved = len(trace.marks)
            await _end(self, script.ending, script.number)
        finally:
            await asyncio.sleep(0)

    async def read(self) -> State:
        return self.state

    @handler(reentrant=True)
    async def within(self, mark: str, fails: bool) -> int:
        self.state.marks.append(mark)
        await asyncio.sleep(0)
        if fails:
            raise ValueError("within")
        return len(self.state.marks)


class Waker(Entity[State], max_idle=timedelta(milliseconds=30)):
    """Does what its id says when it is activated, once in two, and when it leaves memory."""

    async def on_activate(self) -> None:
        ending = current().entity_id
        runs = shelf.records.runs[ending, 0]
        runs.append(Trace())
        if len(runs) % 2:
            await _end(self, ending, 0)

    async def on_deactivate(self) -> None:
        await _end(self, current().entity_id, 0)

    async def read(self) -> State:
        return self.state


class Relay(Entity, concurrency=1000):
    """Calls back, and hears what is told."""

    async def call_back(self, entity_id: str, mark: str, fails: bool) -> None:
        with suppress(ValueError):
            try:
                await current().client(Actor)(entity_id).within(mark, fails)
            except Exception:
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
        await _end(self, script.ending, script.number)

    async def do(self, script: Script) -> None:
        self._script.put_nowait(script)

    @handler(timeout=_LIMIT)
    async def plain(self, script: Script) -> int:
        return await _end(self, script.ending, script.number)  # type: ignore[return-value]

    async def read(self) -> State:
        return self.state


async def _nothing() -> None:
    pass


hub: Final = Hub()
for _entity in (Actor, Waker, Relay, Loop):
    hub.register(_entity)

Call = Coroutine[Any, Any, object]
