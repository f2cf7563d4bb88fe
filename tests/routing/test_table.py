"""The routing table: the newest epoch wins, in whatever order news arrives."""

from hypothesis import given
from hypothesis import strategies as st

from actorhub.core.address import RunnerAddress, ShardId, ShardOwner
from actorhub.engine.routing.table import RoutingTable

SHARD = ShardId("default", 7)
RUNNERS = [RunnerAddress(f"h:{n}", f"{n:016x}") for n in range(4)]


def _owner(epoch: int, shard: ShardId = SHARD) -> ShardOwner:
    return ShardOwner(shard, RUNNERS[epoch % 4], epoch)


@given(st.permutations(range(1, 8)))
def test_the_newest_epoch_wins_in_any_order(epochs: list[int]) -> None:
    """After all news, in any order and repeated, the table names the owner of the highest epoch."""
    table = RoutingTable()
    for epoch in (*epochs, *epochs):
        table.learn([_owner(epoch)], 0.0)
    assert table.owner(SHARD) == _owner(7)


def test_only_changes_are_reported() -> None:
    """Learning says which shards have another owner than before."""
    table = RoutingTable()
    other = ShardId("default", 8)
    assert table.learn([_owner(1), _owner(2, other)], 0.0) == [SHARD, other]
    assert table.learn([_owner(1), _owner(3, other)], 0.0) == [other]
    assert table.learn([_owner(1)], 0.0) == []


def test_a_released_shard_is_not_given_back_to_an_older_owner() -> None:
    """The highest epoch outlives a release, so late news of a former owner does not count."""
    table = RoutingTable()
    table.learn([_owner(5)], 0.0)
    table.forget(SHARD, RUNNERS[1])
    assert table.owner(SHARD) is None
    assert table.learn([_owner(4)], 0.0) == []
    assert table.owner(SHARD) is None
    assert table.learn([_owner(5)], 0.0) == [SHARD]


def test_forgetting_names_who_is_forgotten() -> None:
    """News that a former owner gave the shard back does not hide the present one."""
    table = RoutingTable()
    table.learn([_owner(5)], 0.0)
    table.forget(SHARD, RUNNERS[2])
    assert table.owner(SHARD) == _owner(5)


def test_a_gone_runner_owns_nothing() -> None:
    """All of its shards are returned, and nobody else's."""
    table = RoutingTable()
    shards = [ShardId("default", n) for n in range(8)]
    table.learn([ShardOwner(shard, RUNNERS[n % 2], 1) for n, shard in enumerate(shards)], 0.0)
    assert table.of_runner(RUNNERS[0]) == shards[::2]
    table.doubt(shards[0], RUNNERS[0])
    table.forget_runner(RUNNERS[0])
    table.trust_again()
    assert [shard for shard in shards if table.owner(shard)] == shards[1::2]
    assert table.of_runner(RUNNERS[0]) == []
    assert table.of_runner(RUNNERS[1]) == shards[1::2]


def test_replies_of_a_former_owner_are_superseded_after_a_moment() -> None:
    """A second is allowed for replies that the hand-over's news overtook; unknown shards supersede nothing."""
    table = RoutingTable()
    assert not table.is_superseded(SHARD, 1, 100.0)
    table.learn([_owner(2)], 100.0)
    assert not table.is_superseded(SHARD, 1, 100.9)
    assert table.is_superseded(SHARD, 1, 101.1)
    assert not table.is_superseded(SHARD, 2, 200.0)
    assert not table.is_superseded(SHARD, 3, 200.0)


def test_a_doubted_owner_is_trusted_again_unless_it_released_the_shard() -> None:
    """It sent a message back, and announces nothing, since nothing has changed for it."""
    table = RoutingTable()
    other = ShardId("default", 8)
    table.learn([_owner(5), _owner(5, other)], 0.0)
    table.doubt(SHARD, RUNNERS[2])
    assert table.owner(SHARD) == _owner(5)
    for shard in (SHARD, other):
        table.doubt(shard, RUNNERS[1])
    table.forget(other, RUNNERS[1])
    assert (table.owner(SHARD), table.owner(other)) == (None, None)
    table.trust_again()
    assert (table.owner(SHARD), table.owner(other)) == (_owner(5), None)


def test_a_doubted_owner_is_not_trusted_once_there_is_a_later_one() -> None:
    """What was announced meanwhile counts, also if that owner has released the shard again."""
    table = RoutingTable()
    table.learn([_owner(5)], 0.0)
    table.doubt(SHARD, RUNNERS[1])
    table.learn([_owner(6)], 0.0)
    table.trust_again()
    assert table.owner(SHARD) == _owner(6)
    table.forget(SHARD, RUNNERS[2])
    table.trust_again()
    assert table.owner(SHARD) is None
