"""Loading and committing entity state, many at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from actorhub.core.address import fence_lock_key
from actorhub.core.errors import PersistenceError
from actorhub.storage.ports import Fenced, StateCommit, StoredState, VersionConflict
from actorhub.storage.postgres.grouping import MAX_GROUP_BYTES, Again, Entry
from actorhub.storage.postgres.queries import queries
from actorhub.storage.statistics import StorageCounters

if TYPE_CHECKING:
    from actorhub.storage.postgres.lane import Statement

LoadEntry: TypeAlias = Entry[tuple[str, str], StoredState | None]
CommitEntry: TypeAlias = Entry[StateCommit, None]

_FENCED: Final = 1
_CONFLICT: Final = 2


class StateLoads:
    """Reads the states of a group in one statement."""

    name = "load state"
    writes = False

    def __init__(self, counters: StorageCounters) -> None:
        self.sql = queries()["load_states"]
        self._counters = counters

    async def run(self, statement: "Statement", group: Sequence[LoadEntry]) -> Sequence[StoredState | Again | None]:
        """Return the state of each entity."""
        self._counters.load_groups += 1
        keys = [entry.request for entry in group]
        rows = await statement.fetch([key[0] for key in keys], [key[1] for key in keys], MAX_GROUP_BYTES)
        found: list[StoredState | Again | None] = [None] * len(group)
        again = 0
        for position, version, data, age in rows:
            found[position] = Again() if data is None else StoredState(version, data, age)
            again += data is None
        self._counters.loads += len(group) - again
        return found


class StateCommits:
    """Writes the states of a group in one transaction under the committer's fence."""

    name = "commit state"
    writes = True

    def __init__(self, namespace: str, counters: StorageCounters, *, fence: bool) -> None:
        self.sql = queries()["commit_states"]
        self._namespace = namespace
        self._counters = counters
        self._fence = fence

    async def run(self, statement: "Statement", group: Sequence[CommitEntry]) -> Sequence[PersistenceError | None]:
        """Return for each commit `None` when it is written, else why it was refused."""
        self._counters.commit_groups += 1
        committer = group[0].party
        commits = [entry.request for entry in group]
        shards = [commit.shard for commit in commits]
        rows = await statement.fetch(
            fence_lock_key(self._namespace, committer) if self._fence else None,
            committer,
            [shard.group for shard in shards],
            [shard.number for shard in shards],
            [commit.epoch for commit in commits],
            [commit.entity_type for commit in commits],
            [commit.entity_id for commit in commits],
            [commit.version for commit in commits],
            [commit.data for commit in commits],
        )
        verdicts: Sequence[int] | None = rows[0][0]
        if verdicts is None:
            self._counters.commits += len(group)
            return [None] * len(group)
        outcomes = [_outcome(verdict, entry) for verdict, entry in zip(verdicts, group, strict=True)]
        refused = len(outcomes) - outcomes.count(None)
        self._counters.refused += refused
        self._counters.commits += len(outcomes) - refused
        return outcomes


def _outcome(verdict: int, entry: CommitEntry) -> PersistenceError | None:
    commit = entry.request
    if verdict == _FENCED:
        return Fenced(f"{commit.shard} does not belong to {entry.party} at epoch {commit.epoch} any more")
    if verdict == _CONFLICT:
        return VersionConflict(
            f"{commit.entity_type}/{commit.entity_id}: version {commit.version - 1} is not the stored one"
        )
    return None
