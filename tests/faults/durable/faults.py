"""Faults under which durable messages must be kept: short ones, that come fast and on top of each other."""

import asyncio
from typing import Final

from tests.faults.cluster.faults import Faults, Injection
from tests.faults.cluster.processes import LOCK, OTHER, WORK, RunnerProcess

_WRITES: Final = (WORK, OTHER)
"""Labels of the connections over which messages are stored, runs counted and committed, and handlers write."""
_SHORTEST: Final = 0.15


async def _kill(faults: Faults) -> str:
    victim = faults.victim()
    victim.kill()
    await faults.pause(_SHORTEST)
    return victim.name


async def _kill_at_a_commit(faults: Faults) -> str:
    """Kill a runner that does not know whether what it sent is committed."""
    victim = faults.victim()
    _hold_answers(victim)
    seconds = await faults.pause(_SHORTEST)
    victim.kill()
    return f"{victim.name} after {seconds:.1f} s"


async def _freeze(faults: Faults) -> str:
    victim = faults.victim()
    victim.freeze()
    seconds = await faults.pause(_SHORTEST)
    victim.thaw()
    return f"{victim.name} for {seconds:.1f} s"


async def _freeze_without_answers(faults: Faults) -> str:
    """Freeze a runner with commits under way; they arrive in Postgres after others own its shards."""
    victim = faults.victim()
    for label in _WRITES:
        victim.store.black_hole(label)
    await asyncio.sleep(0.1)
    victim.freeze()
    seconds = await faults.pause(min(5.0, faults.longest))
    for label in _WRITES:
        victim.store.heal(label)
    victim.thaw()
    return f"{victim.name} for {seconds:.1f} s"


async def _leave(faults: Faults) -> str:
    victim = faults.victim()
    victim.terminate()
    code = await victim.gone()
    assert code == 0, f"{victim.name} ended with {code}: {victim.log[-3000:]}"
    return victim.name


async def _end_backends(faults: Faults) -> str:
    """End one server process of each kind that the draw names."""
    rows = await faults.processes.fetch(
        "select distinct split_part(application_name, ' ', 2) from pg_stat_activity"
        " where application_name like 'actorhub %' order by 1"
    )
    kind = faults.chance.choice([row[0] for row in rows] or ["none"])
    rows = await faults.processes.fetch(
        "select pg_terminate_backend(pid) from (select pid from pg_stat_activity"
        " where application_name like 'actorhub ' || $1 || '%' order by backend_start limit 2) as oldest",
        kind,
    )
    return f"{len(rows)} of kind {kind}"


async def _crash_postgres(faults: Faults) -> str:
    await faults.processes.postgres.restart("immediate")
    return "immediate"


async def _cut_peers(faults: Faults) -> str:
    one, other = faults.pair()
    faults.processes.cut(one, other)
    return f"{one.name} and {other.name} for {await faults.pause(_SHORTEST):.1f} s"


async def _separate_peers(faults: Faults) -> str:
    one, other = faults.pair()
    faults.processes.black_hole(one, other)
    return f"{one.name} and {other.name} for {await faults.pause(_SHORTEST):.1f} s"


async def _cut_front(faults: Faults) -> str:
    victim = faults.victim()
    victim.front.cut()
    return f"{victim.name} for {await faults.pause(_SHORTEST):.1f} s"


async def _acknowledge_late(faults: Faults) -> str:
    """Have Postgres do everything and its answers wait."""
    victim = faults.victim()
    _hold_answers(victim)
    seconds = await faults.pause(_SHORTEST)
    for label in _WRITES:
        victim.store.heal(label)
    return f"{victim.name} by {seconds:.1f} s"


async def _never_acknowledge(faults: Faults) -> str:
    """Have Postgres do everything and its answers vanish with their connections."""
    victim = faults.victim()
    _hold_answers(victim)
    seconds = await faults.pause(_SHORTEST)
    for label in _WRITES:
        victim.store.cut(label)
    return f"{victim.name} after {seconds:.1f} s"


async def _hold_lock_session(faults: Faults) -> str:
    victim = faults.victim()
    victim.store.black_hole(LOCK)
    return f"{victim.name} for {await faults.pause(_SHORTEST):.1f} s"


async def _lose_store(faults: Faults) -> str:
    victim = faults.victim()
    victim.store.black_hole()
    return f"{victim.name} for {await faults.pause(_SHORTEST):.1f} s"


def _hold_answers(victim: RunnerProcess) -> None:
    for label in _WRITES:
        victim.store.hold_answers(label)


DURABLE_KINDS: Final[dict[str, Injection]] = {
    "kill a runner": _kill,
    "kill a runner at a commit": _kill_at_a_commit,
    "freeze a runner": _freeze,
    "freeze a runner with commits under way": _freeze_without_answers,
    "let a runner leave": _leave,
    "end backends": _end_backends,
    "crash Postgres": _crash_postgres,
    "cut two runners' link": _cut_peers,
    "part two runners": _separate_peers,
    "cut all links to a runner": _cut_front,
    "acknowledge late": _acknowledge_late,
    "never acknowledge": _never_acknowledge,
    "hold a lock session": _hold_lock_session,
    "part a runner from Postgres": _lose_store,
}
