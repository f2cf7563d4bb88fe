"""What the engine asks of a store for durable messages. Two implementations keep these promises: `memory`, `postgres`.

A durable message is one pending row until it is settled; then it is a reply (kept for its retention) or a dead letter.
Only the owner of its shard runs and settles it, so whatever an owner has in memory is claimed by (incarnation, epoch):
the store holds no claims, and there is nothing to give back when an owner dies.
"""

import enum
from asyncio import Future
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.errors import PersistenceError
from actorhub.storage.checkpoint_ports import CheckpointWrite

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager


SMALLEST_ID: Final = 1 - (1 << 63)
"""Ids of our own are positive. Others may have stored any, and people must be able to see those, too."""


class NotPending(PersistenceError):
    """The message was settled or cancelled before, so this run of it does not count: nothing was written."""

    possibly_executed = True


class RolledBack(PersistenceError):
    """The database refused to commit, for a deferred constraint or a step that is stored already: all is undone."""

    possibly_executed = True


class Outcome(enum.IntEnum):
    """How a message ended. A wire and storage format: append only."""

    VALUE = 0
    ERROR = 1
    """The handler's own `EntityError`."""
    CANCELLED = 2
    DEAD = 3
    """It is a dead letter."""


class StoredReply(msgspec.Struct, frozen=True):
    """How a message ended."""

    outcome: Outcome
    body: bytes
    """The encoded value, else the error in the form of `core.codec.encode_error`; empty for a cancelled one."""


class Verdict(enum.IntEnum):
    """What became of a message that was to be stored. A storage format: append only."""

    NEW = 0
    """It is stored, as a pending message."""
    PENDING = 1
    """It, or another one with its key, was stored before and is not settled."""
    SETTLED = 2
    """It, or another one with its key, was settled before: `reply` says how."""
    DUPLICATE_KEY = 3
    """Its key was used before with another payload. Nothing was stored."""
    FENCED = 4
    """The storing runner does not own the shard at that epoch. Nothing was stored."""


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A durable message as its sender made it."""

    message_id: int
    shard: ShardId
    epoch: int = 0
    """The epoch at which the storing runner owns the shard; ignored in outboxes and deposits."""
    entity_type: str
    entity_id: str
    handler: str
    body: bytes
    headers: Mapping[str, str] | None = None
    key: str | None = None
    """The caller's idempotency key; with entity and handler it names one message."""
    payload_hash: bytes = b""
    """16 bytes; compared where `key` is the same. Empty without a key."""
    deliver_at: float | None = None
    """Seconds since the Unix epoch before which it must not run; `None`: at once."""
    delay: float | None = None
    """Instead of `deliver_at`: seconds after it was stored, by the store's clock."""
    attempts: int = 0
    """Runs that are counted from the beginning: 1 where the first one starts as soon as it is stored."""
    repeated: bool = False
    """It may have been sent before: the settled messages are searched for it too."""


class MessageKey(msgspec.Struct, frozen=True):
    """An idempotency key, with the handler for whose messages it counts."""

    entity_type: str
    entity_id: str
    handler: str
    key: str


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """The message that has a key."""

    message_id: int
    payload_hash: bytes
    """The hash with which it was stored: with the same one, another message with the key counts as the same."""
    body: bytes | None = None
    """Its arguments; `None` once it was settled with a reply, since they are not kept."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The store's answer to a `NewMessage`."""

    verdict: Verdict
    message_id: int
    """Of the message that counts: the earlier one's, where the key was used before."""
    deliver_at: float = 0.0
    """When a stored message is due, in seconds since the Unix epoch by the store's clock; 0: at once, the past too."""
    now: float = 0.0
    """The store's clock at some moment before this answer arrived; 0 where the message is due at once."""
    reply: StoredReply | None = None


class PendingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A stored message that is not settled, as its owner loads it."""

    message_id: int
    shard: ShardId
    entity_type: str
    entity_id: str
    handler: str
    body: bytes
    headers: Mapping[str, str] | None = None
    key: str | None = None
    deliver_at: float = 0.0
    """Seconds since the Unix epoch, by the store's clock; 0: at once."""
    attempts: int = 0
    """Runs that were counted; each was counted before it started."""
    unreadable: str = ""
    """What of the row cannot be read, and is left out here; such a message must not run. Empty: nothing."""


class RunStart(msgspec.Struct, frozen=True):
    """A run of a stored message that is about to start: it is counted first."""

    message_id: int
    shard: ShardId
    epoch: int
    attempts: int
    """The number of this run, from 1: the count that the row must show afterwards."""


class Readiness(enum.IntEnum):
    """Whether a counted run may start. A storage format: append only."""

    RUN = 0
    GONE = 1
    """The message is no longer pending: it was settled or cancelled. Nothing was counted."""
    EARLY = 2
    """It is not due yet, by the store's clock. Nothing was counted."""
    FENCED = 3
    """The runner does not own the shard at that epoch. Nothing was counted."""


class RunCommit(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one handler run leaves behind, written together or not at all (invariant E)."""

    shard: ShardId
    epoch: int
    entity_type: str
    entity_id: str
    version: int = 0
    """The version of the state that this run makes, the committed one plus one; 0: the state stays as it is."""
    data: bytes = b""
    """That state."""
    message_id: int = 0
    """The durable message that this settles; 0: a volatile one ran."""
    reply: StoredReply | None = None
    """How the durable message ended: `VALUE` or `ERROR`."""
    retention: float = 86_400.0
    """Seconds that the reply is kept, and with it the key."""
    outbox: tuple[NewMessage, ...] = ()
    """Durable messages that the handler told."""
    next_start: RunStart | None = None
    """The run that starts as soon as this one is committed, counted along with it; of the same shard and epoch."""
    checkpoints: CheckpointWrite | None = None
    """What it writes of checkpoints; for `commit_with_checkpoints` and transactions only."""


class RunFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A failed run of a durable message: to be tried again after `pause`, or a dead letter."""

    shard: ShardId
    epoch: int
    message_id: int
    pause: float | None
    """Seconds until the next run; `None`: no further run, the message becomes a dead letter."""
    attempts: int
    """The number of this run, from 1."""
    error: bytes
    """In the form of `core.codec.encode_error`: the reply, if this was the last run."""
    error_type: str
    error_text: str
    traceback: str = ""
    frees_key: bool = False
    """For a dead letter: from now on its key names whichever message comes next with it."""


class MessageState(enum.Enum):
    """Where a durable message stands, for people."""

    PENDING = "pending"
    """Due, and not settled."""
    SCHEDULED = "scheduled"
    """Not due yet, or waiting for its next attempt."""
    DONE = "done"
    """Its handler returned a value."""
    FAILED = "failed"
    """Its handler raised an `EntityError`."""
    CANCELLED = "cancelled"
    DEAD = "dead"


class FailedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a message's error history."""

    attempt: int
    at: float
    """Seconds since the Unix epoch."""
    error_type: str
    error_text: str
    traceback: str = ""


class MessageRow(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a durable message."""

    message_id: int
    shard: ShardId
    entity_type: str
    entity_id: str
    handler: str
    state: MessageState
    key: str | None = None
    attempts: int = 0
    created_at: float = 0.0
    """Seconds since the Unix epoch, like the other times."""
    deliver_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    """When a settled message is forgotten."""
    body: bytes | None = None
    """The arguments; `None` once it was settled with a reply, since they are not kept."""
    headers: Mapping[str, str] | None = None
    reply: StoredReply | None = None
    history: Sequence[FailedRun] = ()
    unreadable: str = ""
    """What of the row cannot be read, and is left out here. Empty: nothing."""


class MessageFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which messages to list; what is left out does not restrict."""

    states: frozenset[MessageState] = frozenset()
    """Empty: all states."""
    entity_type: str | None = None
    entity_id: str | None = None
    handler: str | None = None
    shard: ShardId | None = None
    key: str | None = None
    older_than: float | None = None
    """Seconds since it was created."""
    after_id: int = SMALLEST_ID - 1
    """Only larger ids: where the page before ended."""
    limit: int = 1000


class CancelResult(enum.IntEnum):
    """What a cancellation found. A storage format: append only."""

    CANCELLED = 0
    SETTLED = 1
    """It had ended before (cancelled ones included)."""
    UNKNOWN = 2
    """No such message, or it was forgotten."""
    FENCED = 3
    """The runner does not own the shard at that epoch; nothing was done."""


class RunTransaction(Protocol):
    """The transaction of one handler run, in which the user's SQL and the run's own commit are one."""

    @property
    def connection(self) -> object:
        """The driver's connection, for the user's SQL; its search path is the role's own, not the namespace.

        It is useless once the transaction has ended.
        """
        ...

    def block(self) -> "AbstractAsyncContextManager[Any]":
        """Return a savepoint: what is done in it is undone when it raises."""
        ...

    async def commit(self, run: RunCommit, incarnation: str) -> bool:
        """Write `run`, its checkpoints too, in this transaction and commit it, checked like `MessageStore.commit_run`.

        Returns whether `run.next_start` was counted with it.

        Raises:
            Fenced, VersionConflict, NotPending, RolledBack: refused; all was rolled back.
            DuplicateKey: as for `commit_run`. Nothing of `run` was written, and the transaction goes on: it can be
                committed with another outbox, and must be rolled back else.
            PersistenceError: the connection broke during the commit: the outcome is unknown.
        """
        ...

    async def roll_back(self) -> None:
        """Undo everything and let go of the connection; bounded in time, can be called twice, never raises."""
        ...


class MessageStore(Protocol):
    """Durable messages. Methods that return a future share round trips, and a lone request waits for nobody.

    All raise `PersistenceError` (the futures fail with it) when the store fails. Grouped writes whose outcome is
    unknown are repeated until it is known: repeating is harmless. One refused row never fails its neighbours. Nor does
    one that cannot be read: it comes without what is unreadable, and says so.
    """

    def store(self, message: NewMessage, incarnation: str) -> "Future[Stored]":
        """Store a message for its owner `incarnation`, once per id and per key; refused by the fence like a commit."""
        ...

    def deposit(self, message: NewMessage) -> "Future[Stored]":
        """Store a message for whoever owns its shard, now or later.

        Whoever takes the shard after this was acknowledged finds the message; a present owner finds it when it scans
        the store next, unless it is told.
        """
        ...

    def start_run(self, start: RunStart, incarnation: str) -> "Future[Readiness]":
        """Count a run before it starts, if the message is pending and due. Repeating the same start counts once."""
        ...

    async def uncount_runs(self, starts: Sequence[RunStart], incarnation: str) -> None:
        """Take back the counts of runs that a hand-over cut short, so that they cost their messages no attempt.

        One that is not the message's last count, because the message made progress or failed, stays as it is; so does
        that of a shard which the runner no longer owns.
        """
        ...

    def commit_run(self, run: RunCommit, incarnation: str) -> "Future[bool]":
        """Write what a run leaves behind, all or nothing; return whether `next_start` was counted with it.

        The next run is counted under the conditions of `start_run`, and only if this one is written. That it was not
        counted is not a failure; repeating the same commit may leave it uncounted, and returns `False` then.

        Raises (from the future):
            Fenced: ownership was lost. Nothing was written.
            VersionConflict: another state version is stored. Nothing was written.
            NotPending: the message was settled before, by something else than this run. Nothing was written.
            DuplicateKey: a message of the outbox has a key that was used with another payload. Nothing was written.
        """
        ...

    async def commit_with_checkpoints(self, run: RunCommit, incarnation: str) -> bool:
        """Write like `commit_run`, and the run's checkpoints with it, in a transaction of its own.

        The run may leave nothing behind but checkpoints: neither state nor reply nor messages.

        Raises:
            Fenced, VersionConflict, NotPending, DuplicateKey: as for `commit_run`. Nothing was written.
            RolledBack: one of the checkpoints is stored already. Nothing was written.
            PersistenceError: the store failed; where `possibly_executed` is set, the outcome is unknown.
        """
        ...

    def fail_run(self, failure: RunFailure, incarnation: str) -> "Future[float]":
        """Record a failed run; return when the next one is due (seconds since the Unix epoch), 0 for a dead letter.

        Raises (from the future):
            Fenced: ownership was lost. Nothing was written.
            NotPending: the message was settled before. Nothing was written.
        """
        ...

    async def load_backlog(
        self, places: Mapping[ShardId, tuple[str, str]], entities: int, per_entity: int
    ) -> tuple[Sequence[PendingMessage], frozenset[ShardId]]:
        """Return messages that are due at once, of the next `entities` entities of each shard after (type, id).

        Of each entity the first `per_entity`, by id; fewer entities where their messages are large. A shard's rows come
        entity by entity, in the store's own order. Also returns the shards that have no further entity with messages
        after those returned. `("", "")` starts at the first entity.

        The cursor is an entity, never a message id: ids are given before commits, so a smaller one may become visible
        after a larger one.
        """
        ...

    async def load_entities(
        self, entities: Sequence[tuple[ShardId, str, str]], per_entity: int
    ) -> Sequence[PendingMessage]:
        """Return the first `per_entity` messages, by id, that are due at once, of each (shard, type, id)."""
        ...

    async def load_scheduled(
        self, shards: Sequence[ShardId], until: float, limit: int
    ) -> tuple[Sequence[PendingMessage], float]:
        """Return the first `limit` messages by due time, of these shards, due before `until`; and the store's clock.

        Overdue ones included. Messages with a due time are found here only, until `promote_due` moves them.
        """
        ...

    async def strays(
        self, types: Collection[str], groups: Collection[str], after: tuple[ShardId, str, str] | None, limit: int
    ) -> Sequence[tuple[ShardId, str, str]]:
        """Return (shard, type, id) of entities with pending messages in shards of other groups than `groups`.

        Those of `types`: the first `limit` in that order, or those that come next after `after`.
        """
        ...

    async def promote_due(self, message_ids: Sequence[int]) -> None:
        """Make due messages that could not be started wait in line with those that are due at once."""
        ...

    async def find(self, message_id: int) -> MessageRow | None:
        """Return all that is known of a message; `None` if nothing is."""
        ...

    async def find_key(self, key: MessageKey) -> KeyUse | None:
        """Return the message that has `key`, pending or settled; `None` if the key is free."""
        ...

    async def cancelled_since(self, key: MessageKey, since: float) -> int:
        """Return the latest message with a user's `key` that was cancelled after `since` (Unix time); 0: none was."""
        ...

    async def cancel(
        self, message_id: int, shard: ShardId, epoch: int, *, incarnation: str | None, retention: float
    ) -> CancelResult:
        """Settle a pending message or a dead letter as cancelled, for the shard's owner.

        With `incarnation=None` it is done without an owner: whoever takes the shard later does not find the message.
        That it was cancelled is kept for `retention` seconds; its key is free at once, also if it was cancelled before.
        """
        ...

    async def retry(self, message_ids: Sequence[int]) -> Sequence[PendingMessage]:
        """Make dead letters pending again, and pending ones due at once, with no attempts counted; return those found.

        Their error history stays. The owner must be told, or finds them when it scans the store next. A dead letter
        whose key was freed gets it back; one whose key names another message by now is left as it is.
        """
        ...

    async def messages(self, wanted: MessageFilter) -> Sequence[MessageRow]:
        """Return messages of every state by id, without bodies, headers, replies and histories."""
        ...

    async def purge(self, wanted: MessageFilter) -> int:
        """Delete at most `wanted.limit` dead letters; return how many. Their keys are free again."""
        ...

    async def remove_expired(self, limit: int) -> int:
        """Forget the first `limit` settled messages whose retention is over, and their keys; return how many that were.

        A message that a run sent is kept for another hour as long as the run can be repeated (`run_key`): while its
        message is pending or a dead letter; of a singleton's `run`, while there are steps since its last save.
        """
        ...

    async def free_keys(self, keys: Sequence[MessageKey]) -> None:
        """Let the next message with such a key be a new one, if the present one ended with an error, or cancelled.

        One that is pending or has a value keeps its key. A dead letter that is retried takes its key back, and is not
        retried if another message has it by then.
        """
        ...

    async def begin(self) -> RunTransaction:
        """Return a transaction for a handler's own SQL.

        Raises:
            ConfigurationError: this store has no SQL.
            PersistenceError: the server cannot be reached, or all connections for transactions stay busy.
        """
        ...
