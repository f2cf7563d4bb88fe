"""What user code reaches from inside a run: `save()`, `current().step(...)` and the like."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import msgspec

from actorhub.engine.model.event_loop import check_loop
from actorhub.engine.model.records import RunKind
from actorhub.engine.model.run import Run, running
from actorhub.engine.runs.background import BackgroundTasks
from actorhub.engine.runs.checkpoints import Checkpoints
from actorhub.engine.runs.deferred import Deferrals
from actorhub.engine.runs.saving import Saving, one_save_at_a_time
from actorhub.engine.runs.waits import DurableWaits


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServices:
    """The parts of this process's engine that a run may call."""

    saving: Saving
    checkpoints: Checkpoints
    waits: DurableWaits
    deferrals: Deferrals
    background: BackgroundTasks
    save_main_loop: Callable[[Run, Any], Awaitable[None]]
    """Commits the state of a singleton in its `run`; the steps before it become history."""
    run_scheduled: Callable[[Run, Callable[[], Awaitable[Any]]], Awaitable[Any]]
    """Calls a method with `@cron` for the fire time of a message, unless that one is to be skipped."""
    loop: asyncio.AbstractEventLoop
    """Runs all handlers of this process."""


services: ContextVar[RunServices] = ContextVar("actorhub_services")
"""Set in the context of which every run gets a copy."""


def services_of(run: Run) -> RunServices:
    """Return what the run may call.

    Raises:
        NotConnected: this is a thread, or an event loop, that the handler has started.
    """
    here = services.get()
    check_loop(here.loop, run.what)
    return here


async def save_now(state: Any = msgspec.UNSET) -> None:
    """Commit the state of the entity whose handler runs in this context, as it is now.

    Args:
        state: Replaces it first.

    Raises:
        RuntimeError: outside of a handler, in one that may not commit, or in a task that outlived its handler.
        NotConnected: in a thread that the handler has started.
        PersistenceError: ownership was lost, or the store failed.
    """
    run = running.get()
    kind = run.kind if run is not None else None
    is_known = kind in (RunKind.MAIN_LOOP, RunKind.STEP) or (run is not None and run.cell.record is not None)
    if run is None or run.cell.instance is None or not is_known:
        raise RuntimeError("save() can be called in a handler of an Entity with state, and in run() of a singleton")
    if kind is RunKind.STEP:
        raise RuntimeError(f"{run.what}: a step cannot save: return the value, and save after the step")
    here = services_of(run)
    async with one_save_at_a_time(run):
        if run.interleaving is None:
            await here.saving.save_state(run, state)
            return
        async with run.interleaving.held():
            if kind is RunKind.MAIN_LOOP:
                await here.save_main_loop(run, state)
            else:
                await here.saving.save_state(run, state)
