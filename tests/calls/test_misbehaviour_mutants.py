"""The test of generated misbehaviour notices defects of the product: each of these breaks one thing."""

import asyncio
import sys
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any, Final

import pytest

from actorhub import ActorhubError
from actorhub.core.codec import Codec
from actorhub.engine.model.records import Cell, Message
from actorhub.engine.model.run import Run
from actorhub.engine.runs import completion, saving, services, streams
from actorhub.engine.runs.carriers import Carriers
from actorhub.engine.runs.completion import Completion
from actorhub.engine.runs.nesting import Nesting
from actorhub.engine.runs.scheduler import Scheduler
from tests.calls import test_misbehaviour
from tests.calls.test_misbehaviour import misbehave_in_memory, random_cases

Patch = Callable[[object, str, Any], None]
MUTANTS: Final[dict[str, Callable[[Patch], None]]] = {}


def _mutant(name: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def register(break_it: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS[name] = break_it
        return break_it

    return register


@_mutant("a turn is not given back")
def _(patch: Patch) -> None:
    end_turn = Scheduler.end_turn

    def broken(self: Scheduler, message: Message) -> None:
        if message.abandoned_for is None:
            end_turn(self, message)

    patch(Scheduler, "end_turn", broken)


@_mutant("a result is not checked before its commit")
def _(patch: Patch) -> None:
    patch(Codec, "encode_fitting", lambda self, value: (self.encode(value), value))


@_mutant("a state is not checked before its commit")
def _(patch: Patch) -> None:
    patch(Codec, "check_faithful", lambda *_: None)


@_mutant("a kept task carries other runs")
def _(patch: Patch) -> None:
    patch(sys, "getrefcount", lambda _: 0)
    patch(weakref, "getweakrefcount", lambda _: 0)


@_mutant("a clean-up does not wait for its turn")
def _(patch: Patch) -> None:
    async def broken(cell: Cell, *_: object) -> tuple[bool, None]:
        cell.nested += 1
        return True, None

    patch(streams, "wait_for_turn", broken)


@_mutant("saves do not wait for each other")
def _(patch: Patch) -> None:
    @asynccontextmanager
    async def broken(_: Run) -> AsyncGenerator[None, None]:
        yield

    patch(services, "one_save_at_a_time", broken)


@_mutant("a run that is over can save")
def _(patch: Patch) -> None:
    patch(saving, "_check_running", lambda _: None)


@_mutant("what a nested run changed before it raised is kept")
def _(patch: Patch) -> None:
    patch(Nesting, "undo", lambda _: True)


@_mutant("everybody comes in while a reentrant handler's entity is busy")
def _(patch: Patch) -> None:
    enqueue = Scheduler.enqueue

    def broken(self: Scheduler, cell: Cell, message: Message) -> None:
        if message.spec.reentrant and cell.address not in message.chain:
            message.chain = (*message.chain, cell.address)
        enqueue(self, cell, message)

    patch(Scheduler, "enqueue", broken)


@_mutant("a handler that does not give in is waited for")
def _(patch: Patch) -> None:
    patch(Carriers, "_give_up", lambda *_: None)


@_mutant("a late change is the next run's")
def _(patch: Patch) -> None:
    patch(Completion, "undo_late_changes", lambda *_: None)


@_mutant("the state is not set back")
def _(patch: Patch) -> None:
    patch(completion, "roll_back", lambda *_, **__: None)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
async def test_each_defect_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defect, an example soon fails: a call is not answered, or what is committed is not what should be."""
    monkeypatch.setattr(test_misbehaviour, "ANSWER", timedelta(seconds=2))
    MUTANTS[name](monkeypatch.setattr)
    for seed in range(30):
        try:
            async with asyncio.timeout(20):
                await misbehave_in_memory(random_cases(Random(seed)))
        except (AssertionError, TimeoutError, ActorhubError):
            return
    pytest.fail("nothing was noticed")
