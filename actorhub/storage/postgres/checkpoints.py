"""Checkpoints and the outcomes of deferred values on Postgres."""

import asyncio
from collections.abc import Mapping, Sequence

from typing_extensions import override

from actorhub.storage.checkpoint_ports import CheckpointStore, Completion, CompletionKind, Saved, Scope
from actorhub.storage.postgres.connection import Database
from actorhub.storage.postgres.control import ControlConnection


class PostgresCheckpoints(CheckpointStore):
    """A `CheckpointStore` in the namespace's schema. Its connections are made when they are first needed."""

    def __init__(self, database: Database) -> None:
        # Loading must not queue behind upkeep.
        self._loads = ControlConnection(database, "actorhub checkpoints")
        self._upkeep = ControlConnection(database, "actorhub checkpoint upkeep")

    async def aclose(self) -> None:
        """Let go of every connection. Can be called twice."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._loads.aclose())
            tasks.create_task(self._upkeep.aclose())

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
