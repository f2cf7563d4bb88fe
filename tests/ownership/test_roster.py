"""What a runner knows of the others, although its heartbeats read only slices of the runner table."""

import asyncio
import random
from collections.abc import Collection, Sequence

import pytest

from actorhub.core.address import RunnerAddress, RunnerInfo
from actorhub.core.clock import SystemClock
from actorhub.engine.ownership import roster
from actorhub.engine.ownership.roster import SLICE, Roster
from actorhub.storage.memory import MemoryStore
from actorhub.storage.ports import LiveRunner, TableSlice
from tests.ownership.cluster import Cluster, in_virtual_time

ME = "m"


def _info(name: str, *, draining: bool = False) -> RunnerInfo:
    return RunnerInfo(runner=RunnerAddress(f"{name}:1", name), draining=draining)


def _beat(store: MemoryStore, known: Roster, watched: Sequence[str] = ()) -> tuple[bool, int]:
    """Do what a heartbeat does; return whether something was new, and how many rows were read."""
    store.register(_info(ME))
    asked = known.next_slice(watched)
    rows = store.runners() if asked is None else store.some_runners(asked, ME)
    return known.take(rows, asked, ME), len(rows)


def _names(rows: Sequence[LiveRunner]) -> dict[str, RunnerInfo]:
    return {row.info.runner.incarnation: row.info for row in rows}


@pytest.mark.parametrize("seed", range(30))
def test_whatever_changes_is_known_after_a_round(seed: int) -> None:
    """Runners that come, leave, restart or change what they declare are seen by slices alone."""
    chance = random.Random(seed)
    store, known = MemoryStore(SystemClock()), Roster()
    names = [f"r{number:03}" for number in range(chance.choice([1, 5, 15, 16, 17, 60, 200]))]
    for _ in range(12):
        for name in chance.sample(names, min(len(names), chance.randrange(9))):
            if chance.random() < 0.4:
                store.remove_runner(name)
            else:
                store.register(_info(name, draining=chance.random() < 0.3))
        watched = chance.sample(names, min(len(names), chance.choice([0, 0, 1, 3])))
        news = [_beat(store, known, watched)[0] for _ in range(2 * (len(names) // SLICE + 2))]
        assert _names(list(known.rows.values())) == _names(store.runners())
        assert not news[-1]
        assert _beat(store, known)[1] <= SLICE + 1


def test_a_change_is_seen_by_the_next_heartbeat_of_a_small_cluster() -> None:
    """A slice has the whole table there, so nothing is later than it was."""
    store, known = MemoryStore(SystemClock()), Roster()
    for number in range(SLICE - 1):
        store.register(_info(f"r{number}"))
    assert _beat(store, known)[0]
    assert not _beat(store, known)[0]
    store.remove_runner("r3")
    assert _beat(store, known)[0]
    assert "r3" not in known.rows
    _beat(store, known)
    store.register(_info("r4", draining=True))
    assert _beat(store, known)[0]
    assert known.rows["r4"].info.draining


def test_watched_runners_are_read_each_time() -> None:
    """Whoever is late or suspected must not wait for its turn."""
    store, known = MemoryStore(SystemClock()), Roster()
    for number in range(100):
        store.register(_info(f"r{number:03}"))
    _beat(store, known)
    store.remove_runner("r099")
    assert _beat(store, known, ["r099", "r098"])[0]
    assert "r099" not in known.rows
    assert "r098" in known.rows


def test_many_watched_runners_are_read_with_the_whole_table() -> None:
    """After an outage of the store everybody is late."""
    known = Roster()
    assert known.next_slice(()) is None
    assert known.next_slice(()) == TableSlice(after="", most=SLICE)
    assert known.next_slice([f"r{number}" for number in range(SLICE + 1)]) is None


def test_heartbeats_read_a_slice_and_miss_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners that have no links learn of a silent death, a leave and a start, each when its turn comes."""
    monkeypatch.setattr(roster, "SLICE", 3)

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        nodes = await cluster.start(*(f"h:{number:02}" for number in range(10)))
        await cluster.balanced(*nodes)
        await cluster.until(lambda: all(len(node.ownership.members) == 10 for node in nodes))
        await asyncio.sleep(5)
        reads = _recorded(monkeypatch)
        await asyncio.sleep(10)
        assert len(reads) > 90
        assert None not in reads
        dead, gone = nodes.pop(), nodes.pop()
        await cluster.kill(dead, seen=False)
        await gone.ownership.leave(1.0)
        gone.dead = True
        await cluster.until(lambda: all(len(node.ownership.members) == 8 for node in nodes))
        [late] = await cluster.start("h:99")
        await cluster.until(lambda: all(len(node.ownership.members) == 9 for node in [*nodes, late]))
        await cluster.balanced(*nodes, late)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def _recorded(monkeypatch: pytest.MonkeyPatch) -> list[TableSlice | None]:
    """Return a list that each further read of the runner table is added to."""
    reads: list[TableSlice | None] = []
    real = Roster.next_slice

    def next_slice(self: Roster, watched: Collection[str]) -> TableSlice | None:
        reads.append(real(self, watched))
        return reads[-1]

    monkeypatch.setattr(Roster, "next_slice", next_slice)
    return reads
