"""The durable messages of a memory store: what a server would keep."""

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.errors import DuplicateKey
from actorhub.core.idempotency import scope_of_key
from actorhub.storage.checkpoint_ports import BODY, Scope
from actorhub.storage.memory.checkpoint_table import CheckpointTable
from actorhub.storage.memory.message_queues import MessageQueues
from actorhub.storage.memory.message_rows import CommitMark, KeyName, Row, as_pending, as_row, key_name, matches
from actorhub.storage.memory.state_table import EntityKey, StateRow, StateTable
from actorhub.storage.message_ports import (
    CancelResult,
    FailedRun,
    KeyUse,
    MessageFilter,
    MessageKey,
    MessageRow,
    NewMessage,
    NotPending,
    Outcome,
    PendingMessage,
    Readiness,
    RunCommit,
    RunFailure,
    RunStart,
    Stored,
    StoredReply,
    Verdict,
)
from actorhub.storage.ports import Fenced

KEPT_FAILURES: Final = 20
"""The last failed runs that a message's history keeps."""

KEPT_LONGER: Final = 3600.0
"""Seconds that a message is kept longer at a time, as long as a run that sent it may be repeated."""

Owns = Callable[[str, ShardId, int], bool]
"""Whether an incarnation owns a shard at an epoch."""


class MessageTable:
    """Every method is a transaction: it happens in one step of the loop, and checks everything before it writes."""

    def __init__(self, clock: Clock, states: StateTable, checkpoints: CheckpointTable, owns: Owns) -> None:
        self._clock = clock
        self._states = states
        self._checkpoints = checkpoints
        self._owns = owns
        self._rows: dict[int, Row] = {}
        self._keys: dict[KeyName, Row] = {}
        self._cancelled: dict[KeyName, Row] = {}
        """The latest cancelled message that had the key, while it is kept."""
        self._queues = MessageQueues()
        self._expiries: list[tuple[float, int]] = []
        """A heap; entries whose row is gone or expires at another time mean nothing."""

    def store(self, message: NewMessage, incarnation: str | None) -> Stored:
        """Store a message for its owner, or with `None` for whoever owns its shard."""
        if incarnation is not None and not self._owns(incarnation, message.shard, message.epoch):
            return Stored(verdict=Verdict.FENCED, message_id=message.message_id)
        known = self._known(message)
        if known is not None:
            return self._as_known(message, known)
        return self._stored(Verdict.NEW, self._insert(message))

    def start_run(self, start: RunStart, incarnation: str) -> Readiness:
        """Count a run, if the message is pending and due."""
        if not self._owns(incarnation, start.shard, start.epoch):
            return Readiness.FENCED
        row = self._rows.get(start.message_id)
        if row is None or row.reply is not None:
            return Readiness.GONE
        if row.due > self._clock.time():
            return Readiness.EARLY
        row.attempts = start.attempts
        return Readiness.RUN

    def uncount_runs(self, starts: Sequence[RunStart], incarnation: str) -> None:
        """Take back the counts of runs that were cut short, where they are the last ones."""
        for start in starts:
            row = self._rows.get(start.message_id)
            is_owned = self._owns(incarnation, start.shard, start.epoch)
            if is_owned and row is not None and row.reply is None and row.attempts == start.attempts:
                row.attempts -= 1

    def commit_run(self, run: RunCommit, incarnation: str) -> bool:
        """Write what a run leaves behind, or see that this very run was written before.

        Returns whether the next run was counted along with it.

        Raises:
            Fenced: `incarnation` does not own the shard at that epoch.
            NotPending: something else settled the message.
            VersionConflict: another state version is stored.
            DuplicateKey: a key of the outbox was used with another payload.
        """
        if self._was_committed(run):
            return False
        self._check_owner(incarnation, run.shard, run.epoch)
        row = self._pending(run.message_id) if run.message_id else None
        entity, state = _state_of(run)
        if run.version:
            self._states.check(entity, state)
        told = self._unknown(run.outbox)
        if run.version:
            self._states.write(entity, state)
        for message in told:
            self._insert(message)
        if row is not None:
            reply = run.reply or StoredReply(Outcome.VALUE, b"")
            self._settle(row, reply, run.retention)
            row.settled_by = CommitMark.of(run)
        return run.next_start is not None and self.start_run(run.next_start, incarnation) is Readiness.RUN

    def commit_with_checkpoints(self, run: RunCommit, incarnation: str) -> bool:
        """Write what a run leaves behind and its checkpoints, or see that this very run was written before.

        Returns whether the next run was counted along with it.

        Raises:
            Fenced, NotPending, VersionConflict, DuplicateKey: as for `commit_run`.
            RolledBack: one of the checkpoints is stored already.
        """
        if self._was_committed(run):
            return False
        if run.checkpoints is not None:
            self._check_owner(incarnation, run.shard, run.epoch)
            self._checkpoints.check(run.checkpoints)
        counted = self.commit_run(run, incarnation)
        if run.checkpoints is not None:
            self._checkpoints.write(run.checkpoints)
            row = self._rows.get(run.checkpoints.scope.message_id)
            if row is not None and row.reply is None:
                self._make_due(row)
                row.attempts = 0
                row.failure = None
        return counted

    def is_kept(self, message_id: int) -> bool:
        """Whether a message is pending or a dead letter."""
        row = self._rows.get(message_id)
        return row is not None and (row.reply is None or row.is_dead)

    def fail_run(self, failure: RunFailure, incarnation: str) -> float:
        """Record a failed run; return when the next one is due, 0 for a dead letter.

        Raises:
            Fenced: `incarnation` does not own the shard at that epoch.
            NotPending: the message was settled before.
        """
        known = self._rows.get(failure.message_id)
        if known is not None and known.failure == failure:
            return known.due
        self._check_owner(incarnation, failure.shard, failure.epoch)
        row = self._pending(failure.message_id)
        now = self._clock.time()
        self._queues.discard(row)
        row.failure = failure
        row.attempts = failure.attempts
        row.history = (*row.history, _failed_run(failure, now))[-KEPT_FAILURES:]
        if failure.pause is None:
            row.due = 0.0
            row.reply = StoredReply(Outcome.DEAD, failure.error)
            row.finished_at = now
            if failure.frees_key:
                self._free_key(row)
        else:
            row.due = now + failure.pause
            self._queues.add(row)
        return row.due

    def load_backlog(
        self, places: Mapping[ShardId, EntityKey], entities: int, per_entity: int
    ) -> tuple[Sequence[PendingMessage], frozenset[ShardId]]:
        """Return messages due at once of the next `entities` entities of each shard, and the shards with no others."""
        found: list[PendingMessage] = []
        done: set[ShardId] = set()
        for shard, after in places.items():
            following = self._queues.next_entities(shard, after, entities + 1)
            if len(following) <= entities:
                done.add(shard)
            found += self.load_entities([(shard, *entity) for entity in following[:entities]], per_entity)
        return found, frozenset(done)

    def load_entities(self, entities: Sequence[tuple[ShardId, str, str]], per_entity: int) -> list[PendingMessage]:
        """Return the first `per_entity` messages due at once of each entity."""
        return [
            as_pending(row)
            for shard, entity_type, entity_id in dict.fromkeys(entities)
            for row in self._queues.line(shard, (entity_type, entity_id), per_entity)
        ]

    def strays(
        self, types: Collection[str], groups: Collection[str], after: tuple[ShardId, str, str] | None, limit: int
    ) -> list[tuple[ShardId, str, str]]:
        """Return the next entities of `types` with pending messages in shards of other groups than `groups`."""
        found = self._queues.outside(types, groups)
        return heapq.nsmallest(limit, (stray for stray in found if after is None or stray > after))

    def move(self, entity: EntityKey, source: ShardId, target: ShardId) -> int:
        """Move an entity's pending messages to another shard; return how many those were."""
        rows = self._queues.of_entity(source, entity)
        for row in rows:
            self._queues.discard(row)
            row.message = msgspec.structs.replace(row.message, shard=target)
            self._queues.add(row)
        return len(rows)

    def load_scheduled(
        self, shards: Sequence[ShardId], until: float, limit: int
    ) -> tuple[Sequence[PendingMessage], float]:
        """Return the first `limit` messages by due time, due before `until`, and the clock."""
        found = self._queues.scheduled(set(shards), until, limit)
        return [as_pending(row) for row in found], self._clock.time()

    def promote_due(self, message_ids: Sequence[int]) -> None:
        """Move due messages to those that are due at once."""
        now = self._clock.time()
        for message_id in message_ids:
            row = self._rows.get(message_id)
            if row is not None and row.reply is None and row.due <= now:
                self._make_due(row)

    def find(self, message_id: int) -> MessageRow | None:
        """Return all that is known of a message."""
        row = self._rows.get(message_id)
        return None if row is None else as_row(row, self._clock.time())

    def find_key(self, key: MessageKey) -> KeyUse | None:
        """Return the message that has `key`; `None` if the key is free."""
        row = self._keys.get((key.entity_type, key.entity_id, key.handler, key.key))
        if row is None:
            return None
        body = row.message.body if row.reply is None or row.is_dead else None
        return KeyUse(message_id=row.id, payload_hash=row.message.payload_hash, body=body)

    def cancelled_since(self, key: MessageKey, since: float) -> int:
        """Return the latest message with the key that was cancelled after that time; 0 if none was."""
        row = self._cancelled.get((key.entity_type, key.entity_id, key.handler, key.key))
        return 0 if row is None or row.finished_at is None or row.finished_at <= since else row.id

    def cancel(
        self, message_id: int, shard: ShardId, epoch: int, *, incarnation: str | None, retention: float
    ) -> CancelResult:
        """Settle a pending message or a dead letter as cancelled."""
        if incarnation is not None and not self._owns(incarnation, shard, epoch):
            return CancelResult.FENCED
        row = self._rows.get(message_id)
        if row is None:
            return CancelResult.UNKNOWN
        if row.reply is not None and not row.is_dead:
            if row.reply.outcome is Outcome.CANCELLED:
                self._free_users_key(row)
            return CancelResult.SETTLED
        self._settle(row, StoredReply(Outcome.CANCELLED, b""), retention)
        self._free_users_key(row)
        if (name := key_name(row.message)) is not None:
            self._cancelled[name] = row
        return CancelResult.CANCELLED

    def retry(self, message_ids: Sequence[int]) -> Sequence[PendingMessage]:
        """Make dead letters and pending messages due at once with no attempts counted; return those found, by id."""
        found = [row for message_id in sorted(set(message_ids)) if (row := self._rows.get(message_id)) is not None]
        retried = [row for row in found if row.reply is None or (row.is_dead and self._take_key(row))]
        for row in retried:
            self._make_due(row)
            row.attempts = 0
            row.reply = row.finished_at = row.failure = None
        return [as_pending(row) for row in retried]

    def messages(self, wanted: MessageFilter) -> Sequence[MessageRow]:
        """Return messages of every state, without bodies and histories, by id."""
        now = self._clock.time()
        return [as_row(row, now, is_listed=True) for row in self._matching(self._rows.values(), wanted, now)]

    def purge(self, wanted: MessageFilter) -> int:
        """Delete dead letters; return how many."""
        dead = (row for row in self._rows.values() if row.is_dead)
        purged = self._matching(dead, wanted, self._clock.time())
        for row in purged:
            self._forget(row)
        return len(purged)

    def remove_expired(self, limit: int) -> int:
        """Forget the first `limit` settled messages whose retention is over, or keep them longer; return how many."""
        now = self._clock.time()
        expired = 0
        while expired < limit and self._expiries and self._expiries[0][0] <= now:
            expires_at, message_id = heapq.heappop(self._expiries)
            row = self._rows.get(message_id)
            if row is None or row.expires_at != expires_at:
                continue
            expired += 1
            if self._may_be_sent_again(row.message):
                row.expires_at = now + KEPT_LONGER
                heapq.heappush(self._expiries, (row.expires_at, message_id))
            else:
                self._forget(row)
        return expired

    def free_keys(self, keys: Sequence[MessageKey]) -> None:
        """Let the keys of messages that ended with an error, or cancelled, be used again."""
        for key in keys:
            name = (key.entity_type, key.entity_id, key.handler, key.key)
            row = self._keys.get(name)
            if row is not None and row.reply is not None and row.reply.outcome is not Outcome.VALUE:
                self._free_key(row)

    def _may_be_sent_again(self, message: NewMessage) -> bool:
        """Whether a run sent it that may be repeated."""
        match scope_of_key(message.key):
            case [message_id]:
                return self.is_kept(int(message_id))
            case [entity_type, entity_id, generation]:
                saved = self._checkpoints.load(Scope(entity_type, entity_id, BODY))
                return bool(saved.checkpoints) and saved.generation == int(generation)
            case _:
                return False

    def _known(self, message: NewMessage) -> Row | None:
        row = self._rows.get(message.message_id)
        if row is not None and (row.reply is None or message.repeated):
            return row
        name = key_name(message)
        return None if name is None else self._keys.get(name)

    def _as_known(self, message: NewMessage, known: Row) -> Stored:
        if _is_other_payload(message, known.message):
            return Stored(verdict=Verdict.DUPLICATE_KEY, message_id=known.id)
        if known.reply is not None:
            return Stored(verdict=Verdict.SETTLED, message_id=known.id, reply=known.reply)
        return self._stored(Verdict.PENDING, known)

    def _stored(self, verdict: Verdict, row: Row) -> Stored:
        now = self._clock.time() if row.due else 0.0
        return Stored(verdict=verdict, message_id=row.id, deliver_at=row.due, now=now)

    def _unknown(self, outbox: Sequence[NewMessage]) -> list[NewMessage]:
        told: dict[int, NewMessage] = {}
        named: dict[KeyName, NewMessage] = {}
        for message in outbox:
            name = key_name(message)
            known = self._known(message)
            earlier = known.message if known is not None else told.get(message.message_id)
            if earlier is None and name is not None:
                earlier = named.get(name)
            if earlier is None:
                told[message.message_id] = message
                if name is not None:
                    named[name] = message
            elif _is_other_payload(message, earlier):
                raise DuplicateKey(f"the key {message.key!r} was used before with another payload")
        return list(told.values())

    def _insert(self, message: NewMessage) -> Row:
        now = self._clock.time()
        at = message.deliver_at if message.delay is None else now + message.delay
        row = Row(message, created_at=now, due=at if at is not None and at > now else 0.0, attempts=message.attempts)
        self._rows[message.message_id] = row
        name = key_name(message)
        if name is not None:
            self._keys[name] = row
        self._queues.add(row)
        return row

    def _pending(self, message_id: int) -> Row:
        row = self._rows.get(message_id)
        if row is None or row.reply is not None:
            raise NotPending(f"message {message_id} is no longer pending")
        return row

    def _check_owner(self, incarnation: str, shard: ShardId, epoch: int) -> None:
        if not self._owns(incarnation, shard, epoch):
            raise Fenced(f"{shard} no longer belongs to {incarnation} at epoch {epoch}")

    def _was_committed(self, run: RunCommit) -> bool:
        if run.message_id:
            row = self._rows.get(run.message_id)
            return row is not None and row.settled_by == CommitMark.of(run)
        return run.version > 0 and self._states.holds(*_state_of(run))

    def _settle(self, row: Row, reply: StoredReply, retention: float) -> None:
        self._queues.discard(row)
        now = self._clock.time()
        row.message = msgspec.structs.replace(row.message, body=b"", headers=None)
        row.history = ()
        row.due = 0.0
        row.reply = reply
        row.failure = None
        row.finished_at = now
        row.expires_at = now + retention
        heapq.heappush(self._expiries, (row.expires_at, row.id))

    def _make_due(self, row: Row) -> None:
        self._queues.discard(row)
        row.due = 0.0
        self._queues.add(row)

    def _forget(self, row: Row) -> None:
        del self._rows[row.id]
        self._free_key(row)
        if (name := key_name(row.message)) is not None and self._cancelled.get(name) is row:
            del self._cancelled[name]

    def _free_key(self, row: Row) -> None:
        name = key_name(row.message)
        if name is not None and self._keys.get(name) is row:
            del self._keys[name]

    def _free_users_key(self, row: Row) -> None:
        """Free the key of a cancelled message; a run that gave its key must learn of that whenever it is repeated."""
        if scope_of_key(row.message.key) is None:
            self._free_key(row)

    def _take_key(self, row: Row) -> bool:
        """Have the message's key name it; `False` if it names another one."""
        name = key_name(row.message)
        return name is None or self._keys.setdefault(name, row) is row

    @staticmethod
    def _matching(rows: Iterable[Row], wanted: MessageFilter, now: float) -> list[Row]:
        found = (row for row in rows if matches(row, wanted, now))
        return heapq.nsmallest(wanted.limit, found, key=lambda row: row.id)


def _state_of(run: RunCommit) -> tuple[EntityKey, StateRow]:
    return (run.entity_type, run.entity_id), StateRow(run.version, run.epoch, run.data, run.shard)


def _is_other_payload(message: NewMessage, earlier: NewMessage) -> bool:
    return message.key is not None and message.key == earlier.key and message.payload_hash != earlier.payload_hash


def _failed_run(failure: RunFailure, at: float) -> FailedRun:
    return FailedRun(
        attempt=failure.attempts,
        at=at,
        error_type=failure.error_type,
        error_text=failure.error_text,
        traceback=failure.traceback,
    )
