"""`current()`: what a running handler knows about itself, in downstream code too."""

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from actorhub._checkpoints import Deferred, step_codec, without_arguments
from actorhub.client import Client, result_of_call
from actorhub.cluster import SingletonT, as_call, cluster_of_handler, part_of, tell_later
from actorhub.core.address import RunnerAddress, ShardId
from actorhub.core.errors import NotConnected
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import FOREVER, RUNNING, Cell, Message, RunKind, running
from actorhub.engine.runs.checkpoints import Step, check_name
from actorhub.engine.runs.saving import StepRun
from actorhub.engine.runs.services import services
from actorhub.entity import Entity
from actorhub.key_value import KeyValue

if TYPE_CHECKING:
    from asyncpg import Record
    from asyncpg.pool import PoolConnectionProxy

E = TypeVar("E", bound=Entity[Any])
P = ParamSpec("P")
T = TypeVar("T")


class Current:
    """The running handler's view of itself. Get it anew by `current()`; do not keep it beyond the run."""

    __slots__ = ("_cell", "_message")

    def __init__(self, message: Message, cell: Cell) -> None:
        self._message = message
        self._cell = cell

    @property
    def entity_type(self) -> str:
        """Name of the entity's type."""
        return self._message.spec.entity_type

    @property
    def entity_id(self) -> str:
        """The entity's id."""
        return self._message.entity_id

    @property
    def shard_id(self) -> ShardId:
        """The shard that the entity is in."""
        return self._cell.shard.id

    @property
    def runner(self) -> RunnerAddress:
        """The runner that this runs on."""
        runner = cluster_of_handler().runner
        assert runner is not None
        return runner

    @property
    def incarnation(self) -> str:
        """The random id of that runner's start."""
        return self.runner.incarnation

    @property
    def epoch(self) -> int:
        """The shard's epoch when this run started: the fencing token for systems outside."""
        return self._message.epoch

    @property
    def is_leader(self) -> bool:
        """Whether this runner still owns the shard, as far as it can prove."""
        return self._cell.can_commit

    @property
    def message_id(self) -> int:
        """The message's id; 0 for a volatile ask, which nobody can refer to later."""
        return self._message.message_id

    @property
    def key(self) -> str | None:
        """The durable message's idempotency key, if its sender gave one."""
        message = _origin(self._message)
        return message.key if isinstance(message, DurableMessage) else None

    @property
    def attempt(self) -> int:
        """The number of this run of a durable message, from 1; a volatile one is run once.

        A step that is stored, and a wait or sleep that ends, begin the count anew: from then on this run is the first.
        """
        message = _origin(self._message)
        return message.attempts if isinstance(message, DurableMessage) else 1

    @property
    def deadline(self) -> datetime | None:
        """When the caller stops waiting; `None` if it never does."""
        deadline = self._message.deadline
        if deadline == FOREVER:
            return None
        clock = part_of(cluster_of_handler()).node.clock
        return datetime.fromtimestamp(clock.time() + deadline - clock.monotonic(), UTC)

    @property
    def headers(self) -> Mapping[str, str]:
        """What the caller sent along."""
        return self._message.headers or {}

    @property
    def trace(self) -> str | None:
        """The caller's trace context, as its W3C `traceparent` header says; `None` if it sent none."""
        return self.headers.get("traceparent")

    @property
    def chain(self) -> tuple[str, ...]:
        """`type/id` of the entities that wait for this call, outermost first."""
        return self._message.chain

    @property
    def kv(self) -> KeyValue[Any]:
        """The cluster's key-value store, as `cluster.kv`. It is written at once, also if this run fails afterwards."""
        return cluster_of_handler().kv

    def client(self, entity: type[E]) -> Client[E]:
        """Return a typed client, as `cluster.client` does; its calls inherit this run's deadline and chain."""
        return cluster_of_handler().client(entity)

    def singleton(self, singleton: type[SingletonT]) -> SingletonT:
        """Return a typed proxy of a singleton, as `cluster.singleton` does."""
        return cluster_of_handler().singleton(singleton)

    async def tell(
        self,
        call: Awaitable[Any],
        *,
        deliver_at: datetime | None = None,
        delay: timedelta | None = None,
        key: str | None = None,
    ) -> int:
        """Send a call when this run commits, and not at all if the handler raises; return its message id now.

        In a step it is sent with the step's result. In the `run` of a singleton, outside of steps, it is sent at once.
        A tell of a durable handler is stored by the same commit. Arguments are those of `cluster.tell`; a key that was
        used before with another payload makes the run fail: a durable message's dead letter names `DuplicateKey`.

        Raises:
            RuntimeError: the run is over, for example in a task that outlives its handler.
        """
        if self._message.phase != RUNNING:
            as_call(call).close()
            raise RuntimeError(f"{self._message.what}: its run is over, so nothing can be sent with its commit")
        if self._message.run_kind is RunKind.MAIN_LOOP:
            return await cluster_of_handler().tell(call, deliver_at=deliver_at, delay=delay, key=key)
        outbox = self._message.outbox
        if outbox is None:
            outbox = self._message.outbox = []
        return tell_later(cluster_of_handler(), call, outbox, deliver_at=deliver_at, delay=delay, key=key)

    @asynccontextmanager
    async def transaction(self) -> "AsyncGenerator[PoolConnectionProxy[Record], None]":
        """Give the handler's own SQL a connection, in the transaction that this run commits with.

        What is written through it is committed together with state, reply and tells, or not at all. A block that raises
        undoes what was done in it. Several blocks of one run share the transaction; it holds its row locks until the
        run ends, and the server ends one that is idle for 15 seconds.

        Raises:
            RuntimeError: the handler is readonly, a stream, or its run is over.
            ConfigurationError: the store is no Postgres.
            PersistenceError: the database cannot be reached, or has no connection free.
        """
        transaction = await services.get().saving.transaction_of(self._message)
        async with transaction.block():
            yield cast("PoolConnectionProxy[Record]", transaction.connection)

    @overload
    async def step(self, name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    async def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return what `function` returned when it was first called under this name in this run, calling it if need be.

        The result is stored before this returns, fenced, and found again by a later run of the same durable message,
        or of the same singleton's `run` until its next `save()`. A function whose runner dies before its result is
        stored is called again. What it tells, and what it writes by `current().transaction()`, is committed together
        with its result: that happens once.

        Args:
            name: Unique in the run; a durable handler's until it ends, a singleton's `run` until its next `save()`.
            function: Plain or async. Its result comes back as the type that its annotation says, the first time, too.
                Without an annotation it may consist of lists, dicts and plain values.
            args: For the function.
            kwargs: For the function.

        Raises:
            RuntimeError: the run is neither a durable handler's nor a singleton's `run`, is over, or has a step of this
                name under way, or too many.
            TypeError: the result would come back as another type, or the annotation cannot be stored.
            MalformedMessage: the result, or the stored one, does not fit the annotation.
            MessageTooLarge: the result is larger than a message may be.
            PersistenceError: the result could not be stored: ownership was lost, or the store failed.
        """
        inner = without_arguments(function)
        codec = result_of_call(inner) or step_codec(inner)
        call = functools.partial(function, *args, **kwargs)
        return await services.get().checkpoints.run_step(self._message, self._cell, Step(check_name(name), call, codec))

    @overload
    def deferred(self, name: str, type: type[T]) -> Deferred[T]: ...

    @overload
    def deferred(self, name: str, type: Any) -> Deferred[Any]: ...

    def deferred(self, name: str, type: Any) -> Deferred[Any]:  # noqa: A002 - what it is called everywhere
        """Return a value that somebody else will provide, by its `token`; `await deferred.wait()` returns it.

        Args:
            name: Unique in the run, as for `step`.
            type: Of the value; it is validated. What is no class, such as `int | None`, is fine, but type checkers
                see the value as `Any` then.

        Raises:
            RuntimeError: the run is neither a durable handler's nor a singleton's `run`.
        """
        return Deferred(self._message, self._cell, check_name(name), type)

    async def sleep(self, duration: timedelta, *, name: str | None = None) -> None:
        """Return after `duration`, counted from the first run that came here, by the database's clock.

        A restart or a hand-over meanwhile neither shortens nor prolongs it. The sleep of a durable handler keeps its
        entity's turn: for a long time, tell the entity something with `delay=`.

        Args:
            duration: How long.
            name: Unique in the run; default: its number among the sleeps of the run.

        Raises:
            RuntimeError: the run is neither a durable handler's nor a singleton's `run`.
        """
        await services.get().waits.sleep(self._message, self._cell, duration.total_seconds(), name)

    def keep_alive(self, enabled: bool = True) -> None:
        """Keep this activation in memory when idle, until called with `False`; a move to another runner ends it."""
        self._cell.kept = enabled


stand_in: ContextVar[Current | None] = ContextVar("actorhub_stand_in", default=None)
"""What `current()` returns where no cluster runs a handler: set by `actorhub.testing.unhosted`."""


def current() -> Current:
    """Return the context of the handler that runs here.

    Raises:
        NotConnected: no handler runs here.
    """
    message = running.get()
    if message is None or message.cell is None:
        if (here := stand_in.get()) is not None:
            return here
        raise NotConnected("current() works inside handlers only")
    return Current(message, message.cell)


def _origin(message: Message) -> Message:
    """Return the run that a step belongs to; other runs are their own."""
    return message.parent if isinstance(message, StepRun) else message
