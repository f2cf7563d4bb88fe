"""A connection to the cluster: clients, tells, durable messages, ids, and where entities live."""

from collections.abc import Awaitable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec

from actorhub._call import Call, CallTarget, ToldCall
from actorhub._declaration import spec_of
from actorhub._stored_messages import StoredMessages
from actorhub._stream_call import StreamCall
from actorhub.client import Client, make_client
from actorhub.core.address import RunnerAddress, ShardId
from actorhub.core.arguments import check_message_id, check_text, due_time, limit_of, seconds_of
from actorhub.core.codec import check_size, decode_answer, encode, encode_passed_error
from actorhub.core.envelope import BROADCAST, Durable
from actorhub.core.errors import (
    ActorhubError,
    ConfigurationError,
    DeferredFailed,
    EntityError,
    NotConnected,
    UnknownEntityType,
)
from actorhub.core.option_types import check_types
from actorhub.core.snowflake import Snowflake
from actorhub.core.texts import is_of, plain, short_name_of, shown
from actorhub.engine.anycast.runner_requests import DeferredOutcome
from actorhub.engine.model.event_loop import check_loop
from actorhub.engine.model.records import AwaitedMessage, Message
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.node import Node
from actorhub.engine.part import Part
from actorhub.engine.routing.peers import Peer
from actorhub.engine.singletons.health import RunnerHealth
from actorhub.entity import Declared, Entity
from actorhub.key_value import KeyValue, untyped
from actorhub.singleton import Singleton
from actorhub.storage.checkpoint_ports import CompletionKind
from actorhub.storage.key_value_ports import KeyValues

E = TypeVar("E", bound=Entity[Any])
D = TypeVar("D", bound=Declared[Any])
SingletonT = TypeVar("SingletonT", bound=Singleton[Any])

cluster_here: ContextVar["Cluster"] = ContextVar("actorhub_cluster")
"""The cluster, as the handlers of this process see it."""


class Cluster:
    """This program's connection to the cluster.

    `hub.connect()` and `hub.runner()` make one, and close it at the end of their block. After that, calls raise
    `NotConnected`. So do calls from another event loop, thread or process than that in which the connection was made.
    A thread hands its calls over: `asyncio.run_coroutine_threadsafe(call, loop)`.
    """

    def __init__(self, part: Part, specs: Mapping[str, EntitySpec]) -> None:
        self._part = part
        self._node: Node = part.node
        self._specs = specs
        self._target = CallTarget(self._node)
        self._clients: dict[type[Declared[Any]], Client[Any]] = {}
        self._stored = StoredMessages(part, specs)
        self._kv = untyped(self._key_values, self._node.clock)
        self._leaving = False

    def client(self, entity: type[E]) -> Client[E]:
        """Return the client of an entity class. Calling the client with an id returns a typed proxy of that entity.

        Nothing is sent, and no entity is created, until a call is awaited. The client can be kept for as long as the
        connection lasts.

        Args:
            entity: A class that is registered with the hub.

        Raises:
            ConfigurationError: The class is not registered with the hub.
            TypeError: It is not an entity class, or a singleton; see `singleton`.
        """
        if spec_of(entity).singleton_id is not None:
            raise TypeError(f"{entity.__name__} is a singleton: use cluster.singleton({entity.__name__})")
        return self._client_of(entity)

    def singleton(
        self,
        singleton: type[SingletonT],
        *,
        timeout: timedelta | msgspec.UnsetType | None = msgspec.UNSET,
        key: str | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> SingletonT:
        """Return a typed proxy of a singleton. Its calls go to the runner that leads the singleton at the time.

        Args:
            singleton: A class that is registered with the hub.
            timeout: How long an ask may take, or `None` for no limit. By default 30 seconds.
            key: The idempotency key of durable calls.

        Raises:
            ConfigurationError: The class is not registered with the hub.
            TypeError: It is not a singleton, see `client`; or `timeout` is not a `timedelta`.
            ValueError: `timeout` is out of range.
            MalformedMessage: The key is not valid.
        """
        singleton_id = spec_of(singleton).singleton_id
        if singleton_id is None:
            raise TypeError(f"{singleton.__name__} is not a singleton: use cluster.client({singleton.__name__})")
        client = self._client_of(singleton)
        if timeout is not msgspec.UNSET or key is not msgspec.UNSET:
            client = client.options(timeout=timeout, key=key)
        return client(singleton_id)

    def _client_of(self, declared: type[D]) -> Client[D]:
        known = self._clients.get(declared)
        if known is not None:
            return known
        spec = spec_of(declared)
        if self._specs.get(spec.name) is not spec:
            name = declared.__name__
            raise ConfigurationError(f"{name} is not registered: call hub.register({name}) first")
        client = self._clients[declared] = make_client(declared, self._target)
        return client

    async def tell(
        self,
        call: Awaitable[Any],
        *,
        deliver_at: datetime | None = None,
        delay: timedelta | None = None,
        key: str | None = None,
    ) -> int:
        """Send a call without waiting for its reply.

        If the handler is durable, the message is stored when this returns. It gets exactly one reply, which `reply`
        waits for, whatever fails in the meantime. With a database this also works while there is no runner. If the
        handler is not durable, the message is in the entity's mailbox when this returns, and is lost if its runner
        dies.

        If this is cancelled, the message may or may not have been accepted.

        Args:
            call: A call that has not been awaited, such as `client("id").method(...)`. A call of `client.active()` is a
                broadcast: it goes to every entity of the type that is in memory.
            deliver_at: When a durable message is to run; must have a time zone. It never runs earlier, by the clock of
                the database. A time in the past means now.
            delay: How long after it is stored a durable message is to run. Excludes `deliver_at`.
            key: Idempotency key of a durable message. Calls of the same handler of the same entity with the same key
                are one message, whether told or asked, for as long as the key is kept. By default the result of
                `primary_key()` of the first argument that has such a method.

        Returns:
            The id of the message; if the key was used before, the id of the earlier message. For a broadcast, the
            number of entities that it was sent to.

        Raises:
            ActorhubError: The message was not accepted. If `possibly_executed` is `False`, no handler ran or will run.
            DuplicateKey: The key was used before with other arguments.
            MalformedMessage: The key, or an argument, is not valid.
            TypeError: `deliver_at`, `delay` or `key` is given for a handler that is not durable, a broadcast is of a
                durable handler, or a value is of another type than it should be.
            ValueError: `deliver_at` has no time zone, `delay` is longer than a million days, or both are given.
        """
        told = as_call(call)
        told.check_loop()
        try:
            delivery = _delivery(deliver_at, delay, key)
            if told.target.broadcast and (told.spec.durable or delivery is not None):
                raise TypeError(
                    f"{told.what} is durable: a broadcast goes to the entities in memory, and is not stored"
                )
        except (TypeError, ValueError):
            told.close()
            raise
        if told.target.broadcast:
            return await self._broadcast(told)
        return await told.tell(delivery)

    async def reply(self, message_id: int, *, timeout: timedelta | None = timedelta(seconds=30)) -> Any:  # noqa: ANN401 - what the handler returned
        """Wait for the reply of a durable message, and return its value.

        The reply can be asked for any number of times, from any process, until its retention is over. Giving up the
        wait does not affect the message.

        Args:
            message_id: The id that `tell` returned.
            timeout: How long to wait, or `None` for no limit.

        Raises:
            EntityError: The handler raised this error.
            HandlerFailed: The message is a dead letter. The error has the type, text and traceback of its last run.
            MessageCancelled: The message was cancelled.
            UnknownMessage: There is no such message, or its retention is over.
            CallTimeout: The message was not settled in time.
            MalformedMessage: `message_id` is not the id of a message.
            TypeError: `timeout` is not a `timedelta`.
            ValueError: `timeout` is not more than zero, or is longer than a million days.
        """
        self._check_loop("reply")
        seconds = limit_of(timeout, "timeout")
        return await self._stored.reply(check_message_id(message_id), seconds)

    async def cancel(self, message_id: int, *, terminate: bool = False) -> bool:
        """Cancel a durable message, whatever its state: it waits, is not due yet, runs, or is a dead letter.

        A message that does not run will not run. The handler of one that runs gets `CancelledError` once, also in a
        wait for a deferred value or a sleep. It has the `cancel_grace` of its `@handler` to clean up, and may await
        other calls and steps for that; what it returns or raises does not count. Either way the message ends as
        cancelled: the state is what it was, nothing that the run told is sent, and whoever waits for its reply gets
        `MessageCancelled`. Its key is free again. If the run is just being committed, its reply counts instead.

        This returns when the end is decided. If its runner is lost before that, the next one is asked. A handler can
        cancel any message, its own too.

        Args:
            message_id: The id that `tell` returned.
            terminate: End a run at once, without a further step of its handler: neither its `except` nor its `finally`
                blocks run. What it holds in memory, such as locks, stays held, and its entity is activated again.

        Returns:
            Whether the message is cancelled, by this call or by another one at the same time: an answer can be lost, so
            several callers may get `True`, and none of them is the only one. If `False`, it had ended before, cancelled
            or with a reply, or ended with its reply meanwhile, or is unknown.

        Raises:
            CallTimeout: It was not decided in time. The message may yet end as cancelled; asking again is harmless.
            MalformedMessage: `message_id` is not the id of a message.
            TypeError: `terminate` is not a `bool`.
            PersistenceError: The store failed. The message may or may not be cancelled.
        """
        self._check_loop("cancel")
        check_types("", {"terminate": bool}, {"terminate": terminate})
        return await self._stored.cancel(check_message_id(message_id), terminate=terminate)

    async def retry(self, message_id: int) -> bool:
        """Run a durable message now, starting again from attempt 1.

        This is for dead letters, and for messages that wait for their next attempt or for their due time. One that is
        running goes on, and its attempts count from this run on. `reset` is an alias of this method.

        Args:
            message_id: The id that `tell` returned.

        Returns:
            Whether there was such a message. A message that has a reply keeps it and does not run.

        Raises:
            MalformedMessage: `message_id` is not the id of a message.
        """
        self._check_loop("retry")
        return await self._stored.retry(check_message_id(message_id))

    reset = retry

    async def poll_storage(self) -> None:
        """Have every runner scan the store for messages now.

        Only needed if something other than actorhub has changed the store. Runners scan it from time to time anyway.
        """
        self._check_loop("poll_storage")
        await self._stored.poll()

    async def complete(self, token: str, value: Any) -> bool:  # noqa: ANN401 - what the run waits for
        """Complete a deferred value that some run waits for, or will wait for.

        The first outcome wins. Repeating the same call is harmless. The value is not checked here against the type that
        the run expects: if it does not fit, the wait of the run fails.

        Args:
            token: The `token` of `current().deferred(...)`.
            value: Anything that msgspec can encode.

        Returns:
            Whether this is the outcome. If not, there was another one before.

        Raises:
            MalformedMessage: The token was not made by this cluster, or the value cannot be encoded.
            MessageTooLarge: The encoded value is larger than a message may be.
            PersistenceError: The store failed. The value may or may not be completed.
        """
        self._check_loop("complete")
        token = check_text(token, "token")
        data = check_size(encode(value, "deferred value"), self._node.limits.max_message_bytes, "deferred value")
        return await self._part.complete(DeferredOutcome(token, CompletionKind.VALUE, data))

    async def fail(self, token: str, error: EntityError | str) -> bool:
        """Complete a deferred value with an error, which the wait for it raises.

        Args:
            token: The `token` of `current().deferred(...)`.
            error: The error to raise, or the text of a `DeferredFailed`.

        Returns:
            Whether this is the outcome. If not, there was another one before.

        Raises:
            MalformedMessage: The token was not made by this cluster, or a field of the error does not fit its type.
            MessageTooLarge: The encoded error is larger than a message may be.
            TypeError: `error` is neither an `EntityError` nor text.
            PersistenceError: The store failed. The value may or may not be completed.
        """
        self._check_loop("fail")
        token = check_text(token, "token")
        data = encode_passed_error(_failure(error), self._node.limits.max_message_bytes, "error of a deferred value")
        return await self._part.complete(DeferredOutcome(token, CompletionKind.FAILED, data))

    async def health(self) -> Sequence[RunnerHealth]:
        """Return the health of this runner; on a client, of each runner that it is linked to and that answers in time.

        A client without links gets an empty sequence.
        """
        self._check_loop("health")
        return await self._part.runner_healths()

    @property
    def kv(self) -> KeyValue[Any]:
        """The key-value store of the cluster, for small values that belong to no entity. Writes take effect at once."""
        return self._kv

    def snowflake(self) -> Snowflake:
        """Return a new id. It is unique in the cluster, and greater than all ids that this process made before.

        Raises:
            PersistenceError: This process has no machine id yet, or could not renew its lease of one.
        """
        self._check_loop("snowflake")
        return self._node.ids.snowflake()

    def shard_of(self, entity: type[Declared[Any]], entity_id: str) -> ShardId:
        """Return the shard that an entity belongs to. The entity does not have to exist.

        Raises:
            MalformedMessage: No entity of the class can have this id.
            TypeError: It is not an entity class.
        """
        spec = spec_of(entity)
        checked = spec.check_id(entity_id, self._node.limits.max_entity_id_bytes)
        return self._node.router.sharding.shard_of(spec, checked)

    def is_local(self, entity: type[Declared[Any]], entity_id: str) -> bool:
        """Return whether this process owns the shard of an entity at the moment. Always `False` on a client.

        Raises:
            MalformedMessage: No entity of the class can have this id, and this process has shards.
            TypeError: It is not an entity class.
        """
        spec_of(entity)
        return self._part.address is not None and self._part.owns(self.shard_of(entity, entity_id))

    @property
    def is_shutting_down(self) -> bool:
        """Whether this process is leaving the cluster."""
        return self._leaving or self._node.closed

    @property
    def runner(self) -> RunnerAddress | None:
        """The address and incarnation of this process if it is a runner; `None` if it is a client."""
        return self._part.address

    def _check_loop(self, operation: str) -> None:
        check_loop(self._node.loop, f"cluster.{operation}")

    def _key_values(self) -> KeyValues:
        self._check_loop("kv")
        return self._part.key_values

    async def _broadcast(self, told: Call) -> int:
        told.kind = BROADCAST
        told.prepare()
        counts = [self._part.broadcast_here(told.spec, told.body)]
        waiting: list[tuple[Peer, _BroadcastRequest]] = []
        for peer in self._node.peers.runners():
            call = _BroadcastRequest(told)
            self._node.deadlines.add(call)
            self._node.router.send_to(call, peer)
            waiting.append((peer, call))
        refusal: ActorhubError | None = None
        for peer, call in waiting:
            try:
                counts.append(decode_answer(await call.future, int))
            except UnknownEntityType:
                counts.append(0)
            except ActorhubError as error:
                # A runner that has left has no entities any longer.
                if peer.link.is_open or not peer.is_leaving:
                    refusal = error
            finally:
                self._node.deadlines.drop(call)
        if refusal is not None:
            # One runner refused it, such as one of another release. Entities of the others have it.
            refusal.possibly_executed |= any(counts)
            raise refusal
        return sum(counts)


async def leave(cluster: Cluster, grace: float) -> None:
    """Leave the cluster, within about `grace` seconds. From now on `cluster.is_shutting_down` is `True`."""
    cluster._leaving = True  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - its own module
    await cluster._part.leave(grace)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def part_of(cluster: Cluster) -> Part:
    """Return the engine under a connection, for operations and tests."""
    return cluster._part  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - its own module


def tell_later(
    call: Awaitable[Any],
    outbox: list[Message],
    *,
    deliver_at: datetime | None = None,
    delay: timedelta | None = None,
    key: str | None = None,
) -> int:
    """Add a call to what is sent when the running handler's work is committed; return the id of the message."""
    told = as_call(call)
    told.check_loop()
    if told.target.broadcast:
        told.close()
        raise TypeError("a broadcast from a handler is not part of its commit: use `await cluster.tell(...)`")
    try:
        delivery = _delivery(deliver_at, delay, key)
    except (TypeError, ValueError):
        told.close()
        raise
    told.begin_tell(delivery)
    outbox.append(ToldCall(told))
    return told.message_id


class _BroadcastRequest(AwaitedMessage):
    """The request of a broadcast to one runner."""

    __slots__ = ()

    def __init__(self, told: Call) -> None:
        super().__init__(told.spec, "", BROADCAST)
        self.body = told.body
        self.deadline = told.deadline


def _delivery(deliver_at: datetime | None, delay: timedelta | None, key: str | None) -> Durable | None:
    if deliver_at is None and delay is None and key is None:
        return None
    if deliver_at is not None and delay is not None:
        raise ValueError("deliver_at and delay exclude each other: give one of them")
    return Durable(
        key=key,
        deliver_at=0.0 if deliver_at is None else due_time(deliver_at),
        delay=0.0 if delay is None else max(seconds_of(delay, "delay"), 0.0),
    )


def _failure(error: object) -> ActorhubError:
    if is_of(error, str):
        return DeferredFailed(plain(error))
    if not is_of(error, EntityError):
        raise TypeError(f"fail takes an EntityError or a text, not {shown(error)}")
    return error


def as_call(call: Awaitable[Any]) -> Call:
    """Return `call`, checked to be a call that can be told.

    Raises:
        TypeError: It is something else.
    """
    if is_of(call, StreamCall):
        call.discard()
        raise TypeError(f"{call!r} cannot be told, because nobody would receive its items: use `async for item in ...`")
    if not is_of(call, Call):
        kind = short_name_of(type(call))
        raise TypeError(f"tell takes a call, such as client('id').method(...), not {kind}")
    return call


def cluster_of_handler() -> Cluster:
    """Return the cluster of the running handler.

    Raises:
        NotConnected: No handler is running here.
    """
    try:
        return cluster_here.get()
    except LookupError:
        raise NotConnected("current() works only inside a handler") from None
