"""Declaring entities: subclass `Entity`. Every public async method is a handler."""

import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from datetime import timedelta
from typing import Any, ClassVar, Generic, Never, TypeVar

import msgspec
from typing_extensions import TypeVar as TypeVarWithDefault

from actorhub._declaration import Declaration, declare
from actorhub._options import EntityOptions, HandlerOptions, attach_options, check_keywords
from actorhub.core.retry import Retry
from actorhub.engine.runs.services import save_now

S = TypeVarWithDefault("S", default=None)
HandlerT = TypeVar("HandlerT", bound=Callable[..., Awaitable[Any] | AsyncIterable[Any]])


class Declared(Generic[S]):
    """What entities and singletons have in common: a class that declares them, and a fenced, committed state."""

    state: S
    """The committed state, with changes of the running handler. Available from `on_activate` on, not in `__init__`."""

    __declaration__: ClassVar[Declaration]

    async def on_activate(self) -> None:
        """Called before the first handler. Its changes to `state` are committed. If it raises, it is tried again.

        `current()` works here and in `on_deactivate`, without a deadline and without headers.
        """

    async def on_deactivate(self) -> None:
        """Called before a graceful passivation, for at most 10 s. Its changes to `state` are committed.

        It is not called when the runner dies or loses the shard, so do not rely on it.
        """

    async def save(self, state: S | msgspec.UnsetType = msgspec.UNSET) -> None:
        """Commit the state now, in the middle of a handler. A later error rolls back to this point.

        Args:
            state: The new value of `self.state`. By default `self.state` is committed as it is.

        Raises:
            PersistenceError: The runner lost the shard, or the store failed.
        """
        await save_now(state)


class Entity(Declared[S]):
    """One addressable object of the cluster. All of its public async methods are handlers, and run one at a time.

    An `Entity` keeps its data in memory only. An `Entity[State]` also has a `state`, which is loaded on activation, and
    committed after each handler that changed it. Only the owner of the entity's shard can commit. A handler that raises
    leaves the state as it was.

    A handler can *run* more than once: a durable one after a failure, any other if the caller asks again after an error
    whose outcome is unknown. The state changes of one entity commit in one order.

    Args:
        name: The name to which messages are addressed. By default the class name in snake case.
        shard_group: The group of shards over which the ids are spread. By default `"default"`.
        mailbox_capacity: How many messages of one id can wait. The next one fails with `MailboxFull`. By default 4096.
        concurrency: How many handlers of one id can run interleaved. More than 1 only without state. By default 1.
        max_idle: How long an idle id stays in memory. It leaves after 1 to 1.5 times this long. By default one minute.
        shard_key: A function of the id. Ids with equal keys share a shard. By default `None`: the id itself decides.

    A subclass of an entity class inherits `mailbox_capacity`, `concurrency` and `max_idle`. `name` is its own. Where
    its entities live is not inherited: if the base class has a `shard_group` or `shard_key`, it must say its own.

    Raises:
        TypeError: At class definition, if a keyword or a member of the class is not valid. The text says what to write.
    """

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        shard_group: str | msgspec.UnsetType = msgspec.UNSET,
        mailbox_capacity: int | msgspec.UnsetType = msgspec.UNSET,
        concurrency: int | msgspec.UnsetType = msgspec.UNSET,
        max_idle: timedelta | msgspec.UnsetType = msgspec.UNSET,
        shard_key: Callable[[str], str] | msgspec.UnsetType | None = msgspec.UNSET,
        **unknown: Never,
    ) -> None:
        try:
            super().__init_subclass__(**unknown)
        except TypeError:
            check_keywords(cls, unknown, EntityOptions)
            raise
        given = {
            "name": name,
            "shard_group": shard_group,
            "mailbox_capacity": mailbox_capacity,
            "concurrency": concurrency,
            "max_idle": max_idle,
            "shard_key": shard_key,
        }
        frame = sys._getframe(1)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        cls.__declaration__ = declare(cls, EntityOptions, given, frame)


def handler(
    *_misplaced: Never,
    durable: bool = False,
    retry: Retry | None = None,
    retention: timedelta | None = None,
    cancel_grace: timedelta | None = None,
    readonly: bool = False,
    reentrant: bool = False,
    timeout: timedelta | None = None,
) -> Callable[[HandlerT], HandlerT]:
    """Set the options of a handler. The signature of the method does not change.

    Messages to a durable handler, asks and tells, are stored before they are acknowledged. From then on each message
    ends exactly once: with a value, with an `EntityError`, as a dead letter, or cancelled. That holds whatever happens
    to runners, and after every failure of Postgres that Postgres itself survives. The handler can *run* more than once,
    but it *commits* once: state, durable tells, reply, key, and SQL under `current().transaction()`, all or nothing.
    Other outside effects, such as mails or other databases, can happen again with each run.

    If a run raises an `EntityError`, that is the reply. If it raises anything else, exceeds `timeout`, or loses its
    runner, the message is run again as `retry` says, and then becomes a dead letter, which an operator can inspect and
    retry. Messages with the same key (`key=`, or `primary_key()` of an argument) are one message; see `retention`.

    Args:
        durable: Store each message before it is acknowledged. After a takeover a durable stream continues with the
            first item that the consumer does not have.
        retry: How often a message is run, and the pauses in between. By default `Retry()`. Only with `durable`.
        retention: How long the reply and the key are kept. Until then, a message with the same key gets the same reply,
            or `DuplicateKey` if its arguments differ. By default the cluster's setting. Only with `durable`.
        cancel_grace: How long a run can take to end once its message is cancelled by `cluster.cancel`: to clean up, or
            to undo by calls what it did by calls. After that it is abandoned. By default 10 seconds. Only with
            `durable`.
        readonly: The handler never commits, and can run beside other readonly handlers. Changing `state` in it is an
            error. Not with `durable`.
        reentrant: Calls that come back to the entity, from whom its running handler waits for, run at once, within that
            handler. What they change and tell is part of its commit; if they raise, their own changes are undone. Other
            calls wait in the mailbox. Not with `durable`.
        timeout: How long one run can take; of a stream, how long the generator can take to its next `yield`. After that
            the run is cancelled, and the caller gets `CallTimeout`; a durable message is run again.

    A method that overrides a handler of a base class keeps that one's options, unless it has a `@handler` of its own.

    Raises:
        TypeError: At class definition, if an option is not valid, or options exclude each other. The text names them.
    """
    if _misplaced:
        raise TypeError(
            "@handler takes options by keyword only: write @handler(durable=True), or @handler() without any"
        )
    options = HandlerOptions(
        durable=durable,
        retry=retry,
        retention=retention,
        cancel_grace=cancel_grace,
        readonly=readonly,
        reentrant=reentrant,
        timeout=timeout,
    )

    def mark(function: HandlerT) -> HandlerT:
        attach_options(function, options)
        return function

    return mark
