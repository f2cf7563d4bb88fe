"""The routing table: who owns which shard, as far as this process knows.

It is a hint. A message that is sent to the wrong runner comes back unexecuted, and what a former owner tries to commit
is refused by the store.
"""

from collections.abc import Iterable
from typing import Final

from actorhub.core.address import RunnerAddress, ShardId, ShardOwner

_OVERTAKING: Final = 1.0
"""Seconds for which replies at an earlier epoch are still accepted."""


class RoutingTable:
    """Keeps the newest known owner of each shard.

    What runners announce travels over a link for each of them, so the announcement of a new owner may arrive before
    that of an older one. The epoch tells which one is newer.
    """

    def __init__(self) -> None:
        self._owners: dict[ShardId, ShardOwner] = {}
        self.newest: dict[ShardId, int] = {}
        """The highest epoch ever announced. It outlives a release, so that late announcements are known as old."""
        self._since: dict[ShardId, float] = {}
        """When that epoch was announced, in monotonic seconds."""
        self._doubted: dict[ShardId, ShardOwner] = {}
        """Owners that sent a message back, although they have not announced that they released the shard."""

    def owner(self, shard: ShardId) -> ShardOwner | None:
        """Return the owner of a shard, if one is known."""
        return self._owners.get(shard)

    def is_superseded(self, shard: ShardId, epoch: int, now: float) -> bool:
        """Whether a reply that was given at `epoch` must be refused because a newer owner acts for the shard.

        Such a reply may come from a runner that lost the shard without noticing, and may report what the new owner has
        since changed. But after a graceful hand-over the announcement of the new owner can overtake, on another link, a
        reply that its former owner gave while it still was the owner. Refusing that one would fail a call that has
        succeeded, so replies are accepted for one more second.
        """
        return epoch < self.newest.get(shard, 0) and now - self._since[shard] > _OVERTAKING

    def learn(self, owners: Iterable[ShardOwner], now: float) -> list[ShardId]:
        """Take in an announcement at monotonic time `now`; return the shards whose owner has changed by it."""
        changed: list[ShardId] = []
        for owner in owners:
            # At an equal epoch, the owner is news only if it was forgotten, because its link broke, for example.
            known = self.newest.get(owner.shard, 0)
            if owner.epoch > known or (owner.epoch == known and owner.shard not in self._owners):
                self.newest[owner.shard] = owner.epoch
                self._since[owner.shard] = now
                self._owners[owner.shard] = owner
                self._doubted.pop(owner.shard, None)
                changed.append(owner.shard)
        return changed

    def clear(self) -> None:
        """Forget everything: epochs begin again, perhaps below those that were announced."""
        self._owners.clear()
        self._doubted.clear()
        self.newest.clear()
        self._since.clear()

    def forget(self, shard: ShardId, runner: RunnerAddress) -> None:
        """Take in that `runner` does not own the shard. Does nothing if another runner is known as its owner."""
        for known in (self._owners, self._doubted):
            owner = known.get(shard)
            if owner is not None and owner.runner == runner:
                del known[shard]

    def doubt(self, shard: ShardId, runner: RunnerAddress) -> None:
        """Do without an owner that sent a message back, until it announces itself, or `trust_again` is called."""
        owner = self._owners.get(shard)
        if owner is not None and owner.runner == runner:
            self._doubted[shard] = self._owners.pop(shard)

    def trust_again(self) -> None:
        """Take doubted owners for owners again: they may not have been able to prove it for a moment."""
        for shard, owner in self._doubted.items():
            self._owners.setdefault(shard, owner)
        self._doubted.clear()

    def forget_runner(self, runner: RunnerAddress) -> None:
        """Forget everything that `runner` owned."""
        for shard in self.of_runner(runner):
            self.forget(shard, runner)

    def of_runner(self, runner: RunnerAddress) -> list[ShardId]:
        """Return the shards that `runner` owns, as far as is known."""
        known = (*self._owners.items(), *self._doubted.items())
        return [shard for shard, owner in known if owner.runner == runner]
