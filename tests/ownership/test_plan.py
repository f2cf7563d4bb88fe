"""The pure decisions of ownership: who lives, what to own, what to do, whom to suspect."""

from hypothesis import given
from hypothesis import strategies as st

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId
from actorhub.engine.ownership.plan import Suspects, decide, desired_shards, living, namesakes, stale
from actorhub.storage.ports import LiveRunner

SHARDS = 12


def runner(
    name: str, incarnation: str = "", *, draining: bool = False, groups: tuple[str, ...] = ("default",)
) -> RunnerInfo:
    return RunnerInfo(runner=RunnerAddress(name, incarnation or name), draining=draining, groups=groups)


def row(info: RunnerInfo, silent_for: float = 0.0, started_at: float = 0.0) -> LiveRunner:
    return LiveRunner(info, silent_for, started_at)


ME, PEER, OTHER = runner("a"), runner("b"), runner("c")
shards = st.sets(st.integers(0, SHARDS - 1).map(lambda number: ShardId("default", number)))


def test_silent_runners_do_not_count_as_living() -> None:
    """A peer that is silent for longer than a lease is gone, this runner lives whatever its row says."""
    rows = [row(ME, 9.0), row(PEER, 2.7), row(OTHER, 2.75)]
    assert [one.info for one in living(rows, ME)] == [ME, PEER]
    assert [one.info for one in living([], ME)] == [ME]


def test_silence_that_proves_nothing_is_forgiven() -> None:
    """While the store was away for eight seconds nobody could be heard."""
    rows = [row(PEER, 9.0), row(OTHER, 12.0)]
    assert [one.info for one in living(rows, ME, forgiven=8.0)] == [ME, PEER]
    assert stale(rows, ME, forgiven=8.0) == {"c": False}
    assert stale(rows, ME) == {"b": False, "c": True}


def test_the_youngest_incarnation_at_an_address_counts() -> None:
    """A restarted peer replaces its former row although that is not silent for long yet."""
    old, new = runner("b", "old"), runner("b", "new")
    rows = [row(new, 0.1, started_at=20.0), row(old, 0.0, started_at=10.0)]
    assert [one.info for one in living(rows, ME)] == [ME, new]
    assert [one.info for one in living(rows[::-1], ME)] == [ME, new]


def test_another_incarnation_at_our_address_never_counts() -> None:
    """Two rows at our address: ours is the one that lives."""
    twin = runner("a", "twin")
    assert [one.info for one in living([row(twin, 0.0, started_at=99.0)], ME)] == [ME]
    assert [one.info for one in namesakes([row(twin), row(ME), row(PEER)], ME)] == [twin]


def test_the_desired_shards_of_all_runners_are_disjoint_and_complete() -> None:
    """Without suspicions every shard is desired by exactly one runner, and all agree on whom."""
    infos = [ME, PEER, OTHER]
    each = [desired_shards(infos, (), info, SHARDS) for info in infos]
    assert sum(len(one.mine) for one in each) == SHARDS == len(frozenset().union(*(one.mine for one in each)))
    assert each[0].next_owner == each[1].next_owner == each[2].next_owner
    assert each[0].agreed == frozenset(each[0].next_owner)


def test_a_suspicion_adds_desired_shards_and_never_gives_anything_to_the_suspect() -> None:
    """What the suspect may have lost is tried; nothing is handed over unless both opinions name the same owner."""
    infos = [ME, PEER, OTHER]
    calm, alarmed = desired_shards(infos, (), ME, SHARDS), desired_shards(infos, {"b"}, ME, SHARDS)
    assert calm.mine < alarmed.mine
    everything = frozenset(calm.next_owner)
    given = alarmed.given_away(everything, {info.runner for info in infos})
    assert {alarmed.next_owner[shard] for shard in given} == {OTHER.runner}
    assert given <= {shard for shard, owner in calm.next_owner.items() if owner == OTHER.runner}


def test_shards_are_given_only_to_a_receptive_owner() -> None:
    """An owner that was not heard of lately gets nothing yet."""
    calm = desired_shards([ME, PEER], (), ME, SHARDS)
    assert calm.given_away(list(calm.next_owner), {ME.runner}) == frozenset()
    assert calm.given_away(list(calm.next_owner), {PEER.runner}) == frozenset(calm.next_owner) - calm.mine


def test_a_draining_runner_desires_no_shard() -> None:
    """Its peers and it itself agree that its shards belong to others."""
    leaving = runner("b", draining=True)
    assert desired_shards([ME, leaving], (), leaving, SHARDS).mine == frozenset()
    assert len(desired_shards([ME, leaving], (), ME, SHARDS).mine) == SHARDS


def test_only_shards_of_hosted_groups_are_desired() -> None:
    """A runner desires shards of its own groups, and shares them with those that host the same."""
    both, one = runner("a", groups=("default", "heavy")), runner("b", groups=("default",))
    mine = desired_shards([both, one], (), both, SHARDS).mine
    assert {shard for shard in mine if shard.group == "heavy"} == {ShardId("heavy", number) for number in range(SHARDS)}
    assert {shard.group for shard in desired_shards([both, one], (), one, SHARDS).next_owner} == {"default"}


@given(owned=shards, busy=shards, wanted=shards, away=shards, places=st.integers(-2, 20))
def test_a_plan_touches_nothing_that_is_busy_and_never_both_ways(
    owned: set[ShardId], busy: set[ShardId], wanted: set[ShardId], away: set[ShardId], places: int
) -> None:
    """Acquired: wanted and not owned; released: owned, given away and not wanted; bounded by the free places."""
    plan = decide(owned=owned, busy=busy, desired=frozenset(wanted), given_away=away, places=places)
    assert set(plan.acquire) == wanted - owned - busy
    assert set(plan.release) <= (owned & away) - wanted - busy
    assert len(plan.release) <= max(0, places)
    assert len(plan.release) + plan.waiting == len((owned & away) - wanted - busy)


def test_a_suspect_is_tried_at_growing_intervals() -> None:
    """The first retry comes after 20 ms, later ones at most 250 ms apart."""
    suspects = Suspects()
    suspects.add("b", 100.0)
    times = []
    for _ in range(8):
        now = suspects.next_try()
        assert now is not None
        times.append(now)
        suspects.on_tried(now)
    gaps = [round(after - before, 3) for before, after in zip([100.0, *times], times, strict=False)]
    assert gaps == [0.02, 0.04, 0.08, 0.16, 0.25, 0.25, 0.25, 0.25]


def test_three_heartbeats_after_the_suspicion_clear_the_suspect() -> None:
    """Looking often at the same heartbeat proves nothing; the third new one does."""
    suspects = Suspects()
    suspects.add("b", 100.0)
    for now, silent_for in [(100.0, 0.5), (101.0, 0.2), (101.2, 0.4), (101.4, 0.6), (102.0, 0.2)]:
        suspects.observe([row(PEER, silent_for)], now)
        assert "b" in suspects
    suspects.observe([row(PEER, 0.1)], 103.0)
    assert "b" not in suspects
    assert suspects.next_try() is None


def test_a_runner_that_falls_silent_is_suspected_without_an_opinion() -> None:
    """Silence is a suspicion of its own; a row that is gone ends it."""
    suspects = Suspects()
    suspects.observe([row(PEER, 3.1)], 100.0)
    assert suspects.incarnations == {"b"}
    assert suspects.since(200.0) == 100.0
    suspects.observe([], 101.0)
    assert suspects.incarnations == frozenset()
    assert suspects.since(200.0) == 200.0
