"""The hub of the tests of durable messages: entities that keep and tell what ran, and what was committed.

The environment variable `DURABLE_MUTANT` names a defect of the product to run with; nothing but this module reads it.
"""

import asyncio
import os
import signal
import time
from datetime import timedelta
from typing import Final

import msgspec

from actorhub import Entity, EntityError, Hub, Retry, current, handler
from actorhub.engine.model.run import Run
from actorhub.engine.runs.scheduler import Scheduler
from tests.faults import mutants
from tests.faults.cluster.notes import Notes

WITNESS_TABLE: Final = """
create table if not exists public.witness (
    message_id bigint not null,
    key text,
    entity text not null,
    content bigint not null,
    attempt integer not null,
    epoch bigint not null,
    position bigint not null,
    sender text not null,
    sequence bigint not null,
    at timestamptz not null default clock_timestamp()
)
"""
"""Without a unique constraint: a second commit of a message must show."""
_PATIENT: Final = Retry(attempts=100, initial=timedelta(milliseconds=20), maximum=timedelta(milliseconds=200))
DOOMED_RUNS: Final = 2
POISON_RUNS: Final = 3


notes = Notes()


def die_here() -> None:
    """End this process as power loss would."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop_before_telling(number: signal.Signals) -> None:
    """Send this process a signal when the next run has been committed, before anything that it told leaves."""
    send_told = Scheduler.send_told

    def stop(self: Scheduler, run: Run) -> None:
        Scheduler.send_told = send_told  # type: ignore[method-assign]
        os.kill(os.getpid(), number)
        send_told(self, run)

    Scheduler.send_told = stop  # type: ignore[method-assign]


class Order(msgspec.Struct, frozen=True):
    """What a message asks for."""

    content: int
    """Names the message; what its handler tells has the negative one."""
    sender: str
    sequence: int
    holds_ms: tuple[int, ...] = ()
    """How long each run takes; later runs take no time."""
    target: str = ""
    """Which entity to tell, if any."""
    is_witnessed: bool = False
    """Write a row by SQL, in the transaction of the run."""
    failures: int = 0
    """Runs that crash before one does not."""


class Applied(msgspec.Struct, array_like=True):
    """One commit in an entity's state."""

    content: int
    message_id: int
    epoch: int
    attempt: int
    target: str
    is_witnessed: bool


class Applications(msgspec.Struct):
    """Every commit of an entity, in order."""

    done: list[Applied] = []


class Done(msgspec.Struct, frozen=True, array_like=True):
    """What a run returned."""

    position: int
    epoch: int
    attempt: int


class Refused(EntityError):
    """The handler's own error."""

    content: int


class Book(Entity[Applications], name="book"):
    """Keeps every commit in its state."""

    @handler(durable=True, retry=_PATIENT)
    async def apply(self, order: Order) -> Done:
        """Change the state, write a row, tell another entity: all or nothing."""
        done = await self._change(order)
        if order.failures >= current().attempt:
            raise RuntimeError(f"run {current().attempt} of {order.content} crashes")
        return done

    @handler(durable=True, retry=_PATIENT)
    async def refuse(self, order: Order) -> Done:
        """Do the same, then raise a domain error."""
        await self._change(order)
        raise Refused(content=order.content)

    @handler(durable=True, retry=Retry(attempts=DOOMED_RUNS, initial=timedelta(milliseconds=10)))
    async def doom(self, order: Order) -> Done:
        """Do the same, then crash, every time."""
        await self._change(order)
        raise RuntimeError(f"run {current().attempt} of {order.content} crashes")

    @handler(durable=True, retry=Retry(attempts=POISON_RUNS, initial=timedelta(milliseconds=10)))
    async def poison(self, order: Order) -> Done:
        """Kill the process that this runs in."""
        note_run(order, len(self.state.done))
        die_here()
        await asyncio.Event().wait()
        return Done(0, 0, 0)

    @handler(durable=True, retry=_PATIENT)
    async def die(self, order: Order) -> Done:
        """Change the state and tell another entity; the process dies between the commit and the telling."""
        stop_before_telling(signal.SIGKILL)
        return await self._change(order)

    @handler(durable=True, retry=_PATIENT)
    async def freeze(self, order: Order) -> Done:
        """Likewise, but the process stops there, and may go on later."""
        stop_before_telling(signal.SIGSTOP)
        return await self._change(order)

    @handler(readonly=True)
    async def size(self) -> int:
        """Return how many commits there are."""
        return len(self.state.done)

    async def _change(self, order: Order) -> Done:
        here = current()
        note_run(order, len(self.state.done))
        applied = Applied(order.content, here.message_id, here.epoch, here.attempt, order.target, order.is_witnessed)
        self.state.done.append(applied)
        position = len(self.state.done)
        if order.is_witnessed:
            await _witness(order, position)
        if order.target:
            child = Order(-order.content, f"book/{here.entity_id}", position)
            await here.tell(here.client(Book)(order.target).apply(child))
        if here.attempt <= len(order.holds_ms):
            await asyncio.sleep(order.holds_ms[here.attempt - 1] / 1000)
        return Done(position, here.epoch, here.attempt)


async def _witness(order: Order, position: int) -> None:
    here = current()
    async with here.transaction() as sql:
        await sql.execute(
            "insert into public.witness (message_id, key, entity, content, attempt, epoch, position, sender, sequence)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            here.message_id,
            here.key,
            here.entity_id,
            order.content,
            here.attempt,
            here.epoch,
            position,
            order.sender,
            order.sequence,
        )


def note_run(order: Order, seen: int) -> None:
    """Write down that a handler begins."""
    here = current()
    notes.add(
        time.monotonic(), time.time(), order.content, here.entity_id, here.message_id, here.attempt, here.epoch, seen
    )


hub = Hub()
hub.register(Book)

mutants.apply(os.environ.get("DURABLE_MUTANT", ""))
