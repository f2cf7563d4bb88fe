"""What a runner should do about shards, decided without doing it: from the runner table to wishes to a plan."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId
from actorhub.core.backoff import Backoff
from actorhub.engine.ownership.placement import Candidate, place
from actorhub.storage.ports import LiveRunner

LIVE_WITHIN: Final = 3.0
"""A runner that the store did not hear of for this many seconds gets no shards."""
STALE_AFTER: Final = 3.5
"""Seconds of silence after which a runner's lock sessions are ended: later than its own lease, so it has let go."""
FORGET_AFTER: Final = 10.0
"""Seconds of silence after which the row of a runner without lock sessions is deleted."""
RECEPTIVE_WITHIN: Final = 2.5
"""A shard is handed over only to a runner that was heard of within as many seconds."""


def living(rows: Sequence[LiveRunner], me: RunnerInfo, forgiven: float = 0.0) -> tuple[LiveRunner, ...]:
    """Return the runners that count as alive, this one included, one per address: the youngest, sorted by address.

    Args:
        rows: The runner table.
        me: This runner; it is alive whatever its row says, and another incarnation at its address is not.
        forgiven: Seconds of silence that prove nothing, because nobody could reach the store.
    """
    found: dict[str, LiveRunner] = {}
    for row in rows:
        address = row.info.runner.address
        if address == me.runner.address or row.silent_for - forgiven >= LIVE_WITHIN:
            continue
        other = found.get(address)
        if other is None or _age_order(other) < _age_order(row):
            found[address] = row
    found[me.runner.address] = LiveRunner(me, 0.0)
    return tuple(found[address] for address in sorted(found))


def _age_order(row: LiveRunner) -> tuple[float, float, str]:
    return (row.started_at, -row.silent_for, row.info.runner.incarnation)


def namesakes(rows: Sequence[LiveRunner], me: RunnerInfo) -> tuple[LiveRunner, ...]:
    """Return the rows of other incarnations at this runner's address."""
    return tuple(
        row
        for row in rows
        if row.info.runner.address == me.runner.address and row.info.runner.incarnation != me.runner.incarnation
    )


def stale(rows: Sequence[LiveRunner], me: RunnerInfo, forgiven: float = 0.0) -> dict[str, bool]:
    """Return the incarnations whose lock sessions are to be ended, and whether the row may go once there are none."""
    return {
        row.info.runner.incarnation: row.silent_for - forgiven >= FORGET_AFTER
        for row in rows
        if row.silent_for - forgiven >= STALE_AFTER and row.info.runner.incarnation != me.runner.incarnation
    }


@dataclass(frozen=True, slots=True)
class Wishes:
    """Which shards this runner should own, and who should own the others of its groups."""

    mine: frozenset[ShardId]
    """Worth a try for their lock: ours by placement, or ours should the suspected runners be dead."""
    next_owner: Mapping[ShardId, RunnerAddress]
    """Placement over the unsuspected runners."""
    agreed: frozenset[ShardId]
    """Shards that belong to the same other runner whether or not the suspected ones are dead."""

    def given_away(self, owned: Collection[ShardId], receptive: Collection[RunnerAddress]) -> frozenset[ShardId]:
        """Return those of `owned` that this runner should hand over now, to one of `receptive`."""
        return frozenset(
            shard
            for shard in owned
            if shard not in self.mine and shard in self.agreed and self.next_owner[shard] in receptive
        )


def wishes(infos: Sequence[RunnerInfo], suspects: Collection[str], me: RunnerInfo, shards_per_group: int) -> Wishes:
    """Return the wishes of `me`, a pure function of who is alive and who is suspected.

    A suspected runner is believed neither dead nor alive: its shards are tried, which is safe because locks decide, but
    nothing is handed over on that opinion.
    """
    trusted = [info for info in infos if info.runner.incarnation not in suspects]
    cautious = _layout(trusted, me, shards_per_group)
    if len(trusted) == len(infos):
        mine = frozenset(shard for shard, owner in cautious.items() if owner == me.runner)
        return Wishes(mine, cautious, frozenset(cautious))
    hopeful = _layout(infos, me, shards_per_group)
    mine = frozenset(shard for layout in (cautious, hopeful) for shard, owner in layout.items() if owner == me.runner)
    agreed = frozenset(shard for shard, owner in cautious.items() if hopeful.get(shard) == owner)
    return Wishes(mine, cautious, agreed)


def _layout(infos: Sequence[RunnerInfo], me: RunnerInfo, shards_per_group: int) -> dict[ShardId, RunnerAddress]:
    runners = {info.runner.address: info.runner for info in infos}
    candidates = [
        Candidate(
            address=info.runner.address,
            slot=info.slot,
            weight=info.weight,
            groups=info.groups,
            draining=info.draining,
        )
        for info in infos
    ]
    return {
        ShardId(group, number): runners[address]
        for group in me.groups
        for number, address in enumerate(place(group, shards_per_group, candidates))
        if address is not None
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start now. Shards that are being acquired or released already are in neither list."""

    acquire: tuple[ShardId, ...]
    release: tuple[ShardId, ...]
    waiting: int
    """How many shards are to be released later, for want of a free place."""


def decide(
    *,
    owned: Collection[ShardId],
    busy: Collection[ShardId],
    wanted: frozenset[ShardId],
    given_away: Collection[ShardId],
    places: int,
) -> Plan:
    """Return what to do about every shard.

    Args:
        owned: Shards owned now.
        busy: Shards with an acquisition or a release under way: left alone until that has ended.
        wanted: Shards to own.
        given_away: Shards to hand over if they are owned; those also wanted are kept.
        places: How many hand-overs may be started.
    """
    acquire = sorted(shard for shard in wanted if shard not in owned and shard not in busy)
    release = sorted(shard for shard in owned if shard in given_away and shard not in wanted and shard not in busy)
    places = max(0, places)
    return Plan(tuple(acquire), tuple(release[:places]), len(release[places:]))


_RETRIES: Final = Backoff(initial=0.02, maximum=0.25)
_BEATS_TO_TRUST: Final = 3
_SAME_BEAT: Final = 0.1


class _Suspicion(msgspec.Struct):
    since: float
    tries: int
    next_try: float
    last_beat: float
    beats: int = 0


class Suspects:
    """Runners that somebody believes dead, and when to try their locks next; times are monotonic seconds.

    A suspicion ends when the row is gone, when the suspect is trusted again, or when three of its heartbeats arrived
    after it began. A runner that falls silent is suspected without anybody's opinion.
    """

    def __init__(self) -> None:
        self._suspicions: dict[str, _Suspicion] = {}

    def __contains__(self, incarnation: str) -> bool:
        return incarnation in self._suspicions

    @property
    def incarnations(self) -> frozenset[str]:
        """Who is suspected."""
        return frozenset(self._suspicions)

    def add(self, incarnation: str, now: float) -> None:
        """Suspect a runner; the retries start anew."""
        self._suspicions[incarnation] = _Suspicion(since=now, tries=0, next_try=now + _RETRIES.initial, last_beat=now)

    def trust(self, incarnation: str) -> bool:
        """End a suspicion; return whether there was one."""
        return self._suspicions.pop(incarnation, None) is not None

    def observe(self, rows: Sequence[LiveRunner], now: float, forgiven: float = 0.0) -> None:
        """Learn from the runner table as read at `now`."""
        silence = {row.info.runner.incarnation: row.silent_for for row in rows}
        for incarnation in self._suspicions.keys() - silence.keys():
            del self._suspicions[incarnation]
        for incarnation, silent_for in silence.items():
            suspicion = self._suspicions.get(incarnation)
            if suspicion is None:
                if silent_for - forgiven >= LIVE_WITHIN:
                    self.add(incarnation, now)
                continue
            if now - silent_for > suspicion.last_beat + _SAME_BEAT:
                suspicion.last_beat = now - silent_for
                suspicion.beats += 1
                if suspicion.beats >= _BEATS_TO_TRUST:
                    del self._suspicions[incarnation]

    def next_try(self) -> float | None:
        """Return when to try next; `None` without suspicions."""
        return min((suspicion.next_try for suspicion in self._suspicions.values()), default=None)

    def since(self, now: float) -> float:
        """Return when the oldest suspicion began; `now` without suspicions."""
        return min((suspicion.since for suspicion in self._suspicions.values()), default=now)

    def tried(self, now: float) -> None:
        """Note a try at `now`: 20 ms after the suspicion, then at intervals that double up to 250 ms."""
        for suspicion in self._suspicions.values():
            if suspicion.next_try <= now:
                suspicion.tries += 1
                suspicion.next_try = now + _RETRIES.longest(suspicion.tries + 1)
