"""What user code reaches from inside a run: `save()`, `current().step(...)` and the like."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import msgspec

from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import Cell, Message, RunKind, running
from actorhub.engine.runs.checkpoints import Checkpoints
from actorhub.engine.runs.deferred import Deferrals
from actorhub.engine.runs.saving import Saving
from actorhub.engine.runs.waits import DurableWaits


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServices:
    """The parts of this process's engine that a run may call."""

    saving: Saving
    checkpoints: Checkpoints
    waits: DurableWaits
    deferrals: Deferrals
    save_main_loop: Callable[[Message, Cell, Any], Awaitable[None]]
    """Commits the state of a singleton in its `run`; the steps before it become history."""
    run_scheduled: Callable[[DurableMessage, Callable[[], Awaitable[Any]]], Awaitable[Any]]
    """Calls a method with `@cron` for the fire time of a message, unless that one is to be skipped."""


services: ContextVar[RunServices] = ContextVar("actorhub_services")
"""Set in the context of which every run gets a copy."""


async def save_now(state: Any = msgspec.UNSET) -> None:
    """Commit the state of the entity whose handler runs in this context, as it is now.

    Args:
        state: Replaces it first.

    Raises:
        RuntimeError: outside of a handler, or in one that may not commit.
        PersistenceError: ownership was lost, or the store failed.
    """
    message = running.get()
    cell = message.cell if message is not None else None
    is_main_loop = message is not None and message.run_kind is RunKind.MAIN_LOOP
    is_step = message is not None and message.run_kind is RunKind.STEP
    if (
        message is None
        or cell is None
        or cell.instance is None
        or (cell.record is None and not (is_main_loop or is_step))
    ):
        raise RuntimeError("save() can be called in a handler of an Entity with state, and in run() of a singleton")
    if is_step:
        raise RuntimeError(f"{message.what}: a step cannot save: return the value, and save after the step")
    here = services.get()
    if message.interleaving is None:
        await here.saving.save_state(message, cell, state)
        return
    async with message.interleaving.held():
        if is_main_loop:
            await here.save_main_loop(message, cell, state)
        else:
            await here.saving.save_state(message, cell, state)
