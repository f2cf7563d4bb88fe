"""The checkpoints and completions of a memory store: what a server would keep."""

import heapq
from collections.abc import Callable, Mapping, Sequence

import msgspec

from actorhub.core.clock import Clock
from actorhub.storage.checkpoint_ports import BODY, CheckpointWrite, Completion, Saved, Scope
from actorhub.storage.message_ports import RolledBack


class _Checkpoint(msgspec.Struct, frozen=True):
    data: bytes
    created_at: float


class _Outcome(msgspec.Struct, frozen=True):
    completion: Completion
    created_at: float


class CheckpointTable:
    """Every method is a transaction: it happens in one step of the loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._checkpoints: dict[Scope, dict[str, _Checkpoint]] = {}
        self._outcomes: dict[bytes, _Outcome] = {}
        self._tokens: dict[Scope, list[bytes]] = {}
        """The token hashes of each scope's outcomes."""
        self._generations: dict[Scope, int] = {}

    def load(self, scope: Scope) -> Saved:
        """Return what is stored of a scope."""
        found = self._checkpoints.get(scope, {})
        return Saved(
            generation=self._generations.get(scope, 0), checkpoints={name: row.data for name, row in found.items()}
        )

    def check(self, write: CheckpointWrite) -> None:
        """Do nothing if `write` may be written.

        Raises:
            RolledBack: a step of them is stored already.
        """
        known = self._checkpoints.get(write.scope, {})
        if not write.closes and any(checkpoint.name in known for checkpoint in write.stored):
            raise RolledBack(f"{write.scope}: a step is stored already: {[step.name for step in write.stored]}")

    def write(self, write: CheckpointWrite) -> None:
        """Write a run's checkpoints, which were checked."""
        scope = write.scope
        if write.closes and scope.message_id == BODY:
            self._forget_all(scope)
            self._generations[scope] = self._generations.get(scope, 0) + 1
            return
        if write.closes:
            self._checkpoints.pop(scope, None)
            return
        now = self._clock.time()
        for checkpoint in write.stored:
            self._checkpoints.setdefault(scope, {})[checkpoint.name] = _Checkpoint(checkpoint.data, now)

    def forget_body(self, scope: Scope) -> None:
        """Forget a singleton's run altogether."""
        self._forget_all(scope)
        self._generations.pop(scope, None)

    def complete(self, completion: Completion) -> bool:
        """Store an outcome unless there is one; return whether it is this one's."""
        row = self._outcomes.get(completion.token_hash)
        if row is None:
            self._outcomes[completion.token_hash] = _Outcome(completion, self._clock.time())
            self._tokens.setdefault(completion.scope, []).append(completion.token_hash)
            return True
        stored = row.completion
        return (stored.kind, stored.data) == (completion.kind, completion.data)

    def completions(self, token_hashes: Sequence[bytes]) -> Mapping[bytes, Completion]:
        """Return the outcomes of those that have one."""
        return {wanted: self._outcomes[wanted].completion for wanted in token_hashes if wanted in self._outcomes}

    def remove_orphans(self, older_than: float, limit: int, is_kept: Callable[[int], bool]) -> int:
        """Forget at most `limit` checkpoints and completions of messages that `is_kept` does not know."""
        before = self._clock.time() - older_than

        def is_orphan(scope: Scope, created_at: float) -> bool:
            return scope.message_id != BODY and created_at < before and not is_kept(scope.message_id)

        checkpoints = [
            (row.created_at, scope, name)
            for scope, rows in self._checkpoints.items()
            for name, row in rows.items()
            if is_orphan(scope, row.created_at)
        ]
        for _, scope, name in (gone := heapq.nsmallest(limit, checkpoints, key=lambda row: row[0])):
            del self._checkpoints[scope][name]
        hashes = [
            token_hash for token_hash, row in self._outcomes.items() if is_orphan(row.completion.scope, row.created_at)
        ]
        for token_hash in (late := hashes[: limit - len(gone)]):
            self._tokens[self._outcomes.pop(token_hash).completion.scope].remove(token_hash)
        return len(gone) + len(late)

    def _forget_all(self, scope: Scope) -> None:
        self._checkpoints.pop(scope, None)
        for token_hash in self._tokens.pop(scope, ()):
            del self._outcomes[token_hash]
