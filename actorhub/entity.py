"""Declaring entities: subclass `Entity`; every public async method is a handler."""

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

import msgspec
from typing_extensions import TypeVar as TypeVarWithDefault

from actorhub._declaration import Declaration, EntityOptions, HandlerOptions, attach_options, declare, snake_case
from actorhub.core.retry import Retry
from actorhub.engine.runs.services import save_now

S = TypeVarWithDefault("S", default=None)
P = ParamSpec("P")
R = TypeVar("R")


class Declared(Generic[S]):
    """What entities and singletons share: declared by their class, with a state that is committed and fenced."""

    state: S
    """The committed state plus what the running handler changed; there from `on_activate` on, not in `__init__`."""

    __declaration__: ClassVar[Declaration]

    async def on_activate(self) -> None:
        """Run before the first handler; what it changes in `state` is committed. Retried if it raises.

        `current()` works here and in `on_deactivate`; deadline and headers are empty.
        """

    async def on_deactivate(self) -> None:
        """Run before a graceful passivation, for at most 10 s; what it changes in `state` is committed.

        Not run when the runner dies or loses the shard, so nothing may depend on it.
        """

    async def save(self, state: S | msgspec.UnsetType = msgspec.UNSET) -> None:
        """Commit the state now, in the middle of a handler; a later error rolls back to here.

        Args:
            state: Replaces `self.state` first.

        Raises:
            PersistenceError: ownership was lost, or the store failed.
        """
        await save_now(state)


class Entity(Declared[S]):
    """One addressable object of the cluster: all of its public async methods are handlers, run one at a time.

    `Entity` keeps what it knows in memory only. `Entity[State]` also has `state`, loaded on activation and committed,
    fenced, after each handler that changed it; a handler that raises leaves it as it was.

    A handler may *run* more than once (a durable one after a failure; another one if the caller asks again after a
    failure whose outcome is unknown); its state changes commit in one order per entity.

    Args:
        name: What messages are addressed to; default is the class name in snake case.
        shard_group: Which group of shards its ids are spread over.
        mailbox_capacity: How many messages of one id may wait; one more fails with `MailboxFull`.
        concurrency: How many handlers of one id may run interleaved; more than 1 only without state.
        max_idle: How long an id without work stays in memory (it leaves after 1 to 1.5 times that).
        shard_key: Function of the id; ids with equal keys share a shard.

    Raises:
        TypeError: at class definition, when a public name is anything but an async method or an UPPER_CASE constant.
    """

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        shard_group: str = "default",
        mailbox_capacity: int = 4096,
        concurrency: int = 1,
        max_idle: timedelta = timedelta(minutes=1),
        shard_key: Callable[[str], str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        options = EntityOptions(
            name=snake_case(cls.__name__) if name is None else name,
            shard_group=shard_group,
            mailbox_capacity=mailbox_capacity,
            concurrency=concurrency,
            max_idle=max_idle,
            shard_key=shard_key,
        )
        # Annotations may name what only the scope of the class statement knows.
        scope = sys._getframe(1).f_locals  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        cls.__declaration__ = declare(cls, options, scope)


def handler(
    *,
    durable: bool = False,
    retry: Retry | None = None,
    retention: timedelta | None = None,
    readonly: bool = False,
    reentrant: bool = False,
    timeout: timedelta | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Set options of a handler; its signature stays what it is.

    A durable handler's messages, asked or told, are stored before they are acknowledged. From then on each gets exactly
    one terminal reply, whatever happens to runners, and to Postgres as far as Postgres itself survives it: a value, an
    `EntityError`, a dead letter, or that it was cancelled. The handler may *run* more than once, but it *commits* once:
    state, durable tells, reply, key, and SQL under `current().transaction()`, all or nothing. What else it does outside
    (mails, other databases) may happen again with each run.

    A run that raises an `EntityError` is answered with it. A run that raises anything else, exceeds `timeout`, or loses
    its runner is repeated as `retry` says, and then becomes a dead letter, which a person can inspect and start again.
    Messages with one key (`key=`, or `primary_key()` of an argument) are one message; see `retention`.

    Args:
        durable: Store each message before it is acknowledged. A durable stream goes on after a takeover with the item
            after the last one that was acknowledged.
        retry: How often a message is run, and how long apart; default `Retry()`. Only with `durable`.
        retention: How long the reply is kept, and with it the key: until then another message with that key gets that
            reply, and one with another payload `DuplicateKey`. Default is the cluster's setting. Only with `durable`.
        readonly: Never commits, and may run beside other readonly handlers. Changing `state` in it is an error.
            Not with `durable`.
        reentrant: May start while another handler of the same entity is suspended, so calls may come back to it.
            What it changes in `state` inside another handler's turn becomes part of that handler's commit.
            Not with `durable`.
        timeout: How long one run may take; then it is cancelled. The caller gets `CallTimeout`; a durable message is
            run again.

    Raises:
        TypeError: at class definition, when options exclude each other or a value makes no sense; says which.
    """
    options = HandlerOptions(
        durable=durable, retry=retry, retention=retention, readonly=readonly, reentrant=reentrant, timeout=timeout
    )

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        attach_options(function, options)
        return function

    return mark
