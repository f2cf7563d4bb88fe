"""Leases, fencing and eviction in virtual time: what happens when the store, a session or a drain hangs."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from actorhub.core.address import RunnerInfo, ShardId
from actorhub.core.errors import ConfigurationError, PersistenceError
from actorhub.engine.ownership.plan import desired_shards
from actorhub.engine.ownership.session import Watchdog
from actorhub.storage.memory import MemoryStorage, MemoryStore
from actorhub.storage.memory.session import MemoryLockSession
from actorhub.storage.ports import LEASE, NOBODY
from tests.ownership.cluster import SHARDS, Cluster, VirtualClock, VirtualLoop, in_virtual_time


def test_a_frozen_runner_loses_its_shards_before_another_gets_them() -> None:
    """A runner whose session hangs fences itself within the lease; its peer takes over once the server ended it."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        lost = dict(two.ownership.owned)
        frozen_at = cluster.clock.monotonic()
        store.freeze_sessions(two.incarnation)
        await cluster.until(lambda: not two.shards)
        assert cluster.clock.monotonic() - frozen_at <= LEASE.total_seconds()
        assert one.ownership.epoch(next(iter(lost))) is None
        store.available = True
        await cluster.until(lambda: len(one.shards) + len(two.shards) == SHARDS)
        assert cluster.clock.monotonic() - frozen_at < 6.0
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_silent_runner_is_evicted_and_its_row_removed() -> None:
    """A runner that stops for good without a broken stream loses shards within six seconds, and its row later."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        stopped_at = cluster.clock.monotonic()
        two.dead = True
        await two.supervisor.aclose(1.0)
        cluster.ledger.dies(two.incarnation)
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert cluster.clock.monotonic() - stopped_at < 6.0
        assert len(await one.storage.runners()) == 2
        await cluster.until(lambda: [live.info.runner for live in store.runners()] == [one.info.runner])
        assert cluster.clock.monotonic() - stopped_at < 13.0
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_store_that_is_away_for_long_moves_no_shard() -> None:
    """When the store returns after ten seconds, nobody holds the silence of all against the others."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        nodes = await cluster.start("h:1", "h:2", "h:3")
        await cluster.balanced(*nodes)
        before = [dict(node.ownership.owned) for node in nodes]
        store.available = False
        store.restart()
        await cluster.until(lambda: not any(node.shards for node in nodes))
        await asyncio.sleep(10)
        store.available = True
        await cluster.balanced(*nodes)
        for node, owned in zip(nodes, before, strict=True):
            assert node.ownership.owned == {shard: epoch + 1 for shard, epoch in owned.items()}
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_runner_whose_row_was_deleted_registers_again() -> None:
    """The heartbeat writes the row again, and nothing moves."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        before = dict(one.ownership.owned)
        store.remove_runner(one.incarnation)
        await cluster.until(lambda: len(store.runners()) == 2)
        await asyncio.sleep(3)
        assert one.ownership.owned == before

    in_virtual_time(scenario)


def test_a_slow_shard_does_not_hold_the_others() -> None:
    """While one drain takes its whole grace, every other shard is handed over."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        (one,) = await cluster.start("h:1")
        two = cluster.node("h:2")
        theirs = sorted(desired_shards([one.info, two.info], (), two.info, SHARDS).mine)
        slow = theirs[0]
        one.host.drain_seconds[slow] = 8.0
        began = cluster.clock.monotonic()
        await two.ownership.start()
        await cluster.until(lambda: two.shards == set(theirs[1:]))
        assert cluster.clock.monotonic() - began < 2.0
        assert one.ownership.state(slow) == "draining"
        assert one.ownership.epoch(slow) is not None
        await cluster.balanced(one, two)
        assert one.ownership.statistics().releases == len(theirs)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_many_slow_shards_do_not_hold_the_others_either() -> None:
    """More slow drains than places are started: a slow one gives its place away."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        (one,) = await cluster.start("h:1", handover_grace=60.0)
        two = cluster.node("h:2", weight=29.0)
        theirs = sorted(desired_shards([one.info, two.info], (), two.info, SHARDS).mine)
        assert len(theirs) == 29
        for shard in theirs[:-1]:
            one.host.drain_seconds[shard] = 50.0
        await two.ownership.start()
        await cluster.until(lambda: two.shards == {theirs[-1]}, deadline=5.0)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_drain_that_overruns_its_grace_is_revoked_then_released() -> None:
    """A handler that ignores its grace cannot keep the shard from its next owner."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        (one,) = await cluster.start("h:1", handover_grace=1.0)
        one.host.drain_default = 100.0
        (two,) = await cluster.start("h:2")
        await cluster.balanced(one, two)
        for shard in two.shards:
            assert one.host.order(shard) == ["granted", "drain", "spared", "revoked", "released"]
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_leaving_is_bounded_by_its_grace() -> None:
    """Handlers that do not end are fenced before the runner leaves, and the others own everything afterwards."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        two.host.drain_default = 100.0
        began = cluster.clock.monotonic()
        await two.ownership.leave(3.0)
        assert cluster.clock.monotonic() - began <= 3.0
        assert two.host.reasons == ["the grace time of the shutdown is over"]
        two.dead = True
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


@pytest.mark.parametrize("grace", [0.0, 1.0, 5.0])
def test_leaving_while_the_session_hangs_is_bounded_too(grace: float) -> None:
    """A store that answers nothing any longer delays the end by no more than the grace."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        store.freeze_sessions(two.incarnation)
        began = cluster.clock.monotonic()
        await two.ownership.leave(grace)
        assert cluster.clock.monotonic() - began <= grace + 0.5
        assert two.shards == set()
        two.dead = True
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_second_living_runner_at_the_same_address_does_not_start() -> None:
    """The error names the address and the other incarnation, and the first runner is not disturbed."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        (one,) = await cluster.start("h:1")
        owned = dict(one.ownership.owned)
        twin = cluster.node("h:1")
        with pytest.raises(ConfigurationError, match=f"h:1 already .incarnation {one.incarnation}"):
            await twin.ownership.start()
        twin.dead = True
        await asyncio.sleep(3)
        assert one.ownership.owned == owned

    in_virtual_time(scenario)


def test_a_restart_at_the_same_address_supersedes_the_dead_runner() -> None:
    """A crashed runner that comes back at once waits until its former row is proven dead, then owns everything."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, other = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, other)
        await cluster.kill(one)
        (again,) = await cluster.start("h:1")
        await cluster.balanced(again, other)
        assert {row.info.runner.incarnation for row in store.runners()} == {again.incarnation, other.incarnation}
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_mistrusted_shard_is_dropped_and_taken_again() -> None:
    """A refused commit costs one shard its epoch, not the runner its session."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        (one,) = await cluster.start("h:1")
        shard = ShardId("default", 3)
        before = dict(one.ownership.owned)
        one.ownership.mistrust(shard)
        assert one.ownership.epoch(shard) is None
        await cluster.until(lambda: one.ownership.epoch(shard) == before[shard] + 1)
        assert one.host.order(shard) == ["granted", "revoked", "released", "granted"]
        assert one.ownership.statistics().sessions_opened == 1
        assert {key: epoch for key, epoch in one.ownership.owned.items() if key != shard} == {
            key: epoch for key, epoch in before.items() if key != shard
        }

    in_virtual_time(scenario)


class _StuckTakes(MemoryStorage):
    """Fails every take that contains one of the stuck shards."""

    stuck: frozenset[ShardId] = frozenset()

    async def take(
        self, shards: Sequence[ShardId], info: RunnerInfo, gone: Mapping[ShardId, int] = NOBODY
    ) -> Mapping[ShardId, int]:
        """Take, unless a shard is stuck."""
        if self.stuck.intersection(shards):
            raise PersistenceError("the fence of the former owner is held")
        return await super().take(shards, info, gone)


def test_a_take_that_fails_strands_nothing_and_holds_no_other_shard() -> None:
    """The shards around a stuck one are soon served, and it is as soon as it can be."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        storage = _StuckTakes(store)
        cluster.make_storage = lambda: storage
        stuck = ShardId("default", 7)
        storage.stuck = frozenset([stuck])
        (one,) = await cluster.start("h:1")
        assert one.shards == set()
        await cluster.until(lambda: len(one.shards) == SHARDS - 1)
        await asyncio.sleep(5)
        await cluster.until(lambda: one.ownership.state(stuck) == "unowned")
        stranger = await storage.open_lock_session("stranger")
        assert await stranger.try_lock([stuck]) == [stuck]
        await stranger.aclose()
        storage.stuck = frozenset()
        await cluster.until(lambda: len(one.shards) == SHARDS, deadline=2.0)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_session_that_was_given_up_does_not_keep_its_locks_from_the_next() -> None:
    """A runner ends its own former session at the server instead of waiting until that was silent for long enough."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        (one,) = await cluster.start("h:1")
        before = dict(one.ownership.owned)
        frozen_at = cluster.clock.monotonic()
        store.freeze_sessions(one.incarnation)
        await cluster.until(lambda: not one.shards)
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert cluster.clock.monotonic() - frozen_at < 3.0
        assert one.ownership.owned == {shard: epoch + 1 for shard, epoch in before.items()}
        assert one.ownership.statistics().sessions_lost == 1

    in_virtual_time(scenario)


class _HangingSessions(MemoryStorage):
    """Hangs while it opens a session, and cancelled, hangs on: as a partitioned connection does."""

    hanging = 0
    hung = 0

    async def open_lock_session(self, incarnation: str) -> MemoryLockSession:
        """Open a session unless it is one of the hanging ones."""
        if self.hung < self.hanging:
            self.hung += 1
            for _ in range(3):
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    await asyncio.sleep(30)
        return await super().open_lock_session(incarnation)


def test_a_rebuild_that_hangs_does_not_end_all_rebuilding() -> None:
    """A new session that hangs is given up, even where its clean-up hangs as well, and the next one serves."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        storage = _HangingSessions(store)
        cluster.make_storage = lambda: storage
        (one,) = await cluster.start("h:1")
        storage.hanging = 2
        await storage.terminate_sessions(one.incarnation)
        await cluster.until(lambda: not one.shards)
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert storage.hung == 2
        assert one.supervisor.statistics().abandoned == {"open lock session": 2}
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_process_that_was_stopped_fences_itself_in_the_first_round() -> None:
    """After ten seconds without the event loop the lease is over, and shards are revoked before anything else."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        (one,) = await cluster.start("h:1")
        await asyncio.sleep(5)
        before = dict(one.ownership.owned)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.selector.now += 10.0
        assert not one.ownership.is_fresh()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert one.host.events[-1] == ("revoked", frozenset(before))
        assert one.ownership.statistics().self_fenced == 1
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert one.ownership.owned == {shard: epoch + 1 for shard, epoch in before.items()}

    in_virtual_time(scenario)


def test_a_nudge_reads_the_runner_table_before_its_turn() -> None:
    """A runner that is told of a release learns at once that the peer is leaving, and takes nothing from a stayer."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        await asyncio.sleep(0.5)
        theirs = sorted(two.shards)
        one.ownership.nudge(theirs)
        await asyncio.sleep(0.3)
        assert not one.shards.intersection(theirs)
        began = cluster.clock.monotonic()
        store.register(msgspec.structs.replace(two.info, draining=True))
        two.dead = True
        await two.supervisor.aclose(1.0)
        cluster.ledger.dies(two.incarnation)
        store.terminate_sessions(two.incarnation)
        one.ownership.nudge(theirs)
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert cluster.clock.monotonic() - began < 0.1
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


class _CountedLocks(MemoryLockSession):
    """Counts how often locks are tried; each attempt takes a millisecond."""

    attempts = 0

    async def try_lock(self, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        """Count, take a moment, then try."""
        type(self).attempts += 1
        await asyncio.sleep(0.001)
        return await super().try_lock(shards)


class _CountingStorage(MemoryStorage):
    """Its lock sessions count."""

    async def open_lock_session(self, incarnation: str) -> MemoryLockSession:
        """Open a session that counts."""
        return _CountedLocks(self._store, self._store.open_session(incarnation))


def test_locks_that_a_living_peer_holds_are_tried_at_intervals_however_many_batches_there_are() -> None:
    """A request for another attempt is served once for each attempt that began before it, not again and again."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        cluster.make_storage = lambda: _CountingStorage(store)
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        one.ownership._acquisitions._batch = 5
        _CountedLocks.attempts = 0
        one.ownership.suspect(two.incarnation)
        await asyncio.sleep(0.0005)
        assert one.ownership.statistics().shards_acquiring == SHARDS // 2
        one.ownership.suspect(two.incarnation)
        await asyncio.sleep(1.0)
        assert 6 <= _CountedLocks.attempts < 60
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_weightless_runner_owns_nothing() -> None:
    """Weight 0 takes part without shards."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        (one,) = await cluster.start("h:1")
        idle = cluster.node("h:2", weight=0.0)
        await idle.ownership.start()
        await asyncio.sleep(3)
        assert idle.shards == set()
        assert len(one.shards) == SHARDS

    in_virtual_time(scenario)


def test_the_watchdog_fires_once_at_the_latest_deadline() -> None:
    """Moving the deadline before it passes keeps the watchdog silent until the moved one."""
    loop = VirtualLoop()
    fired: list[float] = []

    async def scenario() -> None:
        watchdog = Watchdog(VirtualClock(loop), lambda: fired.append(loop.time()))
        watchdog.arm(2.0)
        await asyncio.sleep(1.5)
        watchdog.arm(4.0)
        await asyncio.sleep(8.5)
        watchdog.arm(11.0)
        watchdog.disarm()
        await asyncio.sleep(5)

    loop.run_until_complete(scenario())
    loop.close()
    assert fired == [4.0]
