"""The tests of odd values notice defects of the product: each of these breaks one thing."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from random import Random
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pytest

from actorhub import ActorhubError, client, cluster
from actorhub.core.envelope import decode_frame
from actorhub.engine.durable.loading import Loading
from actorhub.engine.durable.settlement import Settlement
from actorhub.engine.routing import inbound
from actorhub.engine.runs import background
from actorhub.storage.message_ports import PendingMessage
from actorhub.transport.link import QueuedLink
from tests.calls import test_odd_callers
from tests.calls.test_odd_callers import in_memory, random_cases

Patch = Callable[[object, str, Any], None]
MUTANTS: Final[dict[str, tuple[str, Callable[[Patch], None]]]] = {}
"""By name: which act notices it, and how it is made."""


def _mutant(name: str, act: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def register(break_it: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS[name] = act, break_it
        return break_it

    return register


@_mutant("headers are not checked", "odd_calls")
def _(patch: Patch) -> None:
    patch(client, "check_headers", dict)


@_mutant("ids of messages are not checked", "odd_calls")
def _(patch: Patch) -> None:
    patch(cluster, "check_message_id", lambda message_id: message_id)


@_mutant("durations are not checked", "odd_calls")
def _(patch: Patch) -> None:
    patch(client, "limit_of", lambda duration, _: duration and duration.total_seconds())


@_mutant("what a handler spawns is not checked", "odd_handlers")
def _(patch: Patch) -> None:
    patch(background, "asyncio", SimpleNamespace(**{**vars(asyncio), "iscoroutine": lambda _: True}))


@_mutant("a bad envelope closes its link", "odd_envelopes")
def _(patch: Patch) -> None:
    patch(QueuedLink, "_receive", lambda self, frame: self._deliver(decode_frame(frame)))


@_mutant("what peers want stored is not checked", "odd_envelopes")
def _(patch: Patch) -> None:
    patch(inbound, "_check_storable", lambda *_: None)


@_mutant("a row that cannot be read raises in the loader", "odd_rows")
def _(patch: Patch) -> None:
    def broken(_: Loading, row: PendingMessage) -> str:
        if row.unreadable:
            raise msgspec.ValidationError(row.unreadable)
        return ""

    patch(Loading, "_problem_of", broken)


@_mutant("a row that cannot be read is left where it is", "odd_rows")
def _(patch: Patch) -> None:
    patch(Settlement, "bury_stray", lambda *_: None)


@_mutant("a row for nobody is run", "odd_rows")
def _(patch: Patch) -> None:
    patch(Loading, "_problem_of", lambda *_: "")


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
async def test_each_defect_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defect, an example soon fails: somebody else notices, or an error is not what it should be."""
    monkeypatch.setattr(test_odd_callers, "PATIENCE", timedelta(seconds=2))
    act, break_it = MUTANTS[name]
    break_it(monkeypatch.setattr)
    for seed in range(20):
        try:
            async with asyncio.timeout(20):
                await in_memory(act, random_cases(Random(seed)))
        except (AssertionError, TimeoutError, ActorhubError, ExceptionGroup):
            return
    pytest.fail("nothing was noticed")
