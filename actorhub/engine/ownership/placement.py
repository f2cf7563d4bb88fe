"""Who should own which shard: a pure function of the live runners and of the slots that they hold.

Every runner computes it alone from the same registry rows and gets the same answer; locks decide who really owns.

A runner that registers is given the lowest slot number that is free, and keeps it. All slots up to the highest join in
order, each taking from every earlier one exactly what brings it down to its equal quota; then whoever has more than its
weighted share, and above all the slots that nobody holds, give what is over to those with room, by rendezvous hashing
(Thaler & Ravishankar 1998) bounded by exact quotas. So while weights are equal, exactly the ideal moves when a runner
joins a cluster with at most one hole or leaves one without holes; with more holes what address hashing costs too.
Unequal weights cost more: measured at 50 runners and 10,000 shards, 1.5 to 3 times the ideal.

Hashing addresses needs no slots, but loads then vary by chance, and levelling them to within one shard costs a third of
the ideal at 50 runners and 10,000 shards even with minimum-cost matching. Order of arrival without slots makes joins
exact, but whatever a senior runner leaves behind shifts every later choice: three times the ideal moves.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

PLACEMENT_VERSION: Final = "slots-1"
"""Names this algorithm. Its output is a wire format: runners that disagree would take shards from each other."""

_EXACT: Final = 2.0**72
"""Times this, each permitted weight is a whole number, so that quotas are computed without rounding."""


class Candidate(msgspec.Struct, frozen=True, order=True, kw_only=True):
    """A live runner as placement sees it."""

    address: str
    slot: int = -1
    """Its number in the registry, the lowest that was free when it registered; -1: not registered yet."""
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

    Each eligible runner gets less than one shard more or less than its weighted fair share; the order of `candidates`
    is irrelevant; of several candidates with one address the greatest counts. All are `None` where none is eligible.

    Args:
        group: The shard group; different groups are laid out independently.
        shards: How many shards the group has.
        candidates: All live runners, eligible or not.
    """
    eligible = {candidate.address: candidate for candidate in sorted(candidates) if candidate.hosts(group)}
    if not eligible:
        return (None,) * shards
    seats = _seats(eligible.values())
    weights = [int(seats[slot].weight * _EXACT) if slot in seats else 0 for slot in range(max(seats) + 1)]
    layout = _Layout(group, shards, len(weights)).settle(weights)
    owners: list[str | None] = [None] * shards
    for slot, candidate in seats.items():
        for shard in layout[slot]:
            owners[shard] = candidate.address
    return tuple(owners)


def fair_quotas(total: int, weights: Sequence[int], ties: Sequence[int]) -> list[int]:
    """Return whole numbers that sum to `total`, each less than one away from its weighted share.

    Webster's method within the bounds of the share rounded down and up: unlike largest remainders it gives nobody more
    because another one comes, except where those bounds force it.

    Args:
        total: What is shared out.
        weights: Not negative, not all zero.
        ties: Distinct numbers; among equal claims the smaller one is served first.
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


def _seats(runners: Iterable[Candidate]) -> dict[int, Candidate]:
    """Return who sits where: at its slot, unless that is taken, or so high that almost all slots would be holes.

    The others take the lowest holes, as the registry would give them.
    """
    ordered = sorted(runners, key=lambda runner: (runner.slot, runner.address))
    limit = 4 * len(ordered) + 60
    seats: dict[int, Candidate] = {}
    unseated: list[Candidate] = []
    for runner in ordered:
        if 0 <= runner.slot < limit and runner.slot not in seats:
            seats[runner.slot] = runner
        else:
            unseated.append(runner)
    holes = [slot for slot in range(limit) if slot not in seats]
    seats.update(zip(holes, unseated, strict=False))
    return seats


class _Layout:
    """The shards of one group, listed by slot."""

    def __init__(self, group: str, shards: int, slots: int) -> None:
        self._shards = shards
        self._keys = _words(f"{PLACEMENT_VERSION}/shards/{group}", shards)
        self._marks = [word | 1 for word in _words(f"{PLACEMENT_VERSION}/slots/{group}", slots)]
        """Odd; a shard's key times a slot's mark, modulo 2**32, ranks the slots for that shard."""
        self._ties = [mark << 32 | slot for slot, mark in enumerate(self._marks)]
        self._owned: list[list[int]] = [[] for _ in range(slots)]

    def settle(self, weights: Sequence[int]) -> list[list[int]]:
        """Return the shards of each slot: all join in order as equals, then `weights` become true at once."""
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
        """Move what is over at one's end to those with room."""
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
    """Return `count` pseudo-random 32-bit numbers; a longer answer begins with the shorter one."""
    return struct.unpack(f"<{count}I", hashlib.shake_128(label.encode()).digest(4 * count))
