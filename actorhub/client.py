"""Typed clients: `client("ada")` looks like the entity class, and what the type checker shows is what there is."""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar, cast

import msgspec

from actorhub._call import Call, StreamCall, Target
from actorhub.core.address import check_entity_id
from actorhub.core.codec import Codec
from actorhub.core.idempotency import check_key
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.entity import Declared

E = TypeVar("E", bound=Declared[Any])

_KNOWN_PROXIES: Final = 4096
_PLAIN_ID_LENGTH: Final = 63
"""An ASCII id of up to this many printable characters needs no closer look, unless the limit is set lower."""


class Client(Generic[E]):
    """Makes proxies of one entity type; calling a proxy's method makes a lazy call: await, iterate, or tell it."""

    def __init__(self, spec: EntitySpec, target: Target, make: Callable[[Target, str], E]) -> None:
        self._spec = spec
        self._target = target
        self._make = make
        self._known: dict[str, E] = {}
        """Proxies made lately: they hold an id and where calls go, nothing that ages."""
        self._plain_length = min(_PLAIN_ID_LENGTH, target.node.limits.max_entity_id_bytes)

    def __call__(self, entity_id: str) -> E:
        """Return the proxy of one id.

        Raises:
            MalformedMessage: the id is empty, too long, or holds control characters.
        """
        if type(entity_id) is str and (known := self._known.get(entity_id)) is not None:
            return known
        if not (
            type(entity_id) is str
            and 0 < len(entity_id) <= self._plain_length
            and entity_id.isascii()
            and entity_id.isprintable()
        ):
            check_entity_id(entity_id, self._target.node.limits.max_entity_id_bytes)
        proxy = self._make(self._target, entity_id)
        if len(self._known) >= _KNOWN_PROXIES:
            self._known.clear()
        self._known[entity_id] = proxy
        return proxy

    def options(
        self,
        *,
        timeout: timedelta | msgspec.UnsetType | None = msgspec.UNSET,
        on_full: Literal["fail", "wait"] | msgspec.UnsetType = msgspec.UNSET,
        headers: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET,
        key: str | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> "Client[E]":
        """Return a client like this one with other options.

        Args:
            timeout: How long an ask waits, a tell waits to be accepted, and a stream waits for its first sign of life.
                `None` waits for ever. Default 30 s. Inside a handler the handler's own deadline counts too.
            on_full: What a full mailbox means: `"fail"` (the default) raises `MailboxFull` at once, `"wait"` queues.
            headers: Strings that the handler finds in `current().headers`.
            key: Idempotency key of durable messages: calls of one handler of one entity with equal keys are one
                message, committed once and answered alike until its retention ends. At most 1024 bytes of UTF-8.
                `None` (the default): the result of `primary_key()` of the first argument that has one, else no key.

        Raises:
            ValueError: a value makes no sense; says which.
            MalformedMessage: the key is no string, empty, too long, or holds control characters.
        """
        target = self._target
        if timeout is not msgspec.UNSET:
            seconds = None if timeout is None else timeout.total_seconds()
            if seconds is not None and seconds <= 0:
                raise ValueError(f"timeout={timeout} must be more than zero, or None to wait for ever")
            target = dataclasses.replace(target, timeout=seconds)
        if on_full is not msgspec.UNSET:
            if on_full not in ("fail", "wait"):
                raise ValueError(f'on_full={on_full!r} must be "fail" or "wait"')
            target = dataclasses.replace(target, waits_for_room=on_full == "wait")
        if headers is not msgspec.UNSET:
            target = dataclasses.replace(target, headers=dict(headers))
        if key is not msgspec.UNSET:
            target = dataclasses.replace(target, key=None if key is None else check_key(key))
        return Client(self._spec, target, self._make)

    def active(self) -> E:
        """Return a proxy of every resident entity of the type: its calls can be told, and the tell returns how many."""
        return self._make(dataclasses.replace(self._target, broadcast=True), "")

    def __repr__(self) -> str:
        return f"<client of {self._spec.name}>"


class _Proxy:
    """Base of the generated proxies; their methods are the entity's handlers."""

    __slots__ = ("_id", "_target")

    _handlers: ClassVar[Mapping[str, HandlerSpec]]

    def __init__(self, target: Target, entity_id: str) -> None:
        self._target = target
        self._id = entity_id

    @classmethod
    def _result_of(cls, handler: str) -> Codec[Any]:
        return cls._handlers[handler].result

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id!r}>"


def result_of_call(function: Callable[..., Any]) -> Codec[Any] | None:
    """Return the codec of what a proxy's method returns when its call is awaited; `None` for other functions."""
    proxy = getattr(function, "__self__", None)
    return proxy._result_of(function.__name__) if isinstance(proxy, _Proxy) else None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def make_client(entity: type[E], target: Target) -> Client[E]:
    """Return a client of `entity`; its proxies' class is made here, so keep it."""
    spec = entity.__declaration__.spec
    return Client(spec, target, cast("Callable[[Target, str], E]", _proxy_class(spec)))


def _proxy_class(spec: EntitySpec) -> type[_Proxy]:
    methods = {name: _proxy_method(handler) for name, handler in spec.handlers.items()}
    return type(f"proxy of {spec.name}", (_Proxy,), {"__slots__": (), "_handlers": spec.handlers, **methods})


def _proxy_method(spec: HandlerSpec) -> Callable[..., Call | StreamCall]:
    make = StreamCall if spec.stream else Call
    count = len(spec.parameters) if spec.by_position == len(spec.parameters) else -1
    bind = spec.bind

    def method(self: Any, *args: Any, **kwargs: Any) -> Call | StreamCall:
        if kwargs or len(args) != count:
            args = bind(*args, **kwargs)
        return make(self._target, spec, self._id, args)

    method.__name__ = spec.name
    method.__qualname__ = f"{spec.entity_type}.{spec.name}"
    method.__doc__ = spec.function.__doc__
    return method
