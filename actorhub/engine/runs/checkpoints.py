"""Checkpoints of a run: results of steps, which a later run of the message or of a singleton's `run` finds again."""

import asyncio
import contextvars
import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import msgspec

from actorhub.core.codec import Codec, check_size, encode
from actorhub.core.errors import MalformedMessage, PersistenceError
from actorhub.core.idempotency import check_key
from actorhub.engine.model.cell import DEAD, Cell
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.message import COMMITTING, DONE, FOREVER, RUNNING, Message, running
from actorhub.engine.runs.scheduler import RunMoved, run_in
from actorhub.storage.checkpoint_ports import BODY, Checkpoint, CheckpointWrite, Scope
from actorhub.storage.ports import Fenced

_log: Final = logging.getLogger("actorhub.checkpoints")

MOST_STEPS: Final = 10_000
"""Checkpoints that one durable message, or one singleton between two saves, may have."""
_LONGEST_NAP: Final = 600.0
"""Seconds after which a long sleep looks at the store's clock again: this process's own drifts."""
_RETRY: Final = 1.0
"""Seconds until a sleep looks again after the store failed."""
_SLEEP: Final = "sleep\t"
"""Begins the names of sleeps; those of steps hold no control characters."""
_PLAIN: Final = (type(None), bool, int, float, str, bytes)


class Progress:
    """What a run stored of itself, as far as it is known here. Each run has its own."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.generation = 0
        self.saved: dict[str, bytes] | None = None
        """Results by the step's name; `None`: not loaded yet."""
        self.under_way: set[str] = set()
        """Steps that run now."""
        self.sleeps = 0
        """How many sleeps without a name began since the last `save`."""
        self.waits = 0
        """How many durable waits hold the run up: it may be cut short then, since it goes on elsewhere."""
        self.is_uncounted = False
        """The store counts no attempt of the message: this run stored a step, or began to wait."""
        self.is_unsure = False
        """A `save` that perhaps was written failed: the store may be generations ahead."""

    def closed(self) -> None:
        """Begin anew: what was stored is history."""
        self.saved = {}
        self.sleeps = 0
        self.generation += 1

    def check_quiet(self, message: Message) -> None:
        """Refuse to end the run, or what it is now, while steps run.

        Raises:
            RuntimeError: some do.
        """
        if self.under_way:
            raise RuntimeError(f"{message.what}: steps {sorted(self.under_way)} still run: await them first")


class Step(msgspec.Struct, frozen=True):
    """A step as its run asks for it."""

    name: str
    """Unique in the run."""
    call: Callable[[], Any]
    """Runs it; what it returns may be awaitable."""
    codec: Codec[Any] | None = None
    """Of the result; `None`: it is of a type that msgpack itself knows."""


class StepRun(Message):
    """A step under way, for `current()`: what it tells and its SQL are committed with its result."""

    __slots__ = ("parent",)

    def __init__(self, parent: Message, cell: Cell) -> None:
        super().__init__(parent.spec, parent.entity_id)
        self.parent = parent
        self.cell = cell
        self.epoch = parent.epoch
        self.message_id = parent.message_id
        self.headers = parent.headers
        self.chain = parent.chain
        self.deadline = FOREVER
        self.phase = RUNNING


def is_body(message: Message) -> bool:
    """Whether it is the run of a singleton's `run`."""
    return message.spec.interleaved and not message.spec.durable


async def progress_of(message: Message, cell: Cell) -> Progress:
    """Return the checkpoints of the run, loaded.

    Raises:
        RuntimeError: the run has none.
        PersistenceError: the store failed.
    """
    progress = known_progress(message)
    if progress.saved is None:
        saved = await cell.shard.host.storage.checkpoints.load(progress.scope)
        if progress.saved is None:
            progress.saved = dict(saved.checkpoints)
            progress.generation = saved.generation
    return progress


def known_progress(message: Message) -> Progress:
    """Return the checkpoints of the run, loaded or not.

    Raises:
        RuntimeError: the run has none.
    """
    if isinstance(message, StepRun) or isinstance(running.get(), StepRun):
        raise RuntimeError(f"{message.what}: a step cannot hold steps, waits or sleeps: do that outside")  # noqa: TRY004 - where it is
    if message.phase != RUNNING or message.spec.stream or not (message.spec.durable or is_body(message)):
        raise RuntimeError(
            f"{message.what}: step(), deferred() and sleep() work while a durable handler (no stream), or the run() of "
            "a singleton, runs"
        )
    if message.progress is None:
        number = BODY if is_body(message) else message.message_id
        progress = Progress(Scope(message.spec.entity_type, message.entity_id, number))
        cast("Any", message).progress = progress  # the classes that get here have the slot
        return progress
    return message.progress


async def run_step(message: Message, cell: Cell, step: Step) -> Any:  # what the step returns
    """Return the stored result of the step, or run it and store its result first."""
    name, codec = step.name, step.codec
    progress = await progress_of(message, cell)
    assert progress.saved is not None
    data = progress.saved.get(name)
    if data is None:
        if name in progress.under_way:
            raise RuntimeError(f"{message.what}: step {name!r} runs already: give the other one another name")
        if len(progress.saved) + len(progress.under_way) >= MOST_STEPS:
            raise RuntimeError(
                f"{message.what}: {MOST_STEPS} steps are the limit: save() makes a singleton's history; have a durable "
                "handler tell another one what is left to do"
            )
        progress.under_way.add(name)
        try:
            data = await _run(message, cell, step)
        finally:
            progress.under_way.discard(name)
    try:
        return msgspec.msgpack.decode(data) if codec is None else codec.decode(data)
    except MalformedMessage as error:
        raise MalformedMessage(
            f"{message.what}: the stored result of step {name!r} does not fit any more: {error}: give the changed step "
            "another name",
            possibly_executed=True,
        ) from error


async def _run(message: Message, cell: Cell, step: Step) -> bytes:
    """Run the step and store its result; a cancellation that comes meanwhile is raised once that is known."""
    progress = known_progress(message)
    run = StepRun(message, cell)
    context = contextvars.copy_context()
    context.run(running.set, run)
    what = f"{message.what}: result of step {step.name!r}"
    try:
        _check_alive(message, cell, progress)
        value = await run_in(context, _called(step.call))
        data = check_size(_encoded(value, step.codec, what), cell.shard.host.limits.max_message_bytes, what)
        _check_alive(message, cell, progress)
        run.phase = COMMITTING
        notes = CheckpointWrite(scope=progress.scope, stored=(Checkpoint(step.name, data),))
        cancelled = await cell.shard.host.runs.commit_step(run, cell, notes)
    except PersistenceError:
        progress.saved = None  # perhaps it is stored all the same: ask, before a function runs again
        raise
    finally:
        run.phase = DONE
        if run.transaction is not None:
            await run.transaction.roll_back()
    if progress.saved is not None:
        progress.saved[step.name] = data
    progress.is_uncounted = True
    _begin_count(message)
    if cancelled:
        raise asyncio.CancelledError
    return data


def _check_alive(message: Message, cell: Cell, progress: Progress) -> None:
    """Refuse to run or store a step for a run that is over, or for an activation that is dead.

    Raises:
        RuntimeError: the run is over; perhaps the message runs again by now.
        PersistenceError: ownership was lost, or the store knows better what is committed.
    """
    if message.phase != RUNNING or message.progress is not progress:
        raise RuntimeError(f"{message.what}: its run is over: await each step before the handler returns")
    if cell.phase == DEAD:
        raise Fenced(f"{cell.address}: nothing of this activation can be stored any more")


def _begin_count(message: Message) -> None:
    """Count the attempts of a durable message anew, from this run on: it made progress."""
    if isinstance(message, DurableMessage):
        message.attempts = 1


async def _called(call: Callable[[], Any]) -> Any:
    value = call()
    return await value if inspect.isawaitable(value) else value


def _encoded(value: Any, codec: Codec[Any] | None, what: str) -> bytes:
    """Return the encoded result, which must come back as what it is."""
    if codec is not None:
        data = codec.encode(value)
        codec.decode(data)
        return data
    if not _is_plain(value):
        raise TypeError(f"{what} would come back as another type: annotate what the step's function returns")
    return encode(value, what)


def _is_plain(value: object) -> bool:
    """Whether msgpack gives back what it got, without being told the type."""
    if type(value) is list:
        return all(map(_is_plain, cast("list[object]", value)))
    if type(value) is dict:
        pairs = cast("dict[object, object]", value).items()
        return all(type(key) in _PLAIN and _is_plain(item) for key, item in pairs)
    return type(value) in _PLAIN


@asynccontextmanager
async def durable_wait(message: Message, cell: Cell, progress: Progress) -> AsyncGenerator[None, None]:
    """Wait in the block for something that outlives this run: being cut short meanwhile is no attempt that failed.

    Once the block ends by itself the attempts count anew; a run that fails in it, for example at its timeout, counts.
    """
    _check_alive(message, cell, progress)
    if message.spec.durable and not progress.is_uncounted:
        cancelled = await cell.shard.host.runs.commit_step(
            StepRun(message, cell), cell, CheckpointWrite(scope=progress.scope)
        )
        progress.is_uncounted = True
        if cancelled:
            raise asyncio.CancelledError
    if message.abandoned_for is not None:
        raise asyncio.CancelledError  # its handler swallowed the first one, and there is no second
    progress.waits += 1
    try:
        if cell.shard.draining:
            moves = RunMoved(f"{message.address}: moves to another runner", possibly_executed=True)
            cell.shard.host.turns.abandon(message, moves)
        yield
    finally:
        progress.waits -= 1
    _begin_count(message)


async def durable_sleep(message: Message, cell: Cell, seconds: float, name: str | None) -> None:
    """Return so many seconds, by the store's clock, after the first run of the message came here."""
    progress = await progress_of(message, cell)
    if name is None:
        progress.sleeps += 1
        name = f"{progress.sleeps}"
    else:
        name = f"\t{check_name(name)}"
    now = await _store_time(cell)
    due: float = await run_step(message, cell, Step(f"{_SLEEP}{name}", lambda: now + seconds))
    if due <= now:
        return
    async with durable_wait(message, cell, progress):
        nap = due - now
        while nap > 0:
            await asyncio.sleep(min(nap, _LONGEST_NAP))
            try:
                nap = due - await _store_time(cell)
            except PersistenceError as error:
                _log.warning("%s: cannot see whether its sleep is over: %s", message.address, error)
                nap = _RETRY


async def _store_time(cell: Cell) -> float:
    """Return seconds since the Unix epoch by the store's clock, read after this was called."""
    _, now = await cell.shard.host.messages.load_scheduled((), 0.0, 0)
    return now


def check_name(name: str) -> str:
    """Return the name of a step, wait or sleep if it may be one.

    Raises:
        MalformedMessage: it is empty, too long, or holds control characters.
    """
    try:
        return check_key(name)
    except MalformedMessage as error:
        raise MalformedMessage(f"name of a step, wait or sleep: {error}", possibly_executed=True) from None


def closing_notes(message: Message) -> CheckpointWrite | None:
    """Return what the run's commit does to its checkpoints; `None` where it has none."""
    progress = message.progress
    return None if progress is None else CheckpointWrite(scope=progress.scope, closes=True)
