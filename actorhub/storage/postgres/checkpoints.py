"""Checkpoints and the outcomes of deferred values on Postgres."""

import asyncio
from collections.abc import Mapping, Sequence

from actorhub.storage.checkpoint_ports import Completion, CompletionKind, Saved, Scope
from actorhub.storage.postgres.connection import Database
from actorhub.storage.postgres.control import ControlConnection


class PostgresCheckpoints:
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

    async def load(self, scope: Scope) -> Saved:
        """Return what is stored of a scope."""
        rows = await self._loads.fetch(
            "load checkpoints", "load_checkpoints", scope.entity_type, scope.entity_id, scope.message_id
        )
        found = {row["name"]: row["data"] for row in rows if row["name"] is not None}
        return Saved(generation=rows[0]["generation"], checkpoints=found)

    async def complete(self, completion: Completion) -> bool:
        """Store an outcome unless there is one; return whether it is this one's. Repeating it returns `True` again."""
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

    async def completions(self, token_hashes: Sequence[bytes]) -> Mapping[bytes, Completion]:
        """Return the outcomes of those that have one."""
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

    async def remove_orphans(self, older_than: float, limit: int) -> int:
        """Forget at most `limit` checkpoints and completions of messages that are neither pending nor dead letters.

        Only those made more than `older_than` seconds ago; return how many. Those of a `BODY` are left alone.
        """
        rows = await self._upkeep.fetch("remove orphaned checkpoints", "remove_orphans", older_than, limit)
        return int(rows[0][0])
