"""Every error that users see: one tree, attributes not only text.

`possibly_executed` is the promise that matters: where it is `False`, no handler ran, and repeating the call is safe.
"""

import dataclasses
import inspect
from datetime import timedelta
from typing import Any, Final, Literal, dataclass_transform


class ActorhubError(Exception):
    """Root of everything that actorhub raises on purpose."""

    possibly_executed: bool = False
    """`False`: no handler ran. `True`: the outcome is unknown, or a handler did run."""
    message: str = ""
    """What happened, in one sentence."""

    def __init__(self, message: str = "", *, possibly_executed: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        if possibly_executed is not None:
            self.possibly_executed = possibly_executed


class ConfigurationError(ActorhubError):
    """A setting, declaration or environment is wrong; seen at start. Never retried."""


class NotConnected(ActorhubError):
    """The hub is not open, or is closed again. Seen by the caller; never retried."""


class ShuttingDown(ActorhubError):
    """This process is leaving and takes no new work. Seen by the caller; another runner may take the call."""


class MailboxFull(ActorhubError):
    """The entity's mailbox is at its capacity; seen by the caller at once. No handler ran.

    Args:
        message: What is full.
        retry_after: How long a caller had better wait before it tries again.
    """

    def __init__(
        self,
        message: str = "mailbox is full",
        *,
        retry_after: timedelta = timedelta(milliseconds=100),
        possibly_executed: bool | None = None,
    ) -> None:
        super().__init__(message, possibly_executed=possibly_executed)
        self.retry_after = retry_after


class RunnerUnavailable(ActorhubError):
    """The runner that owns the entity was lost or cannot be reached.

    Retried automatically only while `possibly_executed` is `False`.
    """


class CallTimeout(ActorhubError):
    """The call's deadline passed. `possibly_executed` says whether a handler may have started."""


class EntityNotAssigned(ActorhubError):
    """No runner owned the entity's shard before the deadline. No handler ran."""


class RunnerNotRegistered(ActorhubError):
    """The named runner is not part of the cluster (any more). No handler ran."""


class PersistenceError(ActorhubError):
    """Postgres refused or failed the commit: fenced owner, lost connection, failed statement.

    `possibly_executed` is `True` where a handler ran; its state change was not committed.
    """


class MalformedMessage(ActorhubError):
    """Arguments, payload or address do not fit the handler's types; the text names the field. No handler ran."""


class UnknownEntityType(ActorhubError):
    """No live runner hosts an entity type of that name. No handler ran."""


class UnknownHandler(ActorhubError):
    """The entity type has no handler of that name. No handler ran."""


class DuplicateKey(ActorhubError):
    """The idempotency key was used before with another payload. No handler ran for this message."""


class AlreadyProcessing(ActorhubError):
    """The message is being processed right now, so it can be neither reset nor cancelled."""

    possibly_executed = True


class MessageCancelled(ActorhubError):
    """The durable message was cancelled, so it has no reply. Seen by who waits for it; never retried."""


class UnknownMessage(ActorhubError):
    """No durable message of that id is stored: it never was, or its retention is over. Seen by who asks for it."""


class DeferredFailed(ActorhubError):
    """Somebody let a deferred value fail, with this text. Seen by the run that waits for it; it may catch it."""

    possibly_executed = True


class MessageTooLarge(ActorhubError):
    """Arguments or result exceed the message limit in bytes. Too large arguments: no handler ran."""


class CallCycle(ActorhubError):
    """A call came back to an entity that waits for it, or the chain got deeper than allowed. No handler ran.

    Args:
        path: `type/id` of every entity on the chain, the repeated one last.
        message: Replaces the text made from `path`.
    """

    def __init__(
        self, path: tuple[str, ...] = (), message: str | None = None, *, possibly_executed: bool | None = None
    ) -> None:
        super().__init__(
            message or f"call cycle: {' -> '.join(path)}: mark the handler @handler(reentrant=True) to allow it",
            possibly_executed=possibly_executed,
        )
        self.path = tuple(path)


class HandlerFailed(ActorhubError):
    """User code raised something that is not an `EntityError`; state is as it was before.

    Args:
        type: Qualified name of the exception's class.
        message: Its text.
        traceback: The formatted traceback on the runner.
    """

    possibly_executed = True

    def __init__(
        self, type: str = "", message: str = "", traceback: str = "", *, possibly_executed: bool | None = None
    ) -> None:
        super().__init__(message, possibly_executed=possibly_executed)
        self.type = type
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.type else self.message


SingletonErrorReason = Literal[
    "state_load_failed", "state_persist_failed", "schema_decode_failed", "heartbeat_failed", "leader_handoff_failed"
]


class SingletonError(ActorhubError):
    """A singleton's state or leadership failed.

    Args:
        reason: Which part failed; `state_load_failed` and `state_persist_failed` are worth retrying.
        message: Details.
    """

    possibly_executed = True

    def __init__(
        self, reason: SingletonErrorReason, message: str = "", *, possibly_executed: bool | None = None
    ) -> None:
        super().__init__(message or reason, possibly_executed=possibly_executed)
        self.reason: SingletonErrorReason = reason

    @property
    def retryable(self) -> bool:
        """Whether trying again may help."""
        return self.reason in ("state_load_failed", "state_persist_failed")


_RESERVED_FIELDS: Final = frozenset(dir(ActorhubError)) - {"message"}


@dataclass_transform(kw_only_default=True)
class EntityError(ActorhubError):
    """Base of typed domain errors: raised in a handler, caught by the caller, fields included.

    Annotate the fields in the subclass and raise it with keywords: `raise OutOfStock(sku="tea", left=0)`.
    It is a reply: the state change of the handler is rolled back, and it is retried only where a durable handler's
    `Retry(on=...)` names it.
    """

    possibly_executed = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in inspect.get_annotations(cls):
            if name in _RESERVED_FIELDS or name.startswith("_"):
                raise TypeError(f"{cls.__name__}.{name}: an EntityError field cannot have that name: choose another")
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)

    def __str__(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in field_names(type(self))) or super().__str__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"


def field_names(cls: type[EntityError]) -> tuple[str, ...]:
    """Return the names of the fields that a domain error class declares, inherited ones first."""
    untyped: Any = cls
    return tuple(field.name for field in dataclasses.fields(untyped)) if dataclasses.is_dataclass(untyped) else ()
