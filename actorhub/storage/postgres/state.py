"""Loading and committing entity state, many at a time."""

from collections.abc import Sequence
from typing import Final, TypeAlias

from actorhub.core.address import ShardId, fence_lock_key
from actorhub.core.errors import PersistenceError
from actorhub.storage.ports import Fenced, StateCommit, StoredState, VersionConflict
from actorhub.storage.postgres.batching import MAX_BATCH_BYTES, Again, Entry
from actorhub.storage.postgres.columns import Column, Columns
from actorhub.storage.postgres.connections import Statement
from actorhub.storage.postgres.queries import queries
from actorhub.storage.statistics import StorageCounters

LoadEntry: TypeAlias = Entry[tuple[str, str], StoredState | None]
CommitEntry: TypeAlias = Entry[StateCommit, None]

STATES: Final = Columns[StateCommit](
    "state_columns",
    Column("groups", "text[]", lambda commits: [commit.shard.group for commit in commits]),
    Column("numbers", "integer[]", lambda commits: [commit.shard.number for commit in commits]),
    Column("epochs", "bigint[]", lambda commits: [commit.epoch for commit in commits]),
    Column("types", "text[]", lambda commits: [commit.entity_type for commit in commits]),
    Column("ids", "text[]", lambda commits: [commit.entity_id for commit in commits]),
    Column("versions", "bigint[]", lambda commits: [commit.version for commit in commits]),
    Column("bodies", "bytea[]", lambda commits: [commit.data for commit in commits]),
)
_FENCED: Final = 1
_CONFLICT: Final = 2


class StateLoads:
    """Reads the states of a batch in one statement."""

    name = "load state"
    writes = False

    def __init__(self, counters: StorageCounters) -> None:
        self.sql = queries()["load_states"]
        self._counters = counters

    async def run(self, statement: Statement, batch: Sequence[LoadEntry]) -> Sequence[StoredState | Again | None]:
        """Return the state of each entity."""
        self._counters.load_batches += 1
        keys = [entry.request for entry in batch]
        rows = await statement.fetch([key[0] for key in keys], [key[1] for key in keys], MAX_BATCH_BYTES)
        found: list[StoredState | Again | None] = [None] * len(batch)
        again = 0
        for position, version, data, age, group, number in rows:
            found[position] = Again() if data is None else StoredState(version, data, age, ShardId(group, number))
            again += data is None
        self._counters.loads += len(batch) - again
        return found


class StateCommits:
    """Writes the states of a batch in one transaction under the committer's fence."""

    name = "commit state"
    writes = True

    def __init__(self, namespace: str, counters: StorageCounters, *, fence: bool) -> None:
        self.sql = queries()["commit_states"]
        self._namespace = namespace
        self._counters = counters
        self._fence = fence

    async def run(self, statement: Statement, batch: Sequence[CommitEntry]) -> Sequence[PersistenceError | None]:
        """Return for each commit `None` when it is written, else why it was refused."""
        self._counters.commit_batches += 1
        committer = batch[0].owner
        fence = fence_lock_key(self._namespace, committer) if self._fence else None
        rows = await statement.fetch(fence, committer, STATES.encode([entry.request for entry in batch]))
        verdicts: Sequence[int] | None = rows[0][0]
        self._counters.acknowledge(rows[0][1])
        if verdicts is None:
            self._counters.commits += len(batch)
            return [None] * len(batch)
        outcomes = [_outcome(verdict, entry) for verdict, entry in zip(verdicts, batch, strict=True)]
        refused = len(outcomes) - outcomes.count(None)
        self._counters.refused += refused
        self._counters.commits += len(outcomes) - refused
        return outcomes


def _outcome(verdict: int, entry: CommitEntry) -> PersistenceError | None:
    commit = entry.request
    if verdict == _FENCED:
        return Fenced(f"{commit.shard} no longer belongs to {entry.owner} at epoch {commit.epoch}")
    if verdict == _CONFLICT:
        return VersionConflict(
            f"{commit.entity_type}/{commit.entity_id}: version {commit.version - 1} is not the stored one"
        )
    return None
