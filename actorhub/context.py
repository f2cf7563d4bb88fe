"""`current()`: what a running handler knows about itself, also in the code that it calls."""

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from actorhub._checkpoints import Deferred, step_codec, without_arguments
from actorhub.client import Client, result_of_call
from actorhub.cluster import SingletonT, as_call, cluster_of_handler, part_of, tell_later
from actorhub.core.address import RunnerAddress, ShardId
from actorhub.core.arguments import seconds_of
from actorhub.core.errors import NotConnected
from actorhub.core.idempotency import users_key
from actorhub.core.texts import shown
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import FOREVER, LENDS, RunKind
from actorhub.engine.model.run import Run, running
from actorhub.engine.runs.checkpoints import Step, check_name
from actorhub.engine.runs.saving import StepRun
from actorhub.engine.runs.services import services_of
from actorhub.entity import Entity
from actorhub.key_value import KeyValue

if TYPE_CHECKING:
    import asyncio

    from asyncpg import Record
    from asyncpg.pool import PoolConnectionProxy

E = TypeVar("E", bound=Entity[Any])
P = ParamSpec("P")
T = TypeVar("T")


class Current:
    """What the running handler can know and do. Call `current()` again in each run; do not keep it beyond the run.

    A run is one execution of a handler, of a step, of a hook such as `on_activate`, or of a singleton's `run`.
    """

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def entity_type(self) -> str:
        """The name of the entity's type."""
        return self._run.spec.entity_type

    @property
    def entity_id(self) -> str:
        """The entity's id."""
        return self._run.message.entity_id

    @property
    def shard_id(self) -> ShardId:
        """The shard that the entity belongs to."""
        return self._run.cell.shard.id

    @property
    def runner(self) -> RunnerAddress:
        """The runner that this runs on."""
        runner = cluster_of_handler().runner
        assert runner is not None
        return runner

    @property
    def incarnation(self) -> str:
        """The random id that the runner was given when it started."""
        return self.runner.incarnation

    @property
    def epoch(self) -> int:
        """The epoch of the shard when this run started.

        It grows with every change of owner, so it can serve other systems as a fencing token: they can refuse a write
        whose epoch is lower than one that they have seen.
        """
        return self._run.message.epoch

    @property
    def is_leader(self) -> bool:
        """Whether this runner can prove at the moment that it owns the shard. If not, the run cannot commit."""
        return self._run.cell.can_commit

    @property
    def message_id(self) -> int:
        """The id of the message; 0 for an ask of a handler that is not durable."""
        return self._run.message.message_id

    @property
    def key(self) -> str | None:
        """The idempotency key of the durable message; `None` if it has none."""
        message = self._run.message
        return users_key(message.key) if isinstance(message, DurableMessage) else None

    @property
    def attempt(self) -> int:
        """The number of this run of a durable message, counted from 1. Other messages run once.

        Progress resets the count: once a step has been stored, or a wait or sleep has ended, the present run counts as
        the first one.
        """
        message = self._run.message
        return message.attempts if isinstance(message, DurableMessage) else 1

    @property
    def is_cancelled(self) -> bool:
        """Whether this run is being ended because somebody cancelled its message, by `cluster.cancel`.

        A `CancelledError` tells no more than that the run ends. If this is `False`, it ended for another reason, such
        as its timeout or a hand-over, and a durable message may run again: do not undo then what it did for good.
        """
        message = self._run.message
        return isinstance(message, DurableMessage) and message.is_cancelled

    @property
    def deadline(self) -> datetime | None:
        """When the caller stops waiting; `None` if it has no limit. A time by this runner's clock, in UTC."""
        deadline = self._run.message.deadline
        if deadline == FOREVER:
            return None
        clock = part_of(cluster_of_handler()).node.clock
        return datetime.fromtimestamp(clock.time() + deadline - clock.monotonic(), UTC)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the caller sent with the call."""
        return self._run.message.headers or {}

    @property
    def trace(self) -> str | None:
        """The caller's W3C `traceparent` header; `None` if it sent none."""
        return self.headers.get("traceparent")

    @property
    def chain(self) -> tuple[str, ...]:
        """`type/id` of the entities that are waiting for this call, outermost first."""
        return tuple(link for link in self._run.message.chain if not link.startswith(LENDS))

    @property
    def kv(self) -> KeyValue[Any]:
        """The key-value store, as `cluster.kv`. Writes take effect at once, even if this run fails afterwards."""
        return cluster_of_handler().kv

    def client(self, entity: type[E]) -> Client[E]:
        """Return the client of an entity class, as `cluster.client` does.

        Its asks inherit the deadline of this run if that is sooner than their own timeout. A call that would come back
        to an entity that waits for this run fails with `CallCycle`, unless its handler is `reentrant`.
        """
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
        """Send a call when this run commits. If the handler raises, nothing is sent.

        A tell of a durable handler is stored in the commit itself, so it is sent exactly when the state is saved. A
        tell of another handler leaves after the commit, and is lost if the runner dies just then. In a step, a tell is
        sent with the step's result. In a singleton's `run`, outside of steps, it is sent at once, as by `cluster.tell`.

        Args:
            call: As for `cluster.tell`, but not a broadcast.
            deliver_at: As for `cluster.tell`.
            delay: As for `cluster.tell`; counted from the commit.
            key: As for `cluster.tell`. If it was used before with other arguments, the run fails: the dead letter of a
                durable message names `DuplicateKey`.

        Returns:
            The id of the message, which is known before the message is sent.

        Raises:
            RuntimeError: The run is over, for example in a task that outlives its handler.
            TypeError: As for `cluster.tell`, or the call is a broadcast.
            ValueError: As for `cluster.tell`.
        """
        run = _acting(self._run)
        if not run.is_running:
            as_call(call).close()
            raise RuntimeError(f"{run.what}: its run is over, so nothing can be sent with its commit")
        if run.kind is RunKind.MAIN_LOOP:
            return await cluster_of_handler().tell(call, deliver_at=deliver_at, delay=delay, key=key)
        outbox = run.outbox
        if outbox is None:
            outbox = run.outbox = []
        return tell_later(call, outbox, deliver_at=deliver_at, delay=delay, key=key)

    @asynccontextmanager
    async def transaction(self) -> "AsyncGenerator[PoolConnectionProxy[Record], None]":
        """Run SQL of your own in the transaction in which this run commits. An async context manager.

        It gives an asyncpg connection. What is written through it is committed together with the state, the reply and
        the tells of the run, or not at all. If the block raises, what was done in it is undone. Several blocks of a run
        share one transaction. Its row locks are held until the run ends, and the server ends a transaction that is idle
        for 15 seconds.

        Raises:
            RuntimeError: The handler is `readonly` or a stream, or its run is over.
            ConfigurationError: The store is not Postgres, as in a `MemoryCluster`.
            PersistenceError: The database cannot be reached, or no connection is free.
        """
        run = _acting(self._run)
        transaction = await services_of(run).saving.transaction_of(run)
        async with transaction.block():
            yield cast("PoolConnectionProxy[Record]", transaction.connection)

    @overload
    async def step(self, name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    async def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `function` and store its result, or return the result that is stored under this name.

        The result is stored before this returns. A later run of the same durable message finds it, and so does a later
        `run` of the same singleton until its next `save()`. If the runner dies before the result is stored, the
        function is called again. What the function tells, and what it writes through `current().transaction()`, is
        committed together with its result, so that happens once.

        Args:
            name: Unique among the steps of a durable message, or of a singleton's `run` since its last `save()`.
            function: A plain or an async function. Its result always has the type of its annotation, whether it was
                just made or comes from the store. Without an annotation it can consist of lists, dicts and plain
                values.
            args: For the function.
            kwargs: For the function.

        Raises:
            RuntimeError: The run is neither that of a durable handler nor a singleton's `run`; or it is over, has a
                step of this name under way, or has too many steps.
            TypeError: `function` is not callable, the result would come back as another type, or the annotation names a
                type that cannot be stored.
            MalformedMessage: The result, or the stored one, does not fit the annotation.
            MessageTooLarge: The result is larger than a message may be.
            PersistenceError: The result could not be stored, because ownership was lost or the store failed.
        """
        if not callable(function):
            raise TypeError(f"step {shown(name)} takes a function and its arguments, not {shown(function)}")
        inner = without_arguments(function)
        codec = result_of_call(inner) or step_codec(inner)
        call = functools.partial(function, *args, **kwargs)
        return await services_of(self._run).checkpoints.run_step(self._run, Step(check_name(name), call, codec))

    @overload
    def deferred(self, name: str, type: type[T]) -> Deferred[T]: ...

    @overload
    def deferred(self, name: str, type: Any) -> Deferred[Any]: ...

    def deferred(self, name: str, type: Any) -> Deferred[Any]:  # noqa: A002 - what it is called everywhere
        """Return a deferred value, which somebody else will provide.

        Hand out its `token`. Whoever has the token completes the value by `cluster.complete(token, value)`, and
        `await deferred.wait()` returns it.

        Args:
            name: Unique in the run, as for `step`.
            type: The type of the value, which is validated. It does not have to be a class: `int | None` works, but
                type checkers see the value as `Any` then.

        Raises:
            RuntimeError: The run is neither that of a durable handler nor a singleton's `run`.
        """
        return Deferred(self._run, check_name(name), type)

    async def sleep(self, duration: timedelta, *, name: str | None = None) -> None:
        """Sleep for `duration`, counted by the database's clock from the first run that got here.

        A restart or a hand-over in the meantime makes it neither shorter nor longer. A durable handler that sleeps
        keeps its entity's turn; only readonly handlers run meanwhile. To wait for a long time, let it tell the entity
        something with `delay=` instead.

        Args:
            duration: How long.
            name: Unique in the run. By default the number of the sleep within the run.

        Raises:
            RuntimeError: The run is neither that of a durable handler nor a singleton's `run`.
            TypeError: `duration` is not a `timedelta`.
            ValueError: `duration` is longer than a million days.
        """
        await services_of(self._run).waits.sleep(self._run, seconds_of(duration, "duration"), name)

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run `work` in the background, beside the handlers, until it ends or this activation does.

        The task belongs to the activation. It is cancelled before `on_deactivate`, which waits for it for at most a
        second, and when the runner loses the shard. It does not keep the entity in memory; see `keep_alive`. If it
        raises, that is logged and counted. It is not part of this run: `current()` and `save()` do not work in it, and
        its calls have neither this run's deadline nor its chain. It must not change the state: let it call or tell its
        entity.

        Args:
            work: A coroutine, such as `self._refresh()`.

        Raises:
            TypeError: `work` is not a coroutine.
            RuntimeError: The run is over, or the entity is leaving memory.
            MailboxFull: The activation has 1,000 background tasks.
        """
        return services_of(self._run).background.spawn(self._run, work)

    def keep_alive(self, enabled: bool = True) -> None:
        """Keep this activation in memory even if it is idle.

        This lasts until it is called with `False`, or the entity moves to another runner.

        Args:
            enabled: Whether to keep it.
        """
        self._run.cell.kept = enabled


def _acting(run: Run) -> Run:
    """Return the step of `run` in whose function this is called, or `run`: `current()` may have been called before."""
    here = running.get()
    return here if isinstance(here, StepRun) and here.parent is run else run


stand_in: ContextVar[Current | None] = ContextVar("actorhub_stand_in", default=None)
"""What `current()` returns where no cluster runs a handler: set by `actorhub.testing.unhosted`."""


def current() -> Current:
    """Return the context of the handler that is running here.

    It works in the handler itself, and in all code that the handler calls, tasks included.

    Raises:
        NotConnected: No handler is running here.
    """
    run = running.get()
    if run is None:
        if (here := stand_in.get()) is not None:
            return here
        raise NotConnected("current() works only inside a handler")
    return Current(run)
