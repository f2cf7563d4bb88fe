"""Checkpoints: results of steps, which a later run of the message, or of a singleton's `run`, finds again."""

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from actorhub.core import arguments
from actorhub.core.codec import Codec, check_size, encode
from actorhub.core.errors import MalformedMessage, PersistenceError
from actorhub.core.idempotency import MAX_KEY_BYTES
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.progress import Progress
from actorhub.engine.model.records import COMMITTING, DEAD, DONE, RunKind
from actorhub.engine.model.run import Run, running
from actorhub.engine.runs.driving import run_in
from actorhub.engine.runs.saving import Saving, StepRun
from actorhub.storage.checkpoint_ports import BODY, Checkpoint, CheckpointStore, CheckpointWrite, Scope
from actorhub.storage.ports import Fenced

MOST_STEPS: Final = 10_000
"""Checkpoints that one durable message, or one singleton between two saves, may have."""
_PLAIN: Final = (type(None), bool, int, float, str, bytes)


class Step(msgspec.Struct, frozen=True):
    """A step that a run asks for."""

    name: str
    """Unique in the run."""
    call: Callable[[], Any]
    """Runs it; what it returns may be awaitable."""
    codec: Codec[Any] | None = None
    """The codec of the result; `None`: the result is of a type that msgpack gives back as it was."""


class Checkpoints:
    """Runs each step once: its result is stored before the run goes on."""

    def __init__(self, *, store: CheckpointStore, saving: Saving, max_message_bytes: int) -> None:
        self._store = store
        self._saving = saving
        self._limit = max_message_bytes

    async def load(self, scope: Scope) -> Progress:
        """Return what is stored for a scope.

        Raises:
            PersistenceError: the store failed.
        """
        progress = Progress(scope)
        saved = await self._store.load(scope)
        progress.saved, progress.generation = dict(saved.checkpoints), saved.generation
        return progress

    async def progress_of(self, run: Run) -> Progress:
        """Return the checkpoints of the run, loaded.

        Raises:
            RuntimeError: the run has none.
            PersistenceError: the store failed.
        """
        progress = known_progress(run)
        if progress.saved is None:
            loaded = await self.load(progress.scope)
            # Another task of the run may have loaded it first, and stored steps since; this answer lacks those.
            if progress.saved is None:
                progress.saved, progress.generation = loaded.saved, loaded.generation
        return progress

    async def run_step(self, run: Run, step: Step) -> Any:  # what the step returns
        """Return the stored result of the step, or run it and store its result first."""
        name, codec = step.name, step.codec
        progress = await self.progress_of(run)
        assert progress.saved is not None
        data = progress.saved.get(name)
        if data is None:
            if name in progress.under_way:
                raise RuntimeError(f"{run.what}: step {name!r} is already running: give this one another name")
            if len(progress.saved) + len(progress.under_way) >= MOST_STEPS:
                raise RuntimeError(
                    f"{run.what}: {MOST_STEPS} steps are the limit: a singleton starts a new count with save(); "
                    "let a durable handler tell another one to do the rest"
                )
            progress.under_way.add(name)
            try:
                data = await self._run(run, step)
            finally:
                progress.under_way.discard(name)
        try:
            return msgspec.msgpack.decode(data) if codec is None else codec.decode(data)
        except MalformedMessage as error:
            raise MalformedMessage(
                f"{run.what}: the stored result of step {name!r} no longer fits: {error}: give the changed step "
                "another name",
                possibly_executed=True,
            ) from error

    async def _run(self, parent: Run, step: Step) -> bytes:
        """Run the step and store its result; a cancellation while it is stored is raised once the outcome is known."""
        progress = known_progress(parent)
        run = StepRun.within(parent, step.name)
        context = contextvars.copy_context()
        context.run(running.set, run)
        what = f"{parent.what}: result of step {step.name!r}"
        try:
            check_alive(parent)
            value = await run_in(context, _call(step.call))
            data = check_size(_encode(value, step.codec, what), self._limit, what)
            # The step took its time. A step of a run that is over must not be stored beside those of the next run.
            check_alive(parent)
            run.phase = COMMITTING
            write = CheckpointWrite(scope=progress.scope, stored=(Checkpoint(step.name, data),))
            cancelled = await self._saving.commit_step(run, write)
        except PersistenceError:
            progress.saved = None  # It may be stored nevertheless: ask the store before the function runs again.
            raise
        finally:
            run.phase = DONE
            if run.transaction is not None:
                await run.transaction.roll_back()
        if progress.saved is not None:
            progress.saved[step.name] = data
        progress.is_uncounted = True
        restart_count(parent)
        if cancelled:
            raise asyncio.CancelledError
        return data


def known_progress(run: Run) -> Progress:
    """Return the checkpoints of the run, loaded or not.

    Raises:
        RuntimeError: the run has none.
    """
    if run.kind is RunKind.STEP or isinstance(running.get(), StepRun):
        raise RuntimeError(f"{run.what}: a step cannot contain steps, waits or sleeps: move them out of it")
    message = run.message
    is_durable = isinstance(message, DurableMessage)
    if not run.is_running or not (is_durable or run.kind is RunKind.MAIN_LOOP):
        raise RuntimeError(
            f"{run.what}: step(), deferred() and sleep() can be called only while a durable handler that is not a "
            "stream is running, or the run() of a singleton"
        )
    if run.progress is None:
        number = message.message_id if is_durable else BODY
        run.progress = Progress(Scope(message.spec.entity_type, message.entity_id, number))
    return run.progress


def check_alive(run: Run) -> None:
    """Refuse to run or store a step of a run, or of an activation, that is over.

    Raises:
        RuntimeError: the run is over; the message may be running again by now.
        PersistenceError: the activation is over: ownership was lost, or the store refused a commit.
    """
    if not run.is_running:
        raise RuntimeError(f"{run.what}: its run is over: await each step before the handler returns")
    if run.cell.phase == DEAD:
        raise Fenced(f"{run.cell.address}: this activation is over, so none of it can be stored")


def restart_count(run: Run) -> None:
    """Count the attempts of a durable message from this run on: it made progress."""
    if isinstance(run.message, DurableMessage):
        run.message.attempts = 1


def check_name(name: str) -> str:
    """Return the name of a step, wait or sleep if it is valid.

    Raises:
        MalformedMessage: it is empty, too long, or has control characters.
    """
    what = "the name of a step, wait or sleep"
    try:
        checked = arguments.check_name(name, what, MAX_KEY_BYTES)
        if not checked:
            raise MalformedMessage(f"{what} must not be empty")
    except MalformedMessage as error:
        error.possibly_executed = True
        raise
    return checked


async def _call(call: Callable[[], Any]) -> Any:
    value = call()
    return await value if inspect.isawaitable(value) else value


def _encode(value: Any, codec: Codec[Any] | None, what: str) -> bytes:
    """Return the encoded result; one that would be decoded as something else is refused."""
    if codec is not None:
        data = codec.encode(value)
        codec.decode(data)
        return data
    try:
        is_plain = _is_plain(value)
    except RecursionError:
        raise MalformedMessage(f"{what} is nested too deeply") from None
    if not is_plain:
        raise TypeError(f"{what} would come back as another type: annotate what the step's function returns")
    return encode(value, what)


def _is_plain(value: object) -> bool:
    """Whether msgpack, without being told the type, gives back an equal value of the same type."""
    if type(value) is list:
        return all(map(_is_plain, cast("list[object]", value)))
    if type(value) is dict:
        pairs = cast("dict[object, object]", value).items()
        return all(type(key) in _PLAIN and _is_plain(item) for key, item in pairs)
    return type(value) in _PLAIN
