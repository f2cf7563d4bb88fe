"""Checkpoints and the outcomes of deferred values on Postgres."""

from collections.abc import Mapping, Sequence

from typing_extensions import override

from actorhub.storage.checkpoint_ports import CheckpointStore, Completion, CompletionKind, Saved, Scope
from actorhub.storage.postgres.connections import Connections
from actorhub.storage.postgres.control import LONG, Lane


class PostgresCheckpoints(CheckpointStore):
    """A `CheckpointStore` in the namespace's schema."""

    def __init__(self, connections: Connections) -> None:
        # Loading must not queue behind upkeep.
        self._loads = Lane(connections)
        self._upkeep = Lane(connections, LONG, slow=True)

    @override
    async def load(self, scope: Scope) -> Saved:
        rows = await self._loads.fetch(
            "load checkpoints", "load_checkpoints", scope.entity_type, scope.entity_id, scope.message_id
        )
        found = {row["name"]: row["data"] for row in rows if row["name"] is not None}
        return Saved(generation=rows[0]["generation"], checkpoints=found)

    @override
    async def complete(self, completion: Completion) -> bool:
        scope = completion.scope
        rows = await self._loads.fetch(
            "complete a deferred value",
            "complete",
            completion.token_hash,
            scope.entity_type,
            scope.entity_id,
            scope.message_id,
            completion.kind.value,
            completion.data,
        )
        return bool(rows[0][0])

    @override
    async def completions(self, token_hashes: Sequence[bytes]) -> Mapping[bytes, Completion]:
        if not token_hashes:
            return {}
        rows = await self._loads.fetch("load outcomes", "completions", list(token_hashes))
        return {
            row["token_hash"]: Completion(
                token_hash=row["token_hash"],
                scope=Scope(row["entity_type"], row["entity_id"], row["message_id"]),
                kind=CompletionKind(row["kind"]),
                data=row["data"],
            )
            for row in rows
        }

    @override
    async def remove_orphans(self, older_than: float, limit: int) -> int:
        rows = await self._upkeep.fetch("remove orphaned checkpoints", "remove_orphans", older_than, limit)
        return int(rows[0][0])
