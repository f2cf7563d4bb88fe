"""All errors that users see, in one class tree. Besides their text they have attributes that a program can use.

The most important one is `possibly_executed`: if it is `False`, no handler ran, and it is safe to make the call again.
"""

import dataclasses
import inspect
import sys
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, dataclass_transform

from actorhub.core.error_fields import ErrorFields, fields_of
from actorhub.core.texts import encodable, is_read_plainly
from actorhub.core.type_hints import ClassScope


class ActorhubError(Exception):
    """Base class of all errors that actorhub raises on purpose."""

    possibly_executed: bool = False
    """`False`: no handler ran, so it is safe to make the call again. `True`: a handler ran, or may have run.

    The class sets the usual value, and an error object can have another one. Check the object.
    """
    message: str = ""
    """What happened, and where it helps, what to do."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(vars(cls).get("possibly_executed", False), bool):
            raise TypeError(
                f"{cls.__name__}.possibly_executed is set by actorhub: write `possibly_executed = True`, or `= False`, "
                "or leave it out"
            )
        if not is_read_plainly(cls):
            raise TypeError(
                f"{cls.__name__} has a __getattribute__ or __class__ of its own: actorhub reads its errors as Python "
                "does, so leave these out"
            )

    def __init__(self, message: str = "", *, possibly_executed: bool | None = None) -> None:
        message = encodable(str(message))
        super().__init__(message)
        self.message = message
        if possibly_executed is not None:
            self.possibly_executed = possibly_executed

    def __reduce__(self) -> tuple[Any, ...]:
        # As for other objects. Exceptions have themselves rebuilt by a call with `args`, but these take keywords.
        return _new, (type(self),), {**vars(self), "args": self.args}


def _new(cls: type[ActorhubError]) -> ActorhubError:
    return cls.__new__(cls)


class ConfigurationError(ActorhubError):
    """A setting, a declaration or the environment is wrong, so the program does not start.

    Nothing ran. The text says what to change; starting again without the change does not help.
    """


class NotConnected(ActorhubError):
    """There is no connection: the hub's block has ended, or `current()` was used outside a handler or after its run.

    Or the connection is that of another event loop, thread or process. Nothing ran. Call inside the `async with` block
    of `hub.connect()` or `hub.runner()` and in its event loop, or while the handler runs; a thread hands its calls over
    with `asyncio.run_coroutine_threadsafe(call, loop)`.
    """


class ShuttingDown(ActorhubError):
    """The caller's own process is leaving the cluster and starts nothing new.

    No handler ran. Call from another process, or from this program after its restart.
    """


class MailboxFull(ActorhubError):
    """A queue is at its limit, and the call was refused at once. No handler ran. The text names the queue.

    Most often it is the mailbox of one entity. It can also be the number of calls in flight from this process or to one
    runner, or the number of entities in memory while all of them are busy. Wait for `retry_after` and call again, or
    call with `on_full="wait"`, which waits for a mailbox and for a place in memory. If it happens often, spread the
    calls over more ids, or add runners.

    Args:
        message: What is full.
        retry_after: How long to wait before the next try.
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
    """The runner that owns the entity was lost, or no runner can be reached.

    While it is certain that no handler ran, actorhub makes the call again by itself. If `possibly_executed` is `True`,
    the call had left when the runner was lost: the handler may have run, and its changes may be committed. Then call
    again only if a repetition is harmless, or make the handler durable and give the call a key.
    """


class CallTimeout(ActorhubError, TimeoutError):
    """The deadline of the call passed before its reply came. It is a `TimeoutError`, too.

    If `possibly_executed` is `False`, no handler ran. If it is `True`, a handler had started or may have started. A
    durable message stays stored and runs regardless: get its reply later with `cluster.reply`, or by calling again with
    the same key.
    """


class EntityNotAssigned(ActorhubError):
    """No runner owned the entity's shard before the deadline. No handler ran, unless `possibly_executed` is `True`.

    Check that runners are up and that one of them hosts the shard group of the entity type: `actorhub runners`,
    `actorhub shards`.
    """


class RunnerNotRegistered(ActorhubError):
    """The named runner is not a member of the cluster. Reserved for later releases: nothing raises it yet."""


class PersistenceError(ActorhubError):
    """Postgres failed or refused an operation: a lost connection, a failed statement, or a runner that lost the shard.

    If `possibly_executed` is `False`, no handler ran. If it is `True`, a handler ran and its changes were refused; only
    if Postgres stayed unreachable is it unknown whether they were committed. A durable message may be stored, and run.
    Check that Postgres is healthy, and call again, a durable handler with the same key.
    """


class MalformedMessage(ActorhubError):
    """An argument, an entity id, a key or a token is not valid. No handler ran. The text names the field.

    If `possibly_executed` is `True`, a handler ran: its result, its state or one of its steps is not valid, and the run
    was rolled back. Fix the call or the handler. If both look right, caller and runner have different versions.
    """


class UnknownEntityType(ActorhubError):
    """No live runner hosts an entity type of this name. No handler ran.

    Check the name, or start a runner whose hub registers the type.
    """


class UnknownHandler(ActorhubError):
    """The entity type has no handler of this name on the runner that got the call. No handler ran.

    Check the name. During a deploy, update the runners before the callers.
    """


class DuplicateKey(ActorhubError):
    """The idempotency key was used before, with other arguments. No handler ran for this message.

    The first message with the key is unaffected. Give each message its own key.
    """


class MessageCancelled(ActorhubError):
    """The durable message was cancelled, so it does not run, or not again, and there is no reply.

    A run of it may have begun. None of it is committed, except the steps and saves before the cancellation. The key of
    the message is free again: to run it after all, send it once more.
    """

    possibly_executed = True


class UnknownMessage(ActorhubError):
    """No durable message with this id is stored: it never was, or its retention has ended.

    Check the id. If replies are fetched late, raise the `retention` of the handler.
    """


class DeferredFailed(ActorhubError):
    """Somebody failed a deferred value with `cluster.fail`. The run that waits for the value gets this text.

    The run can catch it and continue without the value.
    """

    possibly_executed = True


class MessageTooLarge(ActorhubError):
    """A message is larger than `max_message_bytes`, or a value of the key-value store is larger than 1 MiB.

    If `possibly_executed` is `False`, the arguments are too large, and no handler ran. If it is `True`, the result or
    the state is too large, and the run was rolled back. Send less, or store large data elsewhere.
    """


class CallCycle(ActorhubError):
    """The call came back to an entity that waits for it, or its chain is longer than `max_call_depth`. It did not run.

    Without this error the entities would wait for each other until their deadlines. Use `tell` instead of a call, or
    mark the handler that is called back with `@handler(reentrant=True)`.

    Args:
        path: The `type/id` of each entity on the chain, the repeated one last.
        message: Replaces the text made from `path`.
    """

    def __init__(
        self, path: tuple[str, ...] = (), message: str | None = None, *, possibly_executed: bool | None = None
    ) -> None:
        super().__init__(
            message or f"call cycle: {' -> '.join(path)}: use tell, or mark the handler @handler(reentrant=True)",
            possibly_executed=possibly_executed,
        )
        self.path = tuple(path)


class HandlerFailed(ActorhubError):
    """The handler raised an exception that is not an `EntityError`, or returned a value of the wrong type.

    The handler ran, and its changes were rolled back. A durable message was run as often as its `Retry` allows and is a
    dead letter now. Fix the handler, then run the message again with `cluster.retry` or `actorhub retry`.

    Args:
        type: Qualified name of the exception class.
        message: Text of the exception.
        traceback: Formatted traceback from the runner.
    """

    possibly_executed = True

    def __init__(
        self, type: str = "", message: str = "", traceback: str = "", *, possibly_executed: bool | None = None
    ) -> None:
        super().__init__(message, possibly_executed=possibly_executed)
        self.type = encodable(type)
        self.traceback = encodable(traceback)

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.type else self.message


SingletonErrorReason = Literal[
    "state_load_failed", "state_persist_failed", "schema_decode_failed", "heartbeat_failed", "leader_handoff_failed"
]


class SingletonError(ActorhubError):
    """A singleton could not load or save its state, or could not keep its leadership.

    Its `run` gets this error with the reason `state_persist_failed` if `save()` failed. Its callers get it with the
    reason `state_load_failed` if its state cannot be loaded. Both usually pass when Postgres is healthy again.
    `actorhub singletons` shows the last error of each singleton.

    Args:
        reason: What failed. If it is `state_load_failed` or `state_persist_failed`, trying again can help.
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
        """Whether trying again can help."""
        return self.reason in ("state_load_failed", "state_persist_failed")


_RESERVED_FIELDS: Final = frozenset(dir(ActorhubError)) - {"message"}


@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
class EntityError(ActorhubError):
    """Base class of your own errors: a handler raises one, and the caller catches it with all its fields.

    Annotate the fields in the subclass, and raise it with keywords: `raise OutOfStock(sku="tea", left=0)`.
    An `EntityError` is a reply. The changes of the handler are rolled back, and the handler is not run again, unless it
    is durable and its `Retry(on=...)` names the class.

    Raises:
        TypeError: At class definition, if a field cannot be sent, or the class has an `__init__` of its own.
    """

    possibly_executed = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in inspect.get_annotations(cls):
            if name in _RESERVED_FIELDS or name.startswith("_"):
                raise TypeError(f"{cls.__name__}.{name}: a field of an EntityError cannot have this name: rename it")
        ErrorFields(cls, ClassScope(cls, sys._getframe(1)))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    if TYPE_CHECKING:

        def __init__(self) -> None: ...

    else:

        def __new__(cls, *args, **kwargs):  # noqa: ANN002, ANN003, ANN204, ARG004 - checkers know the dataclass's
            """Check the call: positional arguments would be lost, and types that are not known cannot be decoded."""
            fields = fields_of(cls)
            if fields is None:
                raise TypeError("EntityError is for subclasses: declare `class OutOfStock(EntityError)` and raise that")
            if args:
                raise TypeError(_call_hint(cls.__name__, fields.parameters))
            fields.decoders()
            return super().__new__(cls)

    def __str__(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in field_names(type(self))) or super().__str__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"


def _call_hint(name: str, fields: tuple[str, ...]) -> str:
    if not fields:
        return f"{name} has no fields: raise {name}(), or annotate one, such as `reason: str`, and give it by keyword"
    return f"{name} takes keywords: raise {name}({', '.join(f'{field}=...' for field in fields)})"


def field_names(cls: type[EntityError]) -> tuple[str, ...]:
    """Return the names of the fields of a domain error class, inherited ones first."""
    fields = fields_of(cls)
    return () if fields is None else fields.names


def check_errors(names: Iterable[object]) -> None:
    """Check that the types of the domain errors among some objects are known.

    Raises:
        TypeError: One is not, so that the error could not be sent. The text says which.
    """
    for cls in names:
        if isinstance(cls, type) and issubclass(cls, EntityError) and not getattr(cls, "__parameters__", ()):
            fields = fields_of(cls)
            if fields is not None:
                fields.decoders()
