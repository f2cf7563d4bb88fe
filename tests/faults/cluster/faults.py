"""Faults of a running cluster, drawn by a seed and told in words, so that a failure can be repeated."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from tests.faults.cluster.processes import LOCK, WORK, ClusterProcesses, RunnerProcess, until

_MOSTLY_SHORT: Final = 4
"""The mean of short faults is a fifth of the longest one."""

Injection: TypeAlias = Callable[["Faults"], Coroutine[Any, Any, str]]


@dataclass(frozen=True)
class Injected:
    """One fault that was injected; `at` is monotonic seconds."""

    at: float
    kind: str
    text: str


class Faults:
    """Injects faults, one after the other, until `mend` puts everything right; one runner at least stays unhurt."""

    def __init__(
        self,
        processes: ClusterProcesses,
        seed: int,
        longest: float = 8.0,
        kinds: Mapping[str, Injection] | None = None,
        shortest: float | None = None,
    ) -> None:
        self.processes = processes
        self.kinds = KINDS if kinds is None else kinds
        self.chance = random.Random(seed)
        self.seed = seed
        self.longest = longest
        """Seconds that a freeze or a cut lasts at most."""
        self.shortest = shortest
        """Seconds that it lasts at least, whatever its kind says, unless it is nothing where it is that short; most of
        them are short then. `None`: what its kind says."""
        self.failed_starts = 0
        """How often a process that was started while faults went on ended before it took calls."""
        self.done: list[Injected] = []
        self._kinds: list[str] = []
        self._hurt: set[RunnerProcess] = set()
        self._starting: set[RunnerProcess] = set()

    def __str__(self) -> str:
        began = self.done[0].at if self.done else 0.0
        return "\n".join([f"seed {self.seed}", *(f"{each.at - began:7.2f} s {each.text}" for each in self.done)])

    @property
    def has_victim(self) -> bool:
        """Whether a runner can be hurt without all being so."""
        return len(self._hurt) < len(self.processes.runners) - 1

    async def inject(self) -> Injected:
        """Inject the next fault; all kinds come once before any comes again."""
        if not self.has_victim:
            await self.mend()
        if not self._kinds:
            self._kinds = self.chance.sample(sorted(self.kinds), len(self.kinds))
        kind = self._kinds.pop()
        self.done.append(Injected(time.monotonic(), kind, kind))
        text = await self.kinds[kind](self)
        self.done[-1] = replace(self.done[-1], text=f"{kind}: {text}")
        return self.done[-1]

    def undo(self) -> None:
        """End everything but deaths."""
        self.processes.heal()
        for one in self.processes.runners:
            one.thaw()
        self._hurt = {one for one in self.processes.runners if not one.lives} | self._starting

    async def mend(self) -> None:
        """Put everything right again, and wait until all runners take calls."""
        self.undo()
        await self.revive()

    async def revive(self) -> None:
        """Start what is dead, again where faults that go on end it at its start, and wait until all take calls."""
        dead = [one for one in self.processes.runners if not one.lives and one not in self._starting]
        async with asyncio.TaskGroup() as tasks:
            for one in dead:
                self._starting.add(one)
                tasks.create_task(self._start(one))
        await until(lambda: not self._starting, "runners that were started take calls")

    async def _start(self, one: RunnerProcess) -> None:
        self.processes.spawn(one)
        while not await one.started():
            self.failed_starts += 1
            self.processes.spawn(one)
        self._starting.discard(one)
        self._hurt.discard(one)

    def victim(self, wanted: RunnerProcess | None = None) -> RunnerProcess:
        """Return a runner that is well, and no longer will be."""
        found = wanted or self.chance.choice([one for one in self.processes.runners if one not in self._hurt])
        self._hurt.add(found)
        return found

    def pair(self) -> tuple[RunnerProcess, RunnerProcess]:
        """Return two runners, whatever state they are in."""
        one, other = self.chance.sample(self.processes.runners, 2)
        return one, other

    async def pause(self, shortest: float = 1.0) -> float:
        """Wait a while and return for how long that was."""
        if self.shortest is None or shortest > self.longest:
            seconds = self.chance.uniform(shortest, max(shortest, self.longest))
        else:
            seconds = self.shortest + (self.longest - self.shortest) * self.chance.random() ** _MOSTLY_SHORT
        await asyncio.sleep(seconds)
        return seconds


async def _kill(faults: Faults) -> str:
    victim = faults.victim()
    victim.kill()
    return victim.name


async def _freeze(faults: Faults) -> str:
    victim = faults.victim()
    victim.freeze()
    return f"{victim.name} for {await faults.pause(2.0):.1f} s"


async def _freeze_with_commits_under_way(faults: Faults) -> str:
    victim = faults.victim()
    victim.store.black_hole(WORK)
    await asyncio.sleep(0.3)
    victim.freeze()
    seconds = await faults.pause(5.0)
    victim.store.heal(WORK)
    victim.thaw()
    return f"{victim.name} for {seconds:.1f} s"


async def _leave(faults: Faults) -> str:
    victim = faults.victim()
    victim.terminate()
    code = await victim.gone()
    assert code == 0, f"{victim.name} ended with {code}: {victim.log[-3000:]}"
    return victim.name


async def _end_lock_session(faults: Faults) -> str:
    victim = faults.victim()
    ended = await faults.processes.end_sessions(f"actorhub lock {victim.incarnation}")
    return f"{victim.name} ({ended})"


async def end_lock_session_unheard(faults: Faults, wanted: RunnerProcess | None = None) -> str:
    """The server ends a session whose runner does not hear of it, and nobody can ask that runner."""
    victim = faults.victim(wanted)
    victim.store.black_hole(LOCK)
    await faults.processes.end_sessions(f"actorhub lock {victim.incarnation}")
    for other in faults.processes.runners:
        if other is not victim:
            faults.processes.cut(victim, other)
    return f"{victim.name} for {await faults.pause():.1f} s"


async def _freeze_postgres(faults: Faults) -> str:
    faults.processes.postgres.freeze()
    try:
        seconds = await faults.pause()
    finally:
        faults.processes.postgres.thaw()
    return f"for {seconds:.1f} s"


async def _end_commit_connections(faults: Faults) -> str:
    return f"{await faults.processes.end_sessions('actorhub work')} of them"


async def _cut_commit_connection(faults: Faults) -> str:
    victim = faults.victim()
    victim.store.cut(WORK)
    return f"{victim.name} for {await faults.pause(0.5):.1f} s"


async def _hold_commits(faults: Faults) -> str:
    victim = faults.victim()
    victim.store.black_hole(WORK)
    return f"{victim.name} for {await faults.pause():.1f} s"


async def _hold_lock_session(faults: Faults) -> str:
    victim = faults.victim()
    victim.store.black_hole(LOCK)
    return f"{victim.name} for {await faults.pause():.1f} s"


async def _lose_store(faults: Faults) -> str:
    victim = faults.victim()
    victim.store.black_hole()
    return f"{victim.name} for {await faults.pause():.1f} s"


async def _lose_store_everywhere(faults: Faults) -> str:
    for one in faults.processes.runners:
        one.store.black_hole()
    return f"for {await faults.pause():.1f} s"


async def _delete_row(faults: Faults) -> str:
    victim = faults.victim()
    await faults.processes.fetch("delete from actorhub.runner where incarnation = $1", victim.incarnation)
    return f"{victim.name} after {await faults.pause(0.5):.1f} s"


async def _lock_states(faults: Faults) -> str:
    async with faults.processes.transaction("lock table actorhub.entity_state in access exclusive mode"):
        seconds = await faults.pause(0.5)
    return f"for {seconds:.1f} s"


async def _kill_while_states_are_locked(faults: Faults) -> str:
    victim = faults.victim()
    async with faults.processes.transaction("lock table actorhub.entity_state in access exclusive mode"):
        await asyncio.sleep(0.2)
        victim.kill()
        seconds = await faults.pause(0.5)
    return f"{victim.name}, which are for {seconds:.1f} s"


async def _restart_postgres(faults: Faults) -> str:
    await faults.processes.postgres.restart("fast")
    return "fast"


async def _crash_postgres(faults: Faults) -> str:
    await faults.processes.postgres.restart("immediate")
    return "immediate"


async def _cut_peers(faults: Faults) -> str:
    one, other = faults.pair()
    faults.processes.cut(one, other)
    return f"{one.name} and {other.name} for {await faults.pause():.1f} s"


async def _separate_peers(faults: Faults) -> str:
    one, other = faults.pair()
    faults.processes.black_hole(one, other)
    return f"{one.name} and {other.name} for {await faults.pause():.1f} s"


async def _cut_front(faults: Faults) -> str:
    victim = faults.victim()
    victim.front.cut()
    return f"{victim.name} for {await faults.pause():.1f} s"


async def _hold_front(faults: Faults) -> str:
    victim = faults.victim()
    victim.front.black_hole()
    return f"{victim.name} for {await faults.pause():.1f} s"


async def _kill_the_frozen(faults: Faults) -> str:
    victim = faults.victim()
    victim.freeze()
    seconds = await faults.pause(0.5)
    victim.kill()
    return f"{victim.name} after {seconds:.1f} s"


KINDS: Final[dict[str, Injection]] = {
    "kill a runner": _kill,
    "freeze a runner": _freeze,
    "freeze a runner with commits under way": _freeze_with_commits_under_way,
    "kill a frozen runner": _kill_the_frozen,
    "let a runner leave": _leave,
    "end a lock session": _end_lock_session,
    "end a lock session unheard": end_lock_session_unheard,
    "end commit connections": _end_commit_connections,
    "cut a commit connection": _cut_commit_connection,
    "hold a runner's commits": _hold_commits,
    "hold a lock session": _hold_lock_session,
    "part a runner from Postgres": _lose_store,
    "part all runners from Postgres": _lose_store_everywhere,
    "delete a runner's row": _delete_row,
    "lock the table of states": _lock_states,
    "kill a runner while states are locked": _kill_while_states_are_locked,
    "freeze Postgres": _freeze_postgres,
    "restart Postgres": _restart_postgres,
    "crash Postgres": _crash_postgres,
    "cut two runners' link": _cut_peers,
    "part two runners": _separate_peers,
    "cut all links to a runner": _cut_front,
    "part a runner from everybody": _hold_front,
}


@asynccontextmanager
async def explained_faults(
    processes: ClusterProcesses,
    seed: int,
    longest: float,
    kinds: Mapping[str, Injection] | None = None,
    shortest: float | None = None,
) -> AsyncGenerator[Faults, None]:
    """Prepare faults; whatever fails meanwhile is told together with them and with the runners' logs."""
    faults = Faults(processes, seed, longest, kinds, shortest)
    try:
        yield faults
    except BaseException as error:
        error.add_note(f"{faults}\n{processes.report()}")
        raise
