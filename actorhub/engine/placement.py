"""Who should own which shard: a pure function of the live runners.

Every runner computes it alone from the same registry rows and gets the same answer; locks decide who really owns.

Method: weighted rendezvous hashing as a race (each runner draws pseudo-random shards, at a speed proportional to its
weight; the first to draw a shard wins it; cf. Thaler & Ravishankar 1998 and its exponential-clock form), with exact
quotas: a runner that is full draws no more. In matching terms: the stable matching of shards and runner slots where
both sides prefer the earlier draw. We differ from Maglev (Eisenbud et al. 2016), where a runner whose draw is taken
draws again at once, which moves twice as many unrelated shards when a runner joins or leaves.
"""

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Final

import mmh3
import msgspec

PLACEMENT_VERSION: Final = "race-1"
"""Names this algorithm. Its output is a wire format: runners that disagree would take shards from each other."""

_DRAWS_PER_SHARD: Final = 6
"""Length of the race: a shard that nobody drew in as many rounds (about one in 400) is settled pair by pair."""


class Candidate(msgspec.Struct, frozen=True, order=True, kw_only=True):
    """A live runner as placement sees it."""

    address: str
    """The identity that is hashed, so a restarted runner gets its shards back."""
    weight: float = 1.0
    """Share relative to other runners; with one outside 1e-6 to 1e6 it hosts nothing."""
    groups: tuple[str, ...] = ("default",)
    """Shard groups that it hosts."""
    draining: bool = False
    """Leaving: it gets no shards."""
    capable: bool = True
    """Whether it can host the group's entity types; an incapable one gets no shards."""

    def hosts(self, group: str) -> bool:
        """Whether this runner may be given shards of `group`."""
        return self.capable and not self.draining and group in self.groups and 1e-6 <= self.weight <= 1e6


def place(group: str, shards: int, candidates: Iterable[Candidate]) -> tuple[str | None, ...]:
    """Return for each shard of `group` the address of the runner that should own it.

    Each eligible runner gets within one shard of its weighted fair share; the order of `candidates` is irrelevant; of
    several candidates with one address the greatest counts. All are `None` where no runner is eligible.

    Args:
        group: The shard group; different groups are laid out independently.
        shards: How many shards the group has.
        candidates: All live runners, eligible or not.
    """
    eligible = {candidate.address: candidate for candidate in sorted(candidates) if candidate.hosts(group)}
    runners = [_Racer(group, candidate) for candidate in eligible.values()]
    if not runners:
        return (None,) * shards
    left = fair_quotas(shards, [runner.weight for runner in runners], [runner.tie for runner in runners])
    owners = _race(shards, runners, left)
    _settle(group, runners, left, owners)
    return tuple(runners[owner].address for owner in owners)


def fair_quotas(total: int, weights: Sequence[float], ties: Sequence[int]) -> list[int]:
    """Return whole numbers that sum to `total`, each less than one away from its weighted share (largest remainder).

    Args:
        total: What is shared out.
        weights: Positive finite numbers.
        ties: Distinct numbers; among equal remainders the smaller one is served first.
    """
    largest = max(weights)
    scaled = [weight / largest for weight in weights]
    whole = math.fsum(scaled)
    shares = [total * weight / whole for weight in scaled]
    quotas = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: (quotas[index] - shares[index], ties[index]))
    for index in by_remainder[: total - sum(quotas)]:
        quotas[index] += 1
    return quotas


class _Racer:
    """One eligible runner with its endless, private sequence of pseudo-random draws."""

    __slots__ = ("address", "phase", "stream", "tie", "weight")

    def __init__(self, group: str, candidate: Candidate) -> None:
        self.address = candidate.address
        self.weight = candidate.weight
        self.stream = hashlib.shake_128(f"{PLACEMENT_VERSION}/{group}/{candidate.address}".encode())
        head = self.stream.digest(8)
        self.tie = int.from_bytes(head, "big")
        self.phase = self.tie / 2**64

    def draws(self, count: int, shards: int) -> list[int]:
        """Return the first `count` shards that this runner draws."""
        words = struct.unpack_from(f"<{count}I", self.stream.digest(4 * count + 8), 8)
        return [word * shards >> 32 for word in words]


def _race(shards: int, runners: Sequence[_Racer], left: list[int]) -> list[int]:
    """Give each shard to the first runner with room that draws it; -1 where none did. Lowers `left` accordingly."""
    whole = math.fsum(sorted(runner.weight for runner in runners))
    times: list[float] = []
    drawn: list[int] = []
    drawer: list[int] = []
    for index, runner in enumerate(runners):
        speed = runner.weight / whole * shards
        count = math.ceil(_DRAWS_PER_SHARD * speed)
        times += [(turn + runner.phase) / speed for turn in range(count)]
        drawn += runner.draws(count, shards)
        drawer += [index] * count
    owners = [-1] * shards
    for event in sorted(range(len(times)), key=times.__getitem__):
        shard = drawn[event]
        if owners[shard] < 0 and left[drawer[event]]:
            owners[shard] = drawer[event]
            left[drawer[event]] -= 1
    return owners


def _settle(group: str, runners: Sequence[_Racer], left: list[int], owners: list[int]) -> None:
    """Give the shards that the race left over to the runners with room, best pair first."""
    open_runners = [index for index, room in enumerate(left) if room]
    pairs = [
        (mmh3.hash(f"{group}:{shard}/{runners[index].address}", 0, signed=False) / runners[index].weight, shard, index)
        for shard, owner in enumerate(owners)
        if owner < 0
        for index in open_runners
    ]
    for _, shard, index in sorted(pairs):
        if owners[shard] < 0 and left[index]:
            owners[shard] = index
            left[index] -= 1
