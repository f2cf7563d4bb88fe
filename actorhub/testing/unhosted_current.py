"""What `current()` returns in the handlers of an entity that no cluster hosts."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, Literal, NoReturn, TypeVar, cast

import msgspec
from typing_extensions import override

from actorhub.client import Client, no_attribute
from actorhub.cluster import SingletonT
from actorhub.context import Current, E
from actorhub.core.address import RunnerAddress, ShardId, check_entity_id
from actorhub.core.arguments import check_headers, due_time, limit_of, seconds_of
from actorhub.core.idempotency import check_key, primary_key_of
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.entity import Declared

D = TypeVar("D", bound=Declared[Any])

_RUNNER: Final = RunnerAddress("unhosted:0", "unhosted")
_MOST_ID_BYTES: Final = 255


class Told(msgspec.Struct, frozen=True):
    """A call that a handler told, as `told_by` shows it."""

    entity_type: str
    entity_id: str
    """Empty for a call of `client.active()`."""
    handler: str
    arguments: tuple[Any, ...] = ()
    """All of them in the order of the handler's parameters, defaults included."""
    key: str | None = None
    """The idempotency key of a durable handler's call."""
    delay: timedelta | None = None
    deliver_at: datetime | None = None


class UnhostedCurrent(Current):
    """Knows the entity, records what is told, and says of everything that needs a cluster that it needs one."""

    __slots__ = ("_entity_id", "_spec", "_tells", "_untold")

    def __init__(self, spec: EntitySpec, entity_id: str) -> None:
        # What `Current` keeps belongs to a run of the engine. There is none: each of its members is overridden here.
        self._spec = spec
        self._entity_id = check_entity_id(entity_id, _MOST_ID_BYTES)
        self._untold: list[Told] = []
        self._tells = 0

    def take_untold(self) -> list[Told]:
        """Remove and return what was told since this was last called."""
        untold, self._untold = self._untold, []
        return untold

    @property
    @override
    def entity_type(self) -> str:
        return self._spec.name

    @property
    @override
    def entity_id(self) -> str:
        return self._entity_id

    @property
    @override
    def shard_id(self) -> ShardId:
        return ShardId(self._spec.shard_group, 0)

    @property
    @override
    def runner(self) -> RunnerAddress:
        return _RUNNER

    @property
    @override
    def incarnation(self) -> str:
        return _RUNNER.incarnation

    @property
    @override
    def epoch(self) -> int:
        return 1

    @property
    @override
    def is_leader(self) -> bool:
        return True

    @property
    @override
    def message_id(self) -> int:
        return 0

    @property
    @override
    def key(self) -> str | None:
        return None

    @property
    @override
    def attempt(self) -> int:
        return 1

    @property
    @override
    def is_cancelled(self) -> bool:
        return False

    @property
    @override
    def deadline(self) -> datetime | None:
        return None

    @property
    @override
    def headers(self) -> Mapping[str, str]:
        return MappingProxyType({})

    @property
    @override
    def trace(self) -> str | None:
        return None

    @property
    @override
    def chain(self) -> tuple[str, ...]:
        return ()

    @property
    @override
    def kv(self) -> NoReturn:
        self._needs_cluster("current().kv")

    @override
    def client(self, entity: type[E]) -> Client[E]:
        return RecordingClient(entity)

    @override
    def singleton(self, singleton: type[SingletonT]) -> SingletonT:
        return RecordingClient(singleton)(str(singleton.__declaration__.spec.singleton_id))

    @override
    async def tell(
        self,
        call: Awaitable[Any],
        *,
        deliver_at: datetime | None = None,
        delay: timedelta | None = None,
        key: str | None = None,
    ) -> int:
        if not isinstance(call, RecordedCall):
            raise TypeError(f"tell takes a call of current().client(...) or singleton(...), not {type(call).__name__}")
        self._untold.append(call.told(deliver_at=deliver_at, delay=delay, key=key))
        self._tells += 1
        return self._tells

    @override
    def transaction(self) -> NoReturn:
        self._needs_cluster("current().transaction()", "with a runner on Postgres (fixture actorhub_database)")

    @override
    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    @override
    def deferred(self, name: str, type: Any) -> NoReturn:
        self._needs_cluster("current().deferred()")

    @override
    async def sleep(self, duration: timedelta, *, name: str | None = None) -> None:
        self._needs_cluster("current().sleep()")

    @override
    def spawn(self, work: Coroutine[Any, Any, Any]) -> NoReturn:
        work.close()
        self._needs_cluster("current().spawn()")

    @override
    def keep_alive(self, enabled: bool = True) -> None:
        pass  # an instance that nobody passivates

    def _needs_cluster(self, what: str, where: str = "with MemoryCluster") -> NoReturn:
        raise RuntimeError(f"{self._spec.name}: {what} needs a cluster, and nobody hosts this entity: test it {where}")


class RecordingClient(Client[D]):
    """Makes calls that can be told, and nothing else."""

    def __init__(self, declared: type[D], key: str | None = None) -> None:
        # What `Client` keeps says where calls go. These go nowhere: each of its members is overridden here.
        self._spec = declared.__declaration__.spec
        self._declared = declared
        self._key = key

    @override
    def __call__(self, entity_id: str) -> D:
        return self._proxy(check_entity_id(entity_id, _MOST_ID_BYTES))

    @override
    def options(
        self,
        *,
        timeout: timedelta | msgspec.UnsetType | None = msgspec.UNSET,
        on_full: Literal["fail", "wait"] | msgspec.UnsetType = msgspec.UNSET,
        headers: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET,
        key: str | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> Client[D]:
        # Checked like those of a cluster, so that a test finds a wrong one.
        if timeout is not msgspec.UNSET:
            limit_of(timeout, "timeout")
        if headers is not msgspec.UNSET:
            check_headers(headers)
        if key is msgspec.UNSET:
            return RecordingClient(self._declared, self._key)
        return RecordingClient(self._declared, None if key is None else check_key(key))

    @override
    def active(self) -> D:
        return self._proxy("")

    @override
    def __repr__(self) -> str:
        return f"<unhosted client of {self._declared.__declaration__.spec.name}>"

    def _proxy(self, entity_id: str) -> D:
        return cast("D", _Proxy(self._declared.__declaration__.spec, entity_id, self._key))


class _Proxy:
    def __init__(self, spec: EntitySpec, entity_id: str, key: str | None) -> None:
        self._spec = spec
        self._entity_id = entity_id
        self._key = key

    def __getattr__(self, name: str) -> "Callable[..., RecordedCall]":
        handler = self._spec.handlers.get(name)
        if handler is None:
            raise no_attribute(self._spec.name, self._spec.handlers, name)

        def call(*args: Any, **kwargs: Any) -> RecordedCall:
            return RecordedCall(handler, self._entity_id, handler.bind(*args, **kwargs), self._key)

        return call


class RecordedCall(AsyncIterator[Any]):
    """A call that can be told to the record."""

    def __init__(self, handler: HandlerSpec, entity_id: str, arguments: tuple[Any, ...], key: str | None) -> None:
        self._handler = handler
        self._entity_id = entity_id
        self._arguments = arguments
        self._key = key

    def told(self, *, deliver_at: datetime | None, delay: timedelta | None, key: str | None) -> Told:
        """Return the record of telling it."""
        if deliver_at is not None:
            due_time(deliver_at)
        if delay is not None:
            seconds_of(delay, "delay")
        key = self._key if key is None else check_key(key)
        if key is None and self._handler.durable:
            key = primary_key_of(self._arguments)
        return Told(
            entity_type=self._handler.entity_type,
            entity_id=self._entity_id,
            handler=self._handler.name,
            arguments=self._arguments,
            key=key,
            delay=delay,
            deliver_at=deliver_at,
        )

    def __await__(self) -> Generator[Any, None, Any]:
        raise self._unanswerable()

    async def __anext__(self) -> NoReturn:
        raise self._unanswerable()

    def _unanswerable(self) -> RuntimeError:
        return RuntimeError(
            f"{self._handler.entity_type}.{self._handler.name} was asked, and nobody hosts it: tell it, or test with "
            "MemoryCluster"
        )
