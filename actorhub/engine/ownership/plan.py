"""What a runner should do about shards, as pure functions: from the runner table to desired shards to a plan."""

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId
from actorhub.core.backoff import Backoff
from actorhub.engine.ownership.placement import Candidate, place
from actorhub.storage.ports import LiveRunner

LIVE_WITHIN: Final = 2.75
"""A runner that has not sent a heartbeat for this many seconds gets no shards."""
STALE_AFTER: Final = 2.75
"""Seconds of silence after which peers end a runner's lock sessions. By then its lease (2.5 s) has run out: it has let
go of its shards and given its session up, unless it is frozen. So nobody loses anything by it."""
FORGET_AFTER: Final = 10.0
"""Seconds of silence after which the row of a runner without lock sessions is deleted."""
RECEPTIVE_WITHIN: Final = 2.5
"""Seconds of silence beyond which no shard is handed over to a runner: it may be dead."""


def living(rows: Sequence[LiveRunner], me: RunnerInfo, forgiven: float = 0.0) -> tuple[LiveRunner, ...]:
    """Return the runners that count as alive, this one included, sorted by address.

    Of several incarnations at one address, the youngest counts.

    Args:
        rows: The runner table.
        me: This runner. It is alive whatever its row says, and other incarnations at its address are not.
        forgiven: Seconds of silence that prove nothing, because no runner could reach the store.
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
    """Return the incarnations whose lock sessions to end, and whether to delete the row once there are none."""
    return {
        row.info.runner.incarnation: row.silent_for - forgiven >= FORGET_AFTER
        for row in rows
        if row.silent_for - forgiven >= STALE_AFTER and row.info.runner.incarnation != me.runner.incarnation
    }


@dataclass(frozen=True, slots=True)
class DesiredShards:
    """The shards that this runner should own, and who should own the others of its groups."""

    mine: frozenset[ShardId]
    """Shards whose locks to try: ours by placement, or ours if the suspected runners are dead."""
    next_owner: Mapping[ShardId, RunnerAddress]
    """Placement over the runners that are not suspected."""
    agreed: frozenset[ShardId]
    """Shards that have the same owner by placement whether or not the suspected runners are dead."""

    def given_away(self, owned: Collection[ShardId], receptive: Collection[RunnerAddress]) -> frozenset[ShardId]:
        """Return those of `owned` that this runner should hand over now.

        Args:
            owned: The shards that it owns.
            receptive: Runners that shards may be handed over to.
        """
        return frozenset(
            shard
            for shard in owned
            if shard not in self.mine and shard in self.agreed and self.next_owner[shard] in receptive
        )


def desired_shards(
    infos: Sequence[RunnerInfo], suspects: Collection[str], me: RunnerInfo, shards_per_group: int
) -> DesiredShards:
    """Return what `me` should own, as a pure function of those that are alive and those that are suspected.

    A suspicion may be wrong, and two runners may differ in whom they suspect. So a suspect counts as neither dead nor
    alive: the locks of its shards are tried, which is safe because the lock decides, but no shard is handed over unless
    placement says the same with and without the suspect.
    """
    trusted = [info for info in infos if info.runner.incarnation not in suspects]
    cautious = _layout(trusted, me, shards_per_group)
    if len(trusted) == len(infos):
        mine = frozenset(shard for shard, owner in cautious.items() if owner == me.runner)
        return DesiredShards(mine, cautious, frozenset(cautious))
    hopeful = _layout(infos, me, shards_per_group)
    mine = frozenset(shard for layout in (cautious, hopeful) for shard, owner in layout.items() if owner == me.runner)
    agreed = frozenset(shard for shard, owner in cautious.items() if hopeful.get(shard) == owner)
    return DesiredShards(mine, cautious, agreed)


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
class MovePlan:
    """The acquisitions and hand-overs to start now. Shards that are already on the move are in neither list."""

    acquire: tuple[ShardId, ...]
    release: tuple[ShardId, ...]
    waiting: int
    """How many shards are to be released later, because enough are being drained already."""


def decide(
    *,
    owned: Collection[ShardId],
    busy: Collection[ShardId],
    desired: frozenset[ShardId],
    given_away: Collection[ShardId],
    places: int,
) -> MovePlan:
    """Return what to do about every shard.

    Args:
        owned: Shards owned now.
        busy: Shards with an acquisition or a hand-over under way. They are left alone until that has ended.
        desired: Shards to own.
        given_away: Shards to hand over if they are owned. Those that are also desired are kept.
        places: How many further hand-overs may be started.
    """
    acquire = sorted(shard for shard in desired if shard not in owned and shard not in busy)
    release = sorted(shard for shard in owned if shard in given_away and shard not in desired and shard not in busy)
    places = max(0, places)
    return MovePlan(tuple(acquire), tuple(release[:places]), len(release[places:]))


_RETRIES: Final = Backoff(initial=0.02, maximum=0.25)
_BEATS_TO_TRUST: Final = 3
"""One heartbeat proves little: it may have been on its way when the runner died."""
_SAME_BEAT: Final = 0.1
"""Two readings of the table whose heartbeats are less than this many seconds apart have seen the same heartbeat."""


class _Suspicion(msgspec.Struct):
    since: float
    tries: int
    next_try: float
    last_beat: float
    beats: int = 0


class Suspects:
    """Runners that may be dead, and when to try their locks next. Times are monotonic seconds.

    A suspicion begins when a link breaks (`add`), or when the runner's heartbeats stop. It ends when the runner's row
    is gone, when the runner is trusted again, or when three of its heartbeats have arrived since.
    """

    def __init__(self) -> None:
        self._suspicions: dict[str, _Suspicion] = {}

    def __contains__(self, incarnation: str) -> bool:
        return incarnation in self._suspicions

    @property
    def incarnations(self) -> frozenset[str]:
        """The suspected runners."""
        return frozenset(self._suspicions)

    def add(self, incarnation: str, now: float) -> None:
        """Suspect a runner; the intervals between attempts start over."""
        self._suspicions[incarnation] = _Suspicion(since=now, tries=0, next_try=now + _RETRIES.initial, last_beat=now)

    def trust(self, incarnation: str) -> bool:
        """End the suspicion of a runner; return whether there was one."""
        return self._suspicions.pop(incarnation, None) is not None

    def observe(
        self, rows: Sequence[LiveRunner], now: float, forgiven: float = 0.0, *, registered: Container[str] = ()
    ) -> None:
        """Begin and end suspicions by rows of the runner table that were read at `now`.

        Args:
            rows: Those of other runners.
            now: Monotonic seconds.
            forgiven: Seconds of silence that prove nothing.
            registered: Further runners that have a row, which was not read.
        """
        silence = {row.info.runner.incarnation: row.silent_for for row in rows}
        for incarnation in [name for name in self._suspicions if name not in silence and name not in registered]:
            del self._suspicions[incarnation]
        for incarnation, silent_for in silence.items():
            suspicion = self._suspicions.get(incarnation)
            if suspicion is None:
                if silent_for - forgiven >= LIVE_WITHIN:
                    self.add(incarnation, now)
                continue
            # The time of the last heartbeat is computed from its age. The same heartbeat, read again, gives almost the
            # same time, however often the table is read.
            if now - silent_for > suspicion.last_beat + _SAME_BEAT:
                suspicion.last_beat = now - silent_for
                suspicion.beats += 1
                if suspicion.beats >= _BEATS_TO_TRUST:
                    del self._suspicions[incarnation]

    def next_try(self) -> float | None:
        """Return when to try the suspects' locks next; `None` if nobody is suspected."""
        return min((suspicion.next_try for suspicion in self._suspicions.values()), default=None)

    def since(self, now: float) -> float:
        """Return when the oldest suspicion began; `now` if nobody is suspected."""
        return min((suspicion.since for suspicion in self._suspicions.values()), default=now)

    def on_tried(self, now: float) -> None:
        """Plan the next attempt: 20 ms after the suspicion, then at intervals that double up to 250 ms.

        Postgres frees the locks of a killed process when the kernel has closed its socket, which is usually a few
        milliseconds away.
        """
        for suspicion in self._suspicions.values():
            if suspicion.next_try <= now:
                suspicion.tries += 1
                suspicion.next_try = now + _RETRIES.longest(suspicion.tries + 1)
