"""Taking shards from owners that did not release them, in virtual time: nobody begins while another may still act."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId, ShardOwner
from actorhub.engine.ownership.former_owners import LEASE_IS_OVER, StoreTime
from actorhub.storage.memory import MemoryStorage, MemoryStore
from actorhub.storage.ports import LEASE, NOBODY, LiveRunner
from tests.ownership.cluster import SHARDS, Cluster, Node, in_virtual_time

_HEARTBEAT = 1.0


def end_unheard(store: MemoryStore, node: Node) -> None:
    """End the server side of a lock session; the holder hears nothing any longer."""
    store.freeze_sessions(node.incarnation)
    store.terminate_sessions(node.incarnation)


def suspected(cluster: Cluster, node: Node) -> None:
    """Break the links to a runner, and let nobody reach it."""
    cluster.unreachable.add(node.info.runner)
    for other in cluster.nodes:
        if other is not node:
            other.ownership.suspect(node.incarnation)


@pytest.mark.parametrize("after", [0.0, 0.3, 0.5, 0.8, 1.2])
def test_a_runner_that_does_not_know_its_session_ended_acts_until_nobody_else_does(after: float) -> None:
    """Its locks are free at once, and its shards are taken when its lease is over: neither before nor long after."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        await asyncio.sleep(3 + after)
        ended_at = cluster.clock.monotonic()
        end_unheard(store, two)
        suspected(cluster, two)
        await cluster.until(lambda: len(one.shards) > SHARDS // 2)
        assert cluster.clock.monotonic() - ended_at <= LEASE_IS_OVER + 0.2
        await cluster.until(lambda: len(one.shards) + len(two.shards) == SHARDS)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_runner_that_does_not_renew_is_waited_for_from_its_last_heartbeat() -> None:
    """Of the lease of one that has been silent for two seconds, half a second is left when its locks become free."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        await asyncio.sleep(3)
        store.freeze_sessions(two.incarnation)
        two.dead = True
        await two.supervisor.aclose(0.0)
        await asyncio.sleep(2)
        store.terminate_sessions(two.incarnation)
        two.dead = False  # Nobody knows that it is.
        ended_at = cluster.clock.monotonic()
        suspected(cluster, two)
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert cluster.clock.monotonic() - ended_at <= LEASE_IS_OVER - 2 + 0.2
        two.dead = True

    in_virtual_time(scenario)


def test_a_runner_that_is_asked_lets_go_at_once() -> None:
    """It fences itself before the one who asked begins, and comes back with a new session."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        await asyncio.sleep(3)
        ended_at = cluster.clock.monotonic()
        end_unheard(store, two)
        one.ownership.suspect(two.incarnation)
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert cluster.clock.monotonic() - ended_at < 0.2
        assert two.host.reasons == [f"runner {one.incarnation[:6]} has locks that the lock session of this one had"]
        await cluster.balanced(one, two)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_runner_that_a_stranger_asks_keeps_its_shards() -> None:
    """Who asks must be a runner of the store's table, and name a tenure that the runner has."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        before = dict(two.ownership.owned)
        tenures = [ShardOwner(shard, two.info.runner, epoch) for shard, epoch in before.items()]
        assert not await two.ownership.let_go(tenures, "stranger")
        former = [ShardOwner(one.shard, one.runner, one.epoch - 1) for one in tenures]
        assert await two.ownership.let_go(former, one.incarnation)
        assert two.ownership.owned == before
        await asyncio.sleep(3)
        assert two.ownership.owned == before

    in_virtual_time(scenario)


def test_a_dead_runner_is_asked_about_once_and_not_waited_for() -> None:
    """One question for all its shards."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        cluster.asked.clear()
        killed_at = cluster.clock.monotonic()
        await cluster.kill(two)
        await cluster.until(lambda: len(one.shards) == SHARDS)
        assert cluster.clock.monotonic() - killed_at < 0.1
        assert cluster.asked == [("h:1", "h:2")]

    in_virtual_time(scenario)


def test_a_lock_that_is_held_counts_for_more_than_an_address_that_refuses() -> None:
    """Where a session ends with its process, nobody ends that of a suspect, which may be behind a firewall."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two = await cluster.start("h:1", "h:2")
        await cluster.balanced(one, two)
        before = dict(two.ownership.owned)
        two.dead = True  # As far as anybody can see who connects to it.
        one.ownership.suspect(two.incarnation)
        await asyncio.sleep(3)
        two.dead = False
        assert two.ownership.owned == before
        assert two.ownership.statistics().sessions_opened == 1

    in_virtual_time(scenario)


def test_a_hand_over_waits_for_nobody() -> None:
    """While the lease of one runner is waited out, another one hands its shards over in milliseconds."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        one, two, three = await cluster.start("h:1", "h:2", "h:3")
        await cluster.balanced(one, two, three)
        await asyncio.sleep(3)
        ended_at = cluster.clock.monotonic()
        theirs = two.shards
        end_unheard(store, three)
        suspected(cluster, three)
        await asyncio.sleep(0.1)
        await two.ownership.leave(5.0)
        await cluster.until(lambda: theirs <= one.shards)
        assert cluster.clock.monotonic() - ended_at < 1.0
        assert not any(owner == "h:2" for _, owner in cluster.asked)
        await cluster.until(lambda: len(one.shards) + len(three.shards) == SHARDS)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def test_a_cluster_that_was_killed_and_is_started_again_waits_for_no_lease() -> None:
    """Its runners are known dead: their addresses are those of new incarnations."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        nodes = await cluster.start("h:1", "h:2", "h:3")
        await cluster.balanced(*nodes)
        await asyncio.sleep(3)
        for node in nodes:
            node.dead = True
            await node.supervisor.aclose(1.0)
            cluster.ledger.dies(node.incarnation)
            store.terminate_sessions(node.incarnation)
        began = cluster.clock.monotonic()
        again = [cluster.node(address) for address in ("h:1", "h:2", "h:3")]
        async with asyncio.TaskGroup() as tasks:
            for node in again:
                tasks.create_task(node.ownership.start())
        assert cluster.clock.monotonic() - began < 1.7  # A namesake that may live is waited for before.
        await cluster.balanced(*again)
        assert cluster.clock.monotonic() - began < 2.7
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


class _SlowTakes(MemoryStorage):
    """The answers of takes take a while."""

    seconds = 0.0

    async def take(
        self, shards: Sequence[ShardId], info: RunnerInfo, gone: Mapping[ShardId, int] = NOBODY
    ) -> Mapping[ShardId, int]:
        """Take now, and answer later."""
        epochs = await super().take(shards, info, gone)
        await asyncio.sleep(self.seconds)
        return epochs


def test_a_runner_that_lets_go_while_it_takes_does_not_begin() -> None:
    """The store names it already, its session ended meanwhile, and the answer arrives when another one has begun."""

    async def scenario(cluster: Cluster, store: MemoryStore) -> None:
        (one,) = await cluster.start("h:1")
        storage = _SlowTakes(store)
        cluster.make_storage = lambda: storage
        two = cluster.node("h:2")
        cluster.make_storage = lambda: MemoryStorage(store)
        storage.seconds = 1.0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(two.ownership.start())
            await cluster.until(
                lambda: any(row.owner and row.owner.runner == two.info.runner for row in store.shards())
            )
            end_unheard(store, two)
            storage.seconds = 0.0
            one.ownership.suspect(two.incarnation)
            await cluster.until(lambda: len(one.shards) == SHARDS, deadline=0.5)
        await cluster.balanced(one, two)
        assert cluster.ledger.wrong == []

    in_virtual_time(scenario)


def _row(read_at: float) -> list[LiveRunner]:
    return [LiveRunner(RunnerInfo(runner=RunnerAddress("h:1", "a")), 0.0, read_at=read_at)]


def _read(*readings: tuple[float, float, float]) -> StoreTime:
    """Return what is known after readings of the store's clock, sent and received at these times of ours."""
    known = StoreTime()
    for store, sent, received in readings:
        known.observe(_row(store), sent, received)
    return known


def test_silence_counts_from_when_the_store_heard() -> None:
    """Where both clocks go alike, it is known as exactly as answers are fast."""
    known = _read((1000.0, 0.0, 0.01), (1001.0, 1.0, 1.01), (1002.0, 2.0, 2.01))
    assert known.heard_at(1.5) == pytest.approx(0.52, abs=0.011)


def test_a_store_whose_clock_was_set_ends_no_wait_early() -> None:
    """Silence that a step of its clock has made longer is taken to be shorter by the step, back and forth."""
    for step in (5.0, -5.0):
        known = _read((1000.0, 0.0, 0.0), (1001.0, 1.0, 1.0), (1002.0 + step, 2.0, 2.0))
        assert known.heard_at(1.5 + step) >= min(0.5, 2.0)
        assert known.heard_at(6.5) >= 0.5


def test_nothing_is_known_of_the_time_before_the_first_reading() -> None:
    """A silence of hours may be a clock that was set a moment before."""
    assert _read((1000.0, 7.0, 7.0)).heard_at(3600) == 7.0
    readings = [(1000.0 + second, 7.0 + second, 7.0 + second) for second in range(60)]
    assert _read(*readings).heard_at(3600) >= 7.0 + 59 - 10


def test_the_wait_is_longer_than_the_lease() -> None:
    """Also if the former owner's clock is a tenth slower than ours."""
    assert 1.1 * LEASE.total_seconds() <= LEASE_IS_OVER
