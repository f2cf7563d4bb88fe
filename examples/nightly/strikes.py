"""Strikes: the leader is killed or moved at every boundary of the first days, in turn."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
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
    """Return the strikes by day and boundary: in each round of two days, each boundary has one kill and one move."""
    blows: tuple[Blow, Blow] = ("kill", "move")
    return {
        (FIRST_DAY + day * ONE_DAY, boundary): blows[(day + number) % 2]
        for day in range(2 * rounds)
        for number, boundary in enumerate(BOUNDARIES)
    }


class Strikes:
    """Receives leaders at boundaries, kills or moves those that the plan names, and lets the others continue.

    Args:
        runners: The cluster. Each lost runner is replaced.
        plan: The strikes by day and boundary. Each is made once.
    """

    def __init__(self, runners: DemoCluster, plan: Mapping[tuple[date, str], Blow]) -> None:
        self.done: Counter[str] = Counter()
        """Numbers of strikes by kind."""
        self.runs: Counter[str] = Counter()
        """How often each step ran to its end, committed or not."""
        self.takeovers: dict[Blow, list[float]] = {"kill": [], "move": []}
        """Seconds from each strike until the next leader reached a boundary."""
        self._runners = runners
        self._left = dict(plan)
        self._visitors: asyncio.Queue[Visitor | None] = asyncio.Queue()
        self._struck: tuple[Blow, float, int] | None = None

    @property
    def left(self) -> int:
        """How many strikes are still to come."""
        return len(self._left)

    def receive(self, visitor: Visitor) -> None:
        """Queue a leader that reached a boundary. `run` handles it."""
        visit = visitor.visit
        step, _, place = visit.boundary.partition(" ")
        if place == "runs":
            self.runs[step] += 1
        if self._struck is not None and visit.epoch > self._struck[2]:
            blow, at, _ = self._struck
            self.takeovers[blow].append(monotonic() - at)
            self._struck = None
        self._visitors.put_nowait(visitor)

    def finish(self) -> None:
        """Let `run` return after the leaders that have come so far."""
        self._visitors.put_nowait(None)

    async def run(self) -> None:
        """Handle one leader after the other. Return after `finish`, with all runners ready."""
        async with asyncio.TaskGroup() as group:
            while (visitor := await self._visitors.get()) is not None:
                if (visitor.visit.day, visitor.visit.boundary) in self._left:
                    await self._strike(visitor, group)
                visitor.let_go_on()

    async def _strike(self, visitor: Visitor, group: asyncio.TaskGroup) -> None:
        """Strike a leader, unless it has already gone. Then the next leader will come here."""
        visit = visitor.visit
        victim = await self._runner_at(visit.runner)
        await self._until(lambda: any(runner is not victim for runner in self._runners.serving))
        if not (visitor.is_there and victim.serving):
            return
        blow = self._left.pop((visit.day, visit.boundary))
        where = f" while it led: {visit.day}, {visit.boundary}"
        self._struck = blow, monotonic(), visit.epoch
        group.create_task(self._runners.add())
        if blow == "kill":
            self._runners.kill(victim, where)
        else:
            await self._runners.leave(victim, where)
        await self._until(lambda: not visitor.is_there)
        self.done[blow] += 1

    async def _runner_at(self, address: str) -> RunnerProcess:
        """Return the runner at this address. It can lead before it has reported that it is ready."""
        await self._until(lambda: address in self._runners.names)
        return next(runner for runner in reversed(self._runners.known) if runner.address == address)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - processes do not announce what happens to them
            await asyncio.sleep(_LOOK)
