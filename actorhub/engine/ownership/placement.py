"""Who should own which shard, as a pure function of the live runners and of the slots that they hold.

Every runner computes it by itself from the same rows of the runner table and gets the same result. Placement only says
who should try; the locks decide who owns.

A runner that registers is given the lowest free slot number, and keeps it. The layout is computed in two steps:

1. All slots up to the highest join one after the other, as equals. Each takes from every earlier slot exactly what
   brings that one down to its quota.
2. Slots that have more than their weighted share then give the surplus to those that have less. A slot that nobody
   holds (a hole) has weight 0, so it gives everything. The surplus is dealt out by rendezvous hashing (Thaler &
   Ravishankar 1998), bounded by exact quotas.

So if weights are equal, a join moves exactly the newcomer's share in a cluster with at most one hole, and a leave moves
exactly the leaver's share in a cluster without holes. With more holes it costs as much as hashing addresses would. With
unequal weights it costs more: 1.5 to 3 times the ideal, measured with 50 runners and 10,000 shards.

Two alternatives were measured with the same numbers. Hashing addresses needs no slots, but loads vary by chance, and
levelling them to within one shard moves a third more than the ideal, even with minimum-cost matching. Ordering runners
by arrival, without slots, makes joins exact, but when a senior runner leaves, every later choice shifts: three times
the ideal moves.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

PLACEMENT_VERSION: Final = "slots-1"
"""Names this algorithm. Its output is a wire format: runners that disagreed would take shards from each other."""

_EXACT: Final = 2.0**72
"""Every permitted weight times this is a whole number, so that quotas are computed without rounding."""


class Candidate(msgspec.Struct, frozen=True, order=True, kw_only=True):
    """A live runner as placement sees it."""

    address: str
    slot: int = -1
    """Its number in the runner table, the lowest that was free when it registered; -1 before that."""
    weight: float = 1.0
    """Its share relative to that of other runners. With a weight outside 1e-6 to 1e6 it hosts nothing."""
    groups: tuple[str, ...] = ("default",)
    """The shard groups that it hosts."""
    draining: bool = False
    """Whether it is leaving; then it gets no shards."""
    capable: bool = True
    """Whether it can host the group's entity types; if not, it gets no shards."""

    def hosts(self, group: str) -> bool:
        """Whether this runner may be given shards of `group`."""
        return self.capable and not self.draining and group in self.groups and 1e-6 <= self.weight <= 1e6


def place(group: str, shards: int, candidates: Iterable[Candidate]) -> tuple[str | None, ...]:
    """Return for each shard of `group` the address of the runner that should own it.

    Each eligible runner gets its weighted fair share to within one shard. The order of `candidates` does not matter. Of
    several candidates with one address, the greatest counts. If none is eligible, every address is `None`.

    Args:
        group: The shard group. Groups are laid out independently of each other.
        shards: How many shards the group has.
        candidates: All live runners, eligible or not.
    """
    eligible = {candidate.address: candidate for candidate in sorted(candidates) if candidate.hosts(group)}
    if not eligible:
        return (None,) * shards
    by_slot = _by_slot(eligible.values())
    weights = [int(by_slot[slot].weight * _EXACT) if slot in by_slot else 0 for slot in range(max(by_slot) + 1)]
    layout = _Layout(group, shards, len(weights)).settle(weights)
    owners: list[str | None] = [None] * shards
    for slot, candidate in by_slot.items():
        for shard in layout[slot]:
            owners[shard] = candidate.address
    return tuple(owners)


def fair_quotas(total: int, weights: Sequence[int], ties: Sequence[int]) -> list[int]:
    """Return whole numbers that sum to `total`, each less than one away from its weighted share.

    This is Webster's method, bounded by the share rounded down and up. Unlike the method of largest remainders, it
    gives nobody more because another one joins, unless the bounds force it.

    Args:
        total: The number to divide.
        weights: None negative, not all zero.
        ties: Distinct numbers. Among equal claims, the one with the smaller number is served first.
    """
    whole = sum(weights)
    quotas = [total * weight // whole for weight in weights]
    claims = sorted(
        ((2 * quota + 1) / weight, tie, index)
        for index, (quota, weight, tie) in enumerate(zip(quotas, weights, ties, strict=True))
        if quota * whole < total * weight
    )
    for _, _, index in claims[: total - sum(quotas)]:
        quotas[index] += 1
    return quotas


def _by_slot(runners: Iterable[Candidate]) -> dict[int, Candidate]:
    """Return the runner of each slot.

    Each runner gets the slot that it holds, unless another runner has that one too, or it is so high that almost all
    slots would be holes. The others get the lowest holes, as at registration.
    """
    ordered = sorted(runners, key=lambda runner: (runner.slot, runner.address))
    limit = 4 * len(ordered) + 60
    by_slot: dict[int, Candidate] = {}
    others: list[Candidate] = []
    for runner in ordered:
        if 0 <= runner.slot < limit and runner.slot not in by_slot:
            by_slot[runner.slot] = runner
        else:
            others.append(runner)
    holes = [slot for slot in range(limit) if slot not in by_slot]
    by_slot.update(zip(holes, others, strict=False))
    return by_slot


class _Layout:
    """The shards of one group, listed by slot."""

    def __init__(self, group: str, shards: int, slots: int) -> None:
        self._shards = shards
        self._keys = _words(f"{PLACEMENT_VERSION}/shards/{group}", shards)
        self._marks = [word | 1 for word in _words(f"{PLACEMENT_VERSION}/slots/{group}", slots)]
        """Odd numbers. A shard's key times a slot's mark, modulo 2**32, ranks the slots for that shard."""
        self._ties = [mark << 32 | slot for slot, mark in enumerate(self._marks)]
        self._owned: list[list[int]] = [[] for _ in range(slots)]

    def settle(self, weights: Sequence[int]) -> list[list[int]]:
        """Return the shards of each slot: all slots join in order as equals, then the weights take effect at once."""
        self._owned[0] = sorted(range(self._shards), key=self._keys.__getitem__)
        for count in range(2, len(weights) + 1):
            newest = self._owned[count - 1]
            for owned, quota in zip(self._owned, self._equal_quotas(count), strict=False):
                if len(owned) > quota:
                    newest += owned[quota:]
                    del owned[quota:]
        if min(weights) < max(weights):
            self._level(fair_quotas(self._shards, weights, self._ties))
        return self._owned

    def _equal_quotas(self, count: int) -> list[int]:
        quota, more = divmod(self._shards, count)
        quotas = [quota] * count
        for slot in sorted(range(count), key=self._ties.__getitem__)[:more]:
            quotas[slot] += 1
        return quotas

    def _level(self, quotas: Sequence[int]) -> None:
        """Move the surplus of some slots, from the front of their lists, to slots with room."""
        pool: list[int] = []
        room: dict[int, int] = {}
        for slot, (owned, quota) in enumerate(zip(self._owned, quotas, strict=True)):
            over = len(owned) - quota
            if over > 0:
                pool += owned[:over]
                del owned[:over]
            elif over < 0:
                room[slot] = -over
        self._deal(pool, room)

    def _deal(self, pool: Iterable[int], room: dict[int, int]) -> None:
        slots = list(room)
        marks = [self._marks[slot] for slot in slots]
        keys = self._keys
        for shard in sorted(pool, key=keys.__getitem__):
            key = keys[shard]
            ranks = [key * mark & 0xFFFFFFFF for mark in marks]
            best = ranks.index(min(ranks))
            slot = slots[best]
            self._owned[slot].append(shard)
            room[slot] -= 1
            if not room[slot]:
                del slots[best], marks[best]


def _words(label: str, count: int) -> tuple[int, ...]:
    """Return `count` pseudo-random 32-bit numbers. For a greater `count`, the result begins with the same numbers."""
    return struct.unpack(f"<{count}I", hashlib.shake_128(label.encode()).digest(4 * count))
