"""A connected hub: clients, tells, ids, and where entities live."""

from collections.abc import Awaitable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec

from actorhub._call import Call, CallTarget, StreamCall, ToldCall
from actorhub._stored_messages import StoredMessages
from actorhub.client import Client, make_client
from actorhub.core.address import RunnerAddress, ShardId, check_entity_id
from actorhub.core.codec import check_size, encode, encode_error
from actorhub.core.envelope import BROADCAST, Durable
from actorhub.core.errors import (
    ConfigurationError,
    DeferredFailed,
    EntityError,
    NotConnected,
    UnknownEntityType,
)
from actorhub.core.snowflake import Snowflake
from actorhub.engine.anycast.runner_requests import DeferredOutcome
from actorhub.engine.model.records import AwaitedMessage, Message
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.node import Node
from actorhub.engine.part import Part
from actorhub.engine.singletons.health import RunnerHealth
from actorhub.entity import Declared, Entity
from actorhub.key_value import KeyValue, untyped
from actorhub.singleton import Singleton
from actorhub.storage.checkpoint_ports import CompletionKind

E = TypeVar("E", bound=Entity[Any])
D = TypeVar("D", bound=Declared[Any])
SingletonT = TypeVar("SingletonT", bound=Singleton[Any])

_LONGEST_DELAY: Final = timedelta(days=1_000_000)

cluster_here: ContextVar["Cluster"] = ContextVar("actorhub_cluster")
"""The cluster that the handlers of this process belong to."""


class Cluster:
    """This program's connection to the cluster. Made by `hub.connect()` and `hub.runner()`; closed with them."""

    def __init__(self, part: Part, specs: Mapping[str, EntitySpec]) -> None:
        self._part = part
        self._node: Node = part.node
        self._specs = specs
        self._target = CallTarget(self._node)
        self._clients: dict[type[Declared[Any]], Client[Any]] = {}
        self._stored = StoredMessages(part, specs)
        self._kv = untyped(part.key_values, self._node.clock)
        self._leaving = False

    def client(self, entity: type[E]) -> Client[E]:
        """Return a typed client of an entity class.

        Raises:
            ConfigurationError: the class was not registered with the hub.
        """
        if entity.__declaration__.spec.singleton_id is not None:
            raise TypeError(f"{entity.__name__} is a singleton: use cluster.singleton({entity.__name__})")
        return self._client_of(entity)

    def singleton(
        self,
        singleton: type[SingletonT],
        *,
        timeout: timedelta | msgspec.UnsetType | None = msgspec.UNSET,
        key: str | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> SingletonT:
        """Return a typed proxy of a singleton; calls go to whoever leads it.

        Args:
            singleton: The class.
            timeout: How long an ask may take; `None`: for ever. Default: 30 s.
            key: Idempotency key of durable calls.

        Raises:
            ConfigurationError: the class was not registered with the hub.
        """
        singleton_id = singleton.__declaration__.spec.singleton_id
        if singleton_id is None:
            raise TypeError(f"{singleton.__name__} is no singleton: use cluster.client({singleton.__name__})")
        client = self._client_of(singleton)
        if timeout is not msgspec.UNSET or key is not msgspec.UNSET:
            client = client.options(timeout=timeout, key=key)
        return client(singleton_id)

    def _client_of(self, declared: type[D]) -> Client[D]:
        known = self._clients.get(declared)
        if known is not None:
            return known
        spec = declared.__declaration__.spec
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
        """Send a call without waiting for its reply; return once it is in the entity's mailbox, or stored.

        A tell of a durable handler is stored when this returns, also while no runner is up, and gets exactly one
        reply (`reply` waits for it), whatever fails in between. A volatile tell is lost with its runner.

        Args:
            call: What a proxy's method returned. Of `client.active()`: it goes to every resident entity of the type.
            deliver_at: When it is to run, with a time zone; never earlier by the database's clock. The past means now.
            delay: Instead, how long after it was stored.
            key: Idempotency key: tells and asks of one handler of one entity with equal keys are one message. Default:
                what `primary_key()` of the first argument that has it returns.

        Returns:
            The message's id, the earlier one's where the key was used before; of a broadcast, how many entities got it.

        Raises:
            ActorhubError: it was not accepted.
            DuplicateKey: the key was used with another payload.
            TypeError: key or time for a handler that is not durable.
            ValueError: `deliver_at` has no time zone, or is given together with `delay`.
        """
        told = as_call(call)
        try:
            when = _when(deliver_at, delay, key)
            if told.target.broadcast and (told.spec.durable or when is not None):
                raise TypeError(f"{told.what} is durable: a broadcast goes to whoever is resident, and is not stored")
        except (TypeError, ValueError):
            told.close()
            raise
        if told.target.broadcast:
            return await self._broadcast(told)
        return await told.tell(int(self.snowflake()), when)

    async def reply(self, message_id: int, *, timeout: timedelta | None = timedelta(seconds=30)) -> Any:  # noqa: ANN401 - what the handler returned
        """Wait for the reply of a durable message, also of one that was settled long ago; return its value.

        Args:
            message_id: What `tell` returned.
            timeout: How long to wait at most; `None`: for ever.

        Raises:
            EntityError: the handler raised it.
            HandlerFailed: it is a dead letter; type, text and traceback of the last run.
            MessageCancelled: it was cancelled.
            UnknownMessage: there is none, or its retention is over.
            CallTimeout: it is not settled yet.
        """
        return await self._stored.reply(message_id, timeout)

    async def cancel(self, message_id: int) -> bool:
        """Cancel a durable message that waits, is not yet due, or is a dead letter.

        Returns:
            Whether it was cancelled: `False` means that it had ended, or is unknown.

        Raises:
            AlreadyProcessing: its handler runs.
        """
        return await self._stored.cancel(message_id)

    async def retry(self, message_id: int) -> bool:
        """Run a dead letter, or a message that waits for its next attempt or its due time, now and from attempt 1.

        `reset` is an alias of this method.

        Returns:
            Whether there was such a message. A message that has a reply keeps it.

        Raises:
            AlreadyProcessing: The message is running, or just being stored.
        """
        return await self._stored.retry(message_id)

    reset = retry

    async def poll_storage(self) -> None:
        """Have every runner look into the store for messages now; they find them without this, only later."""
        await self._stored.poll()

    async def complete(self, token: str, value: Any) -> bool:  # noqa: ANN401 - what the run waits for
        """Complete a deferred value, for which some run waits or will wait; the first outcome wins.

        The value is not checked against the type that the run expects: one that does not fit fails the run's wait.
        Repeating the same call is harmless.

        Args:
            token: From `current().deferred(...)`.
            value: What msgspec can encode.

        Returns:
            Whether this is its outcome; `False`: it had another one before.

        Raises:
            MalformedMessage: this cluster did not make the token, or the value cannot be encoded.
        """
        data = check_size(encode(value, "deferred value"), self._node.limits.max_message_bytes, "deferred value")
        return await self._part.complete(DeferredOutcome(token, CompletionKind.VALUE, data))

    async def fail(self, token: str, error: EntityError | str) -> bool:
        """Let the wait for a deferred value fail, with this `EntityError`, or a `DeferredFailed` of this text.

        Returns:
            Whether this is its outcome; `False`: it had another one before.

        Raises:
            MalformedMessage: this cluster did not make the token.
        """
        failure = error if isinstance(error, EntityError) else DeferredFailed(error)
        return await self._part.complete(DeferredOutcome(token, CompletionKind.FAILED, encode_error(failure)))

    async def health(self) -> Sequence[RunnerHealth]:
        """Return how this runner is; of a client: how each runner is that it is linked to and that answers.

        A client that is linked to none gets an empty sequence.
        """
        return await self._part.runner_healths()

    @property
    def kv(self) -> KeyValue[Any]:
        """The cluster's key-value store: small values that belong to no entity, written at once."""
        return self._kv

    def snowflake(self) -> Snowflake:
        """Return a new id: unique in the cluster, strictly increasing within this process.

        Raises:
            PersistenceError: this process has no machine id, or could not renew its lease of it.
        """
        return self._node.ids.snowflake()

    def shard_of(self, entity: type[Declared[Any]], entity_id: str) -> ShardId:
        """Return the shard of an id."""
        check_entity_id(entity_id, self._node.limits.max_entity_id_bytes)
        return self._node.router.sharding.shard_of(entity.__declaration__.spec, entity_id)

    def is_local(self, entity: type[Declared[Any]], entity_id: str) -> bool:
        """Whether this very process owns the id's shard."""
        return self._part.owns(self.shard_of(entity, entity_id))

    @property
    def is_shutting_down(self) -> bool:
        """Whether this process is leaving."""
        return self._leaving

    @property
    def runner(self) -> RunnerAddress | None:
        """This process as a runner; `None` for a client."""
        return self._part.address

    async def _broadcast(self, told: Call) -> int:
        told.kind = BROADCAST
        told.prepare()
        counts = [self._part.broadcast_here(told.spec, told.body)]
        waiting: list[_BroadcastRequest] = []
        for peer in self._node.peers.runners():
            call = _BroadcastRequest(told)
            self._node.deadlines.add(call)
            self._node.router.send_to(call, peer)
            waiting.append(call)
        for call in waiting:
            try:
                counts.append(msgspec.msgpack.decode(await call.future, type=int))
            except UnknownEntityType:
                counts.append(0)
            finally:
                self._node.deadlines.drop(call)
        return sum(counts)


async def leave(cluster: Cluster, grace: float) -> None:
    """Leave the cluster; from now on `cluster.is_shutting_down` holds."""
    cluster._leaving = True  # noqa: SLF001 - its own module
    await cluster._part.leave(grace)  # noqa: SLF001


def part_of(cluster: Cluster) -> Part:
    """Return the engine underneath, for operations."""
    return cluster._part  # noqa: SLF001 - its own module


def tell_later(
    cluster: Cluster,
    call: Awaitable[Any],
    outbox: list[Message],
    *,
    deliver_at: datetime | None = None,
    delay: timedelta | None = None,
    key: str | None = None,
) -> int:
    """Add a call to what leaves when the running handler's work is committed; return the message's id."""
    told = as_call(call)
    if told.target.broadcast:
        told.close()
        raise TypeError("a broadcast from a handler is not part of its commit: use `await cluster.tell(...)`")
    try:
        when = _when(deliver_at, delay, key)
    except ValueError:
        told.close()
        raise
    message_id = int(cluster.snowflake())
    told.begin_tell(message_id, when)
    outbox.append(ToldCall(told))
    return message_id


class _BroadcastRequest(AwaitedMessage):
    """A broadcast's request to one runner."""

    __slots__ = ()

    def __init__(self, told: Call) -> None:
        super().__init__(told.spec, "", BROADCAST)
        self.body = told.body
        self.deadline = told.deadline


def _when(deliver_at: datetime | None, delay: timedelta | None, key: str | None) -> Durable | None:
    if deliver_at is None and delay is None and key is None:
        return None
    if deliver_at is not None and delay is not None:
        raise ValueError("deliver_at and delay exclude each other: give one of them")
    if deliver_at is not None and deliver_at.utcoffset() is None:
        raise ValueError(f"deliver_at={deliver_at} has no time zone: use e.g. datetime.now(UTC)")
    if delay is not None and delay > _LONGEST_DELAY:
        raise ValueError(f"delay={delay} is longer than {_LONGEST_DELAY.days} days")
    return Durable(
        key=key,
        deliver_at=0.0 if deliver_at is None else max(deliver_at.timestamp(), 1.0),
        delay=0.0 if delay is None else max(delay.total_seconds(), 0.0),
    )


def as_call(call: Awaitable[Any]) -> Call:
    """Return `call` if it is one.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(call, StreamCall):
        call.discard()
        raise TypeError(f"{call!r} cannot be told, because nobody would take its items: use `async for item in ...`")
    if not isinstance(call, Call):
        raise TypeError(f"tell takes a call, such as client('id').method(...), not {type(call).__name__}")
    return call


def cluster_of_handler() -> Cluster:
    """Return the cluster of the running handler.

    Raises:
        NotConnected: no handler runs here.
    """
    try:
        return cluster_here.get()
    except LookupError:
        raise NotConnected("current() works inside handlers only") from None
