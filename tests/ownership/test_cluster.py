"""Ownership on both stores, in real time: sharing, losing and handing over shards."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from actorhub.core.clock import SystemClock
from actorhub.engine.ownership.plan import desired_shards
from actorhub.storage.memory import MemoryStorage, MemoryStore
from actorhub.storage.postgres.storage import PostgresStorage
from tests.ownership.cluster import SHARDS, Cluster
from tests.support.leases import agree_on_leases
from tests.support.postgres_server import PostgresServer


@pytest.fixture(params=["memory", "postgres", "postgres with leases"])
async def cluster(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> AsyncIterator[Cluster]:
    """An empty cluster on each store, and with each kind of locks."""
    clock = SystemClock()
    if request.param == "memory":
        store = MemoryStore(clock)
        memory = Cluster(lambda: MemoryStorage(store), clock)
        yield memory
        await memory.aclose()
        return
    url = await postgres_server.create_database()
    with_leases = request.param.endswith("leases")
    if with_leases:
        await agree_on_leases(url)
    real = Cluster(
        lambda: PostgresStorage(url, clock=clock, locks="lease" if with_leases else "session"),
        clock,
        sessions_outlive_processes=with_leases,
    )
    yield real
    await real.aclose()
    await postgres_server.drop_database(url)


async def test_three_runners_share_all_shards_without_overlap(cluster: Cluster) -> None:
    """Every shard has exactly one owner at any time while two runners join the first."""
    one, two, three = await cluster.start("h:1", "h:2", "h:3")
    await cluster.balanced(one, two, three)
    assert not one.shards & two.shards
    assert cluster.ledger.wrong == []
    assert [row.info.runner.address for row in three.host.members] == ["h:1", "h:2", "h:3"]


async def test_a_lone_runner_owns_everything_when_its_start_returns(cluster: Cluster) -> None:
    """Start returns after the first pass, well before the first heartbeat interval is over."""
    node = cluster.node("h:1")
    await node.storage.open()
    began = cluster.clock.monotonic()
    await node.ownership.start()
    assert len(node.shards) == SHARDS
    assert node.ownership.is_fresh()
    assert cluster.clock.monotonic() - began < 0.8


async def test_the_shards_of_a_killed_runner_are_taken_over_at_the_next_epoch(cluster: Cluster) -> None:
    """Survivors that saw the stream break own the dead runner's shards in well under its lease."""
    one, two, three = await cluster.start("h:1", "h:2", "h:3")
    await cluster.balanced(one, two, three)
    lost = dict(three.ownership.owned)
    await cluster.kill(three)
    began = cluster.clock.monotonic()
    await cluster.until(lambda: len(one.shards) + len(two.shards) == SHARDS)
    assert cluster.clock.monotonic() - began < 1.0
    merged = {**one.ownership.owned, **two.ownership.owned}
    assert {shard: merged[shard] for shard in lost} == {shard: epoch + 1 for shard, epoch in lost.items()}
    assert cluster.ledger.wrong == []


async def test_suspecting_a_living_peer_moves_nothing(cluster: Cluster) -> None:
    """The lock decides: a wrong suspicion is tried, refused, and given up after some heartbeats."""
    one, two = await cluster.start("h:1", "h:2")
    await cluster.balanced(one, two)
    before = dict(one.ownership.owned), dict(two.ownership.owned)
    one.ownership.suspect(two.incarnation)
    assert one.ownership.statistics().suspects == 1
    await cluster.until(lambda: one.ownership.statistics().suspects == 0)
    assert (dict(one.ownership.owned), dict(two.ownership.owned)) == before
    one.ownership.suspect(two.incarnation)
    one.ownership.trust(two.incarnation)
    assert one.ownership.statistics().suspects == 0
    assert cluster.ledger.wrong == []


async def test_a_leaving_runner_hands_over_drained_shards(cluster: Cluster) -> None:
    """Each shard is drained, then released, then granted elsewhere; nothing is revoked and the row is gone."""
    one, two = await cluster.start("h:1", "h:2")
    await cluster.balanced(one, two)
    theirs = two.shards
    two.host.drain_default = 0.05
    began = cluster.clock.monotonic()
    await two.ownership.leave(5.0)
    assert cluster.clock.monotonic() - began < 3.0
    assert not two.ownership.is_fresh()
    assert not two.shards
    for shard in theirs:
        assert two.host.order(shard)[-3:] == ["drain", "drained", "released"]
    await cluster.until(lambda: len(one.shards) == SHARDS)
    assert [event for event, _ in two.host.events if event == "revoked"] == []
    assert [row.info.runner.address for row in await one.storage.runners()] == ["h:1"]
    assert cluster.ledger.wrong == []


async def test_a_released_shard_is_granted_again_within_milliseconds(cluster: Cluster) -> None:
    """The next owner is told and does not wait for its next look at the runner table."""
    one, two = await cluster.start("h:1", "h:2")
    await cluster.balanced(one, two)
    theirs = two.shards
    await two.ownership.leave(5.0)
    await cluster.until(lambda: len(one.shards) == SHARDS)
    gaps = []
    for shard in theirs:
        former, latter = [tenure for tenure in cluster.ledger.tenures if tenure.shard == shard][-2:]
        assert former.until is not None
        gaps.append(latter.since - former.until)
    assert max(gaps) < 0.5


async def test_a_lost_session_revokes_first_and_takes_anew_at_higher_epochs(cluster: Cluster) -> None:
    """The runner keeps its incarnation, but every shard gets a new epoch."""
    one, two = await cluster.start("h:1", "h:2")
    await cluster.balanced(one, two)
    before = dict(one.ownership.owned)
    await two.storage.terminate_sessions(one.incarnation)
    await cluster.until(lambda: one.ownership.statistics().sessions_opened == 2)
    await cluster.until(lambda: len(one.shards) + len(two.shards) == SHARDS)
    for shard, epoch in before.items():
        assert one.host.order(shard) == ["granted", "revoked", "granted"]
        assert one.ownership.epoch(shard) == epoch + 1
    assert one.ownership.statistics().sessions_lost == 1
    assert cluster.ledger.wrong == []


async def test_a_store_that_restarts_brings_every_shard_back(own_postgres: PostgresServer) -> None:
    """After a crash of Postgres all runners serve again, each its own shards, with nothing stranded."""
    clock = SystemClock()
    url = await own_postgres.create_database()
    cluster = Cluster(lambda: PostgresStorage(url, clock=clock), clock)
    try:
        nodes = await cluster.start("h:1", "h:2")
        await cluster.balanced(*nodes)
        before = [node.shards for node in nodes]
        await own_postgres.restart("immediate")
        await cluster.until(lambda: all(node.ownership.statistics().sessions_opened >= 2 for node in nodes))
        await cluster.balanced(*nodes)
        assert [node.shards for node in nodes] == before
        assert cluster.ledger.wrong == []
    finally:
        await cluster.aclose()


async def test_many_starting_and_dying_runners_never_share_a_shard(cluster: Cluster) -> None:
    """Runners that start together, die, leave and return never overlap, and all shards find an owner."""
    nodes = [cluster.node(f"h:{number}") for number in range(4)]
    for node in nodes:
        await node.storage.open()
    async with asyncio.TaskGroup() as group:
        for node in nodes:
            group.create_task(node.ownership.start())
    await cluster.balanced(*nodes)
    await cluster.kill(nodes[0])
    await nodes[1].ownership.leave(5.0)
    nodes[1].dead = True
    (late,) = await cluster.start("h:9")
    await cluster.balanced(nodes[2], nodes[3], late)
    assert cluster.ledger.wrong == []


async def test_placement_decides_who_owns_what_in_the_end(cluster: Cluster) -> None:
    """Once nothing moves, every runner owns exactly what the pure function gives it."""
    one, two = await cluster.start("h:1", "h:2")
    await cluster.balanced(one, two)
    infos = [one.info, two.info]
    assert one.shards == desired_shards(infos, (), one.info, SHARDS).mine
    assert two.shards == desired_shards(infos, (), two.info, SHARDS).mine
