"""The routing table: who owns which shard, as far as this process knows. A hint: owner and fence decide."""

from collections.abc import Iterable
from typing import Final

from actorhub.core.address import RunnerAddress, ShardId, ShardOwner

_OVERTAKING: Final = 1.0
"""Seconds."""


class RoutingTable:
    """Keeps the newest owner per shard by epoch; news from different peers may come in any order."""

    def __init__(self) -> None:
        self._owners: dict[ShardId, ShardOwner] = {}
        self.newest: dict[ShardId, int] = {}
        """Highest epoch ever heard of, which outlives a release."""
        self._since: dict[ShardId, float] = {}
        """When that was, in monotonic seconds."""

    def owner(self, shard: ShardId) -> ShardOwner | None:
        """Return the owner, if one is known."""
        return self._owners.get(shard)

    def is_superseded(self, shard: ShardId, epoch: int, now: float) -> bool:
        """Whether a reply given at `epoch` must be refused, because a newer owner acts for the shard.

        A second's delay is allowed for replies that a graceful hand-over's news overtook on another link.
        """
        return epoch < self.newest.get(shard, 0) and now - self._since[shard] > _OVERTAKING

    def learn(self, owners: Iterable[ShardOwner], now: float) -> list[ShardId]:
        """Take news at monotonic time `now`; return the shards whose owner changed."""
        changed: list[ShardId] = []
        for owner in owners:
            known = self.newest.get(owner.shard, 0)
            if owner.epoch > known or (owner.epoch == known and owner.shard not in self._owners):
                self.newest[owner.shard] = owner.epoch
                self._since[owner.shard] = now
                self._owners[owner.shard] = owner
                changed.append(owner.shard)
        return changed

    def forget(self, shard: ShardId, runner: RunnerAddress) -> None:
        """`runner` does not own the shard (any more)."""
        owner = self._owners.get(shard)
        if owner is not None and owner.runner == runner:
            del self._owners[shard]

    def forget_runner(self, runner: RunnerAddress) -> list[ShardId]:
        """`runner` is gone: return the shards that have no known owner now."""
        lost = [shard for shard, owner in self._owners.items() if owner.runner == runner]
        for shard in lost:
            del self._owners[shard]
        return lost

    def of_runner(self, runner: RunnerAddress) -> list[ShardId]:
        """Return the shards that `runner` owns, as far as known."""
        return [shard for shard, owner in self._owners.items() if owner.runner == runner]
