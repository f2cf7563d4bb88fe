"""What the engine asks of a store for checkpoints: results of steps, and completions of deferred values.

Checkpoints belong to a *scope*: one durable message, or the `run` of a singleton. They are written by the commit of a
run (`RunCommit.checkpoints`), under the same fence, and forgotten by the commit that makes them history.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

BODY: Final = 0
"""The message id of the scope of a singleton's `run`."""


class Scope(msgspec.Struct, frozen=True):
    """Whose checkpoints."""

    entity_type: str
    entity_id: str
    message_id: int
    """The durable message that runs; `BODY` for a singleton's `run`."""


class Checkpoint(msgspec.Struct, frozen=True):
    """The result of a step; one per scope and name, never changed."""

    name: str
    data: bytes


class CheckpointWrite(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's commit writes of checkpoints, besides everything else that it writes.

    Such a commit also sets the count of a durable message's attempts back to 0: the message made progress. A run that
    is known to be written already, by its state, reply or messages, was written with its checkpoints: they are not
    written again.
    """

    scope: Scope
    stored: tuple[Checkpoint, ...] = ()
    """A name that is stored already refuses the whole commit (`RolledBack`), unless that closes the scope."""
    closes: bool = False
    """Forget the scope's checkpoints, `stored` too, and of a `BODY` its completions: they are history.

    Completions of a message are left to `remove_orphans`: whoever completes late is told that another outcome counts.
    The next generation of a `BODY` begins, if anybody ever led its singleton.
    """


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoints of a scope."""

    generation: int = 0
    """How often the scope was closed before; 0 for messages, which are closed once."""
    checkpoints: Mapping[str, bytes] = {}


class CompletionKind(enum.IntEnum):
    """How a deferred value was completed. A storage format: append only."""

    VALUE = 0
    FAILED = 1
    """`data` is an error in the form of `core.codec.encode_error`."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a deferred value."""

    token_hash: bytes
    """16 bytes that name the deferred value."""
    scope: Scope
    kind: CompletionKind
    data: bytes


class CheckpointStore(Protocol):
    """Checkpoints and completions. All methods raise `PersistenceError` when the store fails."""

    async def load(self, scope: Scope) -> Saved:
        """Return what is stored of a scope."""
        ...

    async def complete(self, completion: Completion) -> bool:
        """Store an outcome unless there is one; return whether it is this one's. Repeating it returns `True` again."""
        ...

    async def completions(self, token_hashes: Sequence[bytes]) -> Mapping[bytes, Completion]:
        """Return the outcomes of those that have one."""
        ...

    async def remove_orphans(self, older_than: float, limit: int) -> int:
        """Forget at most `limit` checkpoints and completions of messages that are neither pending nor dead letters.

        Only those made more than `older_than` seconds ago; return how many. Those of a `BODY` are left alone.
        """
        ...
