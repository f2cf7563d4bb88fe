"""Who is hit where: the leader is killed, or made to leave, at every boundary of the first days in turn."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import date
from time import monotonic
from typing import Final, Literal, TypeAlias

from examples.demo.cluster import DemoCluster
from examples.demo.runners import RunnerProcess
from examples.nightly.entities import FIRST_DAY, ONE_DAY
from examples.nightly.gate import BOUNDARIES, Visitor

Blow: TypeAlias = Literal["kill", "move"]

_LOOK: Final = 0.02


def planned_strikes(rounds: int) -> dict[tuple[date, str], Blow]:
    """Return what happens where: in each round of two days, each boundary sees one kill and one move, in turn."""
    blows: tuple[Blow, Blow] = ("kill", "move")
    return {
        (FIRST_DAY + day * ONE_DAY, boundary): blows[(day + number) % 2]
        for day in range(2 * rounds)
        for number, boundary in enumerate(BOUNDARIES)
    }


class Strikes:
    """Receives leaders at boundaries, hits those that the plan names, and lets the others go on.

    Args:
        group: Owns what goes on meanwhile.
        runners: Where they come from; who is lost is replaced.
        plan: By day and boundary; each is hit once.
    """

    def __init__(
        self, group: asyncio.TaskGroup, runners: DemoCluster, plan: Mapping[tuple[date, str], Blow]
    ) -> None:
        self.done: Counter[str] = Counter()
        """Strikes, by kind."""
        self.runs: Counter[str] = Counter()
        """How often each step ran to its end, committed or not."""
        self.takeovers: dict[Blow, list[float]] = {"kill": [], "move": []}
        """Seconds from each strike until the next leader came to a boundary."""
        self._group = group
        self._runners = runners
        self._left = dict(plan)
        self._turn = asyncio.Lock()
        self._struck: tuple[Blow, float, int] | None = None

    @property
    def left(self) -> int:
        """How many strikes are still to come."""
        return len(self._left)

    def receive(self, visitor: Visitor) -> None:
        """Deal with a leader that came to a boundary."""
        visit = visitor.visit
        step, _, place = visit.boundary.partition(" ")
        if place == "runs":
            self.runs[step] += 1
        if self._struck is not None and visit.epoch > self._struck[2]:
            blow, at, _ = self._struck
            self.takeovers[blow].append(monotonic() - at)
            self._struck = None
        self._group.create_task(self._deal_with(visitor))

    async def _deal_with(self, visitor: Visitor) -> None:
        place = visitor.visit.day, visitor.visit.boundary
        try:
            async with self._turn:
                victim = self._runner_at(visitor.visit.runner)
                if place in self._left:
                    await self._others_than(victim)
                    if visitor.is_there and victim.serving:
                        await self._strike(victim, visitor, self._left.pop(place))
        finally:
            visitor.let_go_on()

    async def _strike(self, victim: RunnerProcess, visitor: Visitor, blow: Blow) -> None:
        visit = visitor.visit
        where = f" while it led: {visit.day}, {visit.boundary}"
        self._struck = blow, monotonic(), visit.epoch
        self._group.create_task(self._runners.add())
        if blow == "kill":
            self._runners.kill(victim, where)
        else:
            await self._runners.leave(victim, where)
        while visitor.is_there:  # noqa: ASYNC110 - the system closes a dead process's connections at once
            await asyncio.sleep(_LOOK)
        self.done[blow] += 1

    def _runner_at(self, address: str) -> RunnerProcess:
        return next(runner for runner in reversed(self._runners.known) if runner.address == address)

    async def _others_than(self, victim: RunnerProcess) -> None:
        """Return once somebody else could lead."""
        while not any(runner is not victim for runner in self._runners.serving):  # noqa: ASYNC110 - a start takes seconds
            await asyncio.sleep(_LOOK)
