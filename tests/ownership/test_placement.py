"""Placement: balanced, total, the same for everyone, and stable when runners come and go."""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorhub.engine.ownership.placement import Candidate, fair_quotas, place


def runners(count: int, seed: int = 0, weight: float = 1.0) -> list[Candidate]:
    """Return `count` candidates on the first slots, at addresses that depend on `seed`."""
    return [Candidate(address=f"10.{seed}.0.{index}:7700", slot=index, weight=weight) for index in range(count)]


def without(cluster: Sequence[Candidate], *slots: int) -> list[Candidate]:
    """Return the cluster without the runners on `slots`."""
    return [runner for runner in cluster if runner.slot not in slots]


def cost_of(before: Sequence[str | None], after: Sequence[str | None], changed: Candidate) -> float:
    """Return how many shards moved, as a multiple of the number that `changed` gained or lost."""
    return moved(before, after) / abs(after.count(changed.address) - before.count(changed.address))


def moved(before: Sequence[str | None], after: Sequence[str | None]) -> int:
    """Return how many shards have another owner."""
    return sum(old != new for old, new in zip(before, after, strict=True))


candidates = st.builds(
    Candidate,
    address=st.integers(0, 200).map("10.0.0.{}:7700".format),
    slot=st.one_of(st.integers(-1, 25), st.integers(-5, 10**9)),
    weight=st.floats(0.01, 100),
    groups=st.sampled_from([("default",), ("other",), ("default", "other")]),
    draining=st.booleans(),
    capable=st.sampled_from([True, True, True, False]),
)
clusters = st.lists(candidates, max_size=20, unique_by=lambda candidate: candidate.address)


@given(clusters, st.integers(0, 400))
@settings(max_examples=150)
def test_every_shard_gets_one_eligible_runner_and_every_runner_its_fair_share(
    cluster: list[Candidate], shards: int
) -> None:
    """Every shard has an owner, and each load is less than one shard away from the weighted share."""
    eligible = {
        candidate.address: candidate.weight
        for candidate in cluster
        if candidate.capable and not candidate.draining and "default" in candidate.groups
    }
    owners = place("default", shards, cluster)
    assert len(owners) == shards
    if not eligible:
        assert set(owners) <= {None}
        return
    loads = Counter(owners)
    assert set(loads) <= set(eligible)
    whole = math.fsum(eligible.values())
    for address, weight in eligible.items():
        assert abs(loads[address] - shards * weight / whole) < 1 + 1e-9


@given(clusters, st.randoms(use_true_random=False))
def test_the_order_of_the_input_changes_nothing(cluster: list[Candidate], chance: random.Random) -> None:
    """Runners that read the registry in different orders agree."""
    shuffled = cluster[:]
    chance.shuffle(shuffled)
    assert place("default", 100, cluster) == place("default", 100, shuffled)


@given(clusters)
def test_runners_that_host_nothing_of_the_group_change_nothing(cluster: list[Candidate]) -> None:
    """A runner that drains, cannot host the group or is in another group counts as absent."""
    eligible = [candidate for candidate in cluster if candidate.hosts("default")]
    assert place("default", 100, cluster) == place("default", 100, eligible)


@given(
    total=st.integers(0, 20_000),
    weights=st.lists(st.integers(0, 10**9), min_size=1, max_size=60).filter(any),
)
def test_quotas_are_whole_and_sum_up(total: int, weights: list[int]) -> None:
    """No shard is lost, and no load is off by one or more."""
    quotas = fair_quotas(total, weights, range(len(weights)))
    assert sum(quotas) == total
    for quota, weight in zip(quotas, weights, strict=True):
        assert quota >= 0
        assert abs(quota * sum(weights) - total * weight) < sum(weights)


@given(total=st.integers(0, 20_000), count=st.integers(1, 60), ties=st.randoms(use_true_random=False))
def test_another_equal_claimant_raises_nobodys_quota(total: int, count: int, ties: random.Random) -> None:
    """Without this, a join would move shards between old runners."""
    order = ties.sample(range(1000), count + 1)
    before = fair_quotas(total, [7] * count, order[:-1])
    after = fair_quotas(total, [7] * (count + 1), order)
    assert all(new <= old for old, new in zip(before, after, strict=False))


def test_without_runners_nobody_owns_anything() -> None:
    """An empty cluster has an empty placement, not an error."""
    assert place("default", 3, []) == (None, None, None)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, 1e308, 5e-324])
def test_a_broken_weight_excludes_only_its_runner(weight: float) -> None:
    """A broken row of another runner does not stop this one."""
    good = Candidate(address="good:1")
    assert place("default", 5, [good, Candidate(address="bad:1", weight=weight)]) == ("good:1",) * 5


def test_two_rows_with_one_address_count_once() -> None:
    """The row of a runner's previous start can still be there for a moment."""
    before, restarted = Candidate(address="a:1", weight=1.0), Candidate(address="a:1", weight=3.0)
    other = Candidate(address="b:1")
    assert Counter(place("default", 40, [before, other, restarted])) == {"a:1": 30, "b:1": 10}


def test_groups_are_laid_out_independently() -> None:
    """A runner owns neither the same numbers nor the extra shard in every group."""
    cluster = [Candidate(address=f"r{index}:1", slot=index, groups=("one", "two")) for index in range(4)]
    same = sum(a == b for a, b in zip(place("one", 1000, cluster), place("two", 1000, cluster), strict=True))
    assert 180 < same < 320


def test_weights_are_respected_also_when_extreme() -> None:
    """A runner with a thousand times the weight gets a thousand times the shards."""
    cluster = [Candidate(address="big:1", weight=1000.0), *runners(10, weight=1.0)]
    loads = Counter(place("default", 10_100, cluster))
    assert loads["big:1"] == 10_000
    assert set(loads.values()) == {10_000, 10}


@given(count=st.integers(1, 60), shards=st.integers(0, 2000), hole=st.integers(0, 60))
@settings(max_examples=60)
def test_a_runner_that_joins_takes_its_share_and_nothing_else_moves(count: int, shards: int, hole: int) -> None:
    """A new runner is the last one or fills the only hole, and a departure without holes is the reverse of a join."""
    complete = runners(count + 1)
    newcomer = complete[hole % (count + 1)]
    before = place("default", shards, without(complete, newcomer.slot))
    after = place("default", shards, complete)
    assert moved(before, after) == after.count(newcomer.address) <= -(-shards // (count + 1))
    assert all(new in {old, newcomer.address} for old, new in zip(before, after, strict=True))


def test_a_runner_that_restarts_elsewhere_on_its_slot_takes_over_its_shards() -> None:
    """The layout depends on slots, not on addresses."""
    cluster = runners(7)
    moved_house = Candidate(address="elsewhere:1", slot=3)
    before, after = (place("default", 300, [*without(cluster, 3), third]) for third in (cluster[3], moved_house))
    assert after == tuple("elsewhere:1" if owner == cluster[3].address else owner for owner in before)


@pytest.mark.parametrize(
    ("count", "shards", "holes"), [(10, 300, 1), (50, 10_000, 1), (50, 10_000, 5), (20, 10_000, 15)]
)
def test_holes_make_joins_and_leaves_a_little_dearer(count: int, shards: int, holes: int) -> None:
    """On average at most half of the ideal is moved in addition, however many runners are missing."""
    costs: list[float] = []
    for seed in range(3):
        chance = random.Random(seed)
        everybody = runners(count + holes, seed)
        cluster = without(everybody, *chance.sample(range(count + holes), holes))
        before = place("default", shards, cluster)
        for runner in chance.sample(everybody, 4):
            changed = without(cluster, runner.slot) if runner in cluster else [*cluster, runner]
            costs.append(cost_of(before, place("default", shards, changed), runner))
    assert sum(costs) / len(costs) <= 1.5


def test_a_slot_claimed_twice_or_absurd_harms_only_its_runner() -> None:
    """Broken rows of the registry cost moves, but neither balance nor more than a fair share of others' shards."""
    cluster = runners(9)
    before = place("default", 900, cluster)
    for slot in (4, -7, 10**12):
        stranger = Candidate(address="stranger:1", slot=slot)
        after = place("default", 900, [*cluster, stranger])
        assert after.count("stranger:1") == 90
        assert moved(before, after) <= 1.6 * 90


def test_a_change_of_weight_moves_about_the_difference() -> None:
    """Doubling one of ten weights moves little more than the shards which that runner gains."""
    cluster = runners(10)
    before = place("default", 10_000, cluster)
    heavier = Candidate(address=cluster[3].address, slot=3, weight=2.0)
    after = place("default", 10_000, [*without(cluster, 3), heavier])
    gain = after.count(heavier.address) - before.count(heavier.address)
    assert gain in (818, 819)
    assert moved(before, after) <= 1.2 * gain


def test_unequal_weights_do_not_reshuffle_a_cluster() -> None:
    """If half of the runners have twice the weight, a join moves on average at most 2.2 times the ideal."""
    costs: list[float] = []
    for count in (10, 20, 30, 50):
        cluster = [Candidate(address=f"r{slot}:1", slot=slot, weight=1.0 + slot % 2) for slot in range(count + 2)]
        layouts = [place("default", 10_000, cluster[:size]) for size in (count, count + 1, count + 2)]
        costs += [cost_of(layouts[step], layouts[step + 1], cluster[count + step]) for step in range(2)]
    assert sum(costs) / len(costs) <= 2.2


def test_the_layout_is_a_wire_format() -> None:
    """All runners of a rolling deploy must agree: a change here needs a new PLACEMENT_VERSION and a plan."""
    both = ("default", "orders")
    cluster = [
        Candidate(address="10.0.0.1:7700", groups=both, slot=0),
        Candidate(address="10.0.0.2:7700", groups=both, slot=1, weight=2.0),
        Candidate(address="[::1]:7700", groups=both, slot=3, weight=0.5),
        Candidate(address="host.example:1", groups=both, slot=2, draining=True),
    ]
    short = {"10.0.0.1:7700": "a", "10.0.0.2:7700": "b", "[::1]:7700": "c", None: "-"}
    assert (
        "".join(short[owner] for owner in place("default", 40, cluster)) == "ccaaabbaabbbaacbbbbbcbbbbbbbbbaaaacbbbbc"
    )
    digest = hashlib.sha256("".join(short[owner] for owner in place("orders", 10_000, cluster)).encode()).hexdigest()
    assert digest[:16] == "18ae5089c5fea09f"
    fifty = hashlib.sha256(" ".join(str(owner) for owner in place("default", 10_000, runners(50))).encode()).hexdigest()
    assert fifty[:16] == "fcdc56397d1ae53c"
