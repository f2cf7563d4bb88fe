"""What these tests would miss if they could not fail: each defect of the product makes one of them fail."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import pytest

from actorhub.core.address import RunnerAddress
from actorhub.core.envelope import Relayed
from actorhub.core.errors import ActorhubError
from actorhub.engine.routing.connector import Connector
from actorhub.engine.routing.peers import Peer
from actorhub.engine.routing.relays import RelayedLink, Relays
from actorhub.testing import MemoryCluster
from tests.partitions import test_ways_around
from tests.partitions.cuts import Cut, cut_off
from tests.partitions.entities import KINDS, hub

__all__ = ["hub"]

Break: TypeAlias = Callable[[pytest.MonkeyPatch], None]
Check: TypeAlias = Callable[[Cut], Awaitable[None]]
MUTANTS: Final[dict[str, tuple[Break, Check]]] = {}


def mutant(name: str, check: Check) -> Callable[[Break], Break]:
    """Register a defect, and what must fail with it."""

    def register(break_it: Break) -> Break:
        MUTANTS[name] = break_it, check
        return break_it

    return register


async def _many(cut: Cut) -> None:
    await KINDS["many asks at once"](cut.caller, cut.far, cut.near)


async def _ask(cut: Cut) -> None:
    await KINDS["ask"](cut.caller, cut.far, cut.near)


@mutant("there is no way around", _ask)
def _(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: Connector, runner: RunnerAddress) -> None:
        """Find none."""

    patch.setattr(Connector, "_go_around", broken)


@mutant("what was taken is not said", _many)
def _(patch: pytest.MonkeyPatch) -> None:
    take_in = RelayedLink.take_in

    def broken(self: RelayedLink, piece: Relayed) -> None:
        take_in(self, Relayed(piece.link, piece.frame, ended=piece.ended))

    patch.setattr(RelayedLink, "take_in", broken)


@mutant("the far end is not told", test_ways_around.test_a_way_around_that_breaks_on_its_far_side_fails_what_was_on_it)
def _(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Relays, link_id: str, tell: Peer, reason: str) -> None:
        self._carried.pop(link_id, None)

    patch.setattr(Relays, "_end_carried", broken)


@mutant(
    "whoever passes frames on is believed",
    test_ways_around.test_nobody_can_pass_for_somebody_else_through_a_third_process,
)
def _(patch: pytest.MonkeyPatch) -> None:
    take = Relays._take

    def broken(self: Relays, via: Peer, piece: Relayed) -> None:
        source = via.runner.incarnation if piece.link == "forged" else piece.source
        take(self, via, Relayed(piece.link, piece.frame, target=piece.target, source=source))

    patch.setattr(Relays, "_take", broken)


@pytest.mark.parametrize("name", MUTANTS)
async def test_each_defect_is_found(memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With the defect, its test fails or does not end."""
    break_it, check = MUTANTS[name]
    cut = await cut_off(memory, "runner")
    break_it(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, ActorhubError)):
        async with asyncio.timeout(4):
            await check(cut)


async def test_without_defects_the_same_checks_pass(memory: MemoryCluster) -> None:
    """What is found is the defect."""
    cut = await cut_off(memory, "runner")
    async with asyncio.timeout(10):
        await _ask(cut)
        await _many(cut)
