"""Checkpoints of a run: results of steps, which a later run of the message or of a singleton's `run` finds again."""

import contextvars
import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec

from actorhub.core.codec import Codec, check_size
from actorhub.core.errors import MalformedMessage
from actorhub.core.idempotency import check_key
from actorhub.engine.cell import Cell
from actorhub.engine.message import FOREVER, RUNNING, Message, running
from actorhub.engine.turns import run_in
from actorhub.storage.checkpoint_ports import BODY, Checkpoint, Notes, Scope


class Progress:
    """What a run stored of itself, as far as it is known here."""

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

    def closed(self) -> None:
        """Begin anew: what was stored is history."""
        self.saved = {}
        self.sleeps = 0
        self.generation += 1


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
    if isinstance(message, StepRun):
        raise RuntimeError(f"{message.what}: a step cannot hold steps, waits or sleeps: do that outside")  # noqa: TRY004 - where it is
    if message.phase != RUNNING or message.spec.stream or not (message.spec.durable or is_body(message)):
        raise RuntimeError(
            f"{message.what}: step(), deferred() and sleep() work while a durable handler, or the run() of a "
            "singleton, runs"
        )
    if message.progress is None:
        number = BODY if is_body(message) else message.message_id
        progress = Progress(Scope(message.spec.entity_type, message.entity_id, number))
        cast("Any", message).progress = progress  # the classes that get here have the slot
        return progress
    return message.progress


async def run_step(
    message: Message, cell: Cell, name: str, call: Callable[[], Any], codec: Codec[Any] | None
) -> Any:  # what the step returns
    """Return the stored result of the step, or run it and store its result first.

    Args:
        message: The run that the step belongs to.
        cell: Its entity.
        name: Unique in the run.
        call: Runs the step; what it returns may be awaitable.
        codec: Of the result; `None`: it is of a type that msgpack itself knows.
    """
    check_key(name)
    progress = await progress_of(message, cell)
    assert progress.saved is not None
    data = progress.saved.get(name)
    if data is None:
        if name in progress.under_way:
            raise RuntimeError(f"{message.what}: step {name!r} runs already: give the other one another name")
        progress.under_way.add(name)
        try:
            data = await _run(message, cell, name, call, codec)
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


async def _run(message: Message, cell: Cell, name: str, call: Callable[[], Any], codec: Codec[Any] | None) -> bytes:
    progress = known_progress(message)
    run = StepRun(message, cell)
    context = contextvars.copy_context()
    context.run(running.set, run)
    what = f"{message.what}: result of step {name!r}"
    try:
        value = await run_in(context, _called(call))
        data = check_size(_encoded(value, codec, what), cell.shard.host.limits.max_message_bytes, what)
        notes = Notes(scope=progress.scope, stored=(Checkpoint(name, data),))
        await cell.shard.host.runs.commit_step(run, cell, notes)
    finally:
        if run.transaction is not None:
            await run.transaction.roll_back()
    assert progress.saved is not None
    progress.saved[name] = data
    return data


async def _called(call: Callable[[], Any]) -> Any:
    value = call()
    return await value if inspect.isawaitable(value) else value


def _encoded(value: Any, codec: Codec[Any] | None, what: str) -> bytes:
    """Return the encoded result, which must come back as what it is."""
    if codec is not None:
        data = codec.encode(value)
        codec.decode(data)
        return data
    data = msgspec.msgpack.encode(value)
    if msgspec.msgpack.decode(data) != value:
        raise TypeError(f"{what} comes back as another type: annotate what the step's function returns")
    return data


@asynccontextmanager
async def durable_wait(message: Message, cell: Cell, progress: Progress) -> AsyncGenerator[None, None]:
    """Wait in the block for something that outlives this run: being cut short meanwhile is no attempt that failed."""
    if message.spec.durable:
        await cell.shard.host.runs.commit_step(StepRun(message, cell), cell, Notes(scope=progress.scope))
    progress.waits += 1
    try:
        yield
    finally:
        progress.waits -= 1


def closing_notes(message: Message) -> Notes | None:
    """Return what the run's commit does to its checkpoints; `None` where it has none."""
    progress = message.progress
    return None if progress is None else Notes(scope=progress.scope, closes=True)
