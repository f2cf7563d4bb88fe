"""Typed clients: `client("ada")` has the type of the entity class, so type checkers and editors see its methods."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Final, Generic, Literal, NoReturn, TypeVar, cast

import msgspec

from actorhub._call import Call, CallTarget
from actorhub._options import HOOKS
from actorhub._stream_call import StreamCall
from actorhub.core.arguments import check_headers, limit_of
from actorhub.core.codec import Codec
from actorhub.core.idempotency import check_key
from actorhub.core.texts import is_of, plain, shown
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.entity import Declared

E = TypeVar("E", bound=Declared[Any])

_KNOWN_PROXIES: Final = 4096
_PLAIN_ID_LENGTH: Final = 63
"""A printable ASCII id of at most this length is valid without a closer check, unless the limit is set lower."""


class Client(Generic[E]):
    """Makes proxies for entities of one type. A method of a proxy returns a lazy call: await, iterate or tell it."""

    def __init__(self, spec: EntitySpec, target: CallTarget, make: Callable[[CallTarget, str], E]) -> None:
        self._spec = spec
        self._target = target
        self._make = make
        self._known: dict[str, E] = {}
        """A cache of proxies. A proxy consists of an id and a target, so it never becomes stale."""
        self._plain_length = min(_PLAIN_ID_LENGTH, target.node.limits.max_entity_id_bytes)

    def __call__(self, entity_id: str) -> E:
        """Return the proxy for one id.

        Raises:
            MalformedMessage: The id is empty, too long, or contains control characters.
        """
        if type(entity_id) is str and (known := self._known.get(entity_id)) is not None:
            return known
        if not (
            type(entity_id) is str
            and 0 < len(entity_id) <= self._plain_length
            and entity_id.isascii()
            and entity_id.isprintable()
        ):
            entity_id = self._spec.check_id(entity_id, self._target.node.limits.max_entity_id_bytes)
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
        """Return a client like this one, with other options.

        Args:
            timeout: How long an ask waits for its reply, a tell for its acceptance, and a stream for its start. `None`
                means no limit. The default is 30 s. Inside a handler, the deadline of the handler applies, too.
            on_full: What to do if the entity's mailbox is full, or if all places for entities in memory are taken:
                `"fail"` (the default) raises `MailboxFull` at once, `"wait"` queues the call until the deadline.
            headers: Strings that the handler finds in `current().headers`, at most 64 KiB in all.
            key: Idempotency key for durable messages. Calls of one handler of one entity with equal keys are one
                message: it commits once, and all of them get its reply until its retention ends. At most 1024 bytes of
                UTF-8. `None` (the default) means the result of `primary_key()` of the first argument that has this
                method, or else no key.

        Raises:
            TypeError: `timeout` is not a `timedelta`.
            ValueError: A value is out of range. The text names it.
            MalformedMessage: The key is not a string, is empty, is too long, or contains control characters; or the
                headers are not strings, or have more than 64 KiB.
        """
        target = self._target
        if timeout is not msgspec.UNSET:
            target = dataclasses.replace(target, timeout=limit_of(timeout, "timeout"))
        if on_full is not msgspec.UNSET:
            word = plain(on_full) if is_of(on_full, str) else None
            if word not in ("fail", "wait"):
                raise ValueError(f'on_full={shown(on_full)} must be "fail" or "wait"')
            target = dataclasses.replace(target, waits_for_room=word == "wait")
        if headers is not msgspec.UNSET:
            target = dataclasses.replace(target, headers=check_headers(headers))
        if key is not msgspec.UNSET:
            target = dataclasses.replace(target, key=None if key is None else check_key(key))
        return type(self)(self._spec, target, self._make)

    def active(self) -> E:
        """Return a proxy for all resident entities of the type. Its calls can only be told; `tell` returns how many."""
        return self._make(dataclasses.replace(self._target, broadcast=True), "")

    def __repr__(self) -> str:
        return f"<client of {self._spec.name}>"


class _Proxy:
    """Base class of the generated proxies, whose methods are the handlers of the entity."""

    __slots__ = ("_id", "_target")

    _handlers: ClassVar[Mapping[str, HandlerSpec]] = {}

    def __init__(self, target: CallTarget, entity_id: str) -> None:
        self._target = target
        self._id = entity_id

    @classmethod
    def _result_of(cls, handler: str) -> Codec[Any]:
        return cls._handlers[handler].result

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id!r}>"


class _OutOfReach:
    """An attribute that a proxy or a client does not have although it looks as if it might: says what to do instead.

    Descriptors cost nothing where `__getattr__` makes every attribute of a class slower, handlers included.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, _owner: object, _class: type | None = None) -> NoReturn:
        raise AttributeError(self._text)

    def __set__(self, _owner: object, _value: object) -> NoReturn:
        raise AttributeError(self._text)


def no_attribute(entity_type: str, handlers: Mapping[str, HandlerSpec], name: str) -> AttributeError:
    """Return the error for what a proxy does not have: it is typed as the entity, but reaches its handlers only."""
    where = f"{entity_type}.{name}"
    if name == "state":
        text = f"{where}: only the entity sees its state: write a handler that returns or changes what you need of it"
    elif name == "save":
        text = f"{where}: only the entity saves its state: call save() in its handlers"
    elif name in HOOKS:
        text = f"{where}: hooks are called by actorhub alone: put what callers need into a handler"
    elif name.startswith("_"):
        text = f"{where} is private: callers reach the handlers only"
    else:
        near = difflib.get_close_matches(name, handlers, n=1)
        known = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(handlers)) or 'none'}"
        text = f"{entity_type} has no handler {name!r}: {known}"
    return AttributeError(text, name=name)


def result_of_call(function: Callable[..., Any]) -> Codec[Any] | None:
    """Return the codec of the result of a proxy's method, or `None` for other functions."""
    proxy = getattr(function, "__self__", None)
    return proxy._result_of(function.__name__) if isinstance(proxy, _Proxy) else None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def make_client(entity: type[E], target: CallTarget) -> Client[E]:
    """Return a client for `entity`. It makes classes for the client and its proxies, so callers keep the client."""
    spec = entity.__declaration__.spec
    make = cast("Callable[[CallTarget, str], E]", _proxy_class(spec))
    return cast("type[Client[E]]", _client_class(spec))(spec, target, make)


def _client_class(spec: EntitySpec) -> type[Client[Any]]:
    """Return a class of clients that says of handlers that they need an id first."""
    handlers = {
        name: _OutOfReach(f"{name} is a handler of one {spec.name}, not of the client: write client(id).{name}(...)")
        for name in spec.handlers
        if not hasattr(Client, name)
    }
    return type(f"client of {spec.name}", (Client,), handlers)


def _proxy_class(spec: EntitySpec) -> type[_Proxy]:
    missing = [name for name in ("state", "save", *HOOKS) if name not in spec.handlers]
    unreachable = {name: _OutOfReach(str(no_attribute(spec.name, spec.handlers, name))) for name in missing}
    methods = {name: _proxy_method(handler) for name, handler in spec.handlers.items()}
    return type(
        f"proxy of {spec.name}",
        (_Proxy,),
        {"__slots__": (), "_handlers": spec.handlers, **unreachable, **methods},
    )


def _proxy_method(spec: HandlerSpec) -> Callable[..., Call | StreamCall]:
    make = StreamCall if spec.stream else Call
    count = len(spec.parameters) if spec.by_position == len(spec.parameters) else -1
    bind = spec.bind

    def method(self: Any, /, *args: Any, **kwargs: Any) -> Call | StreamCall:
        if kwargs or len(args) != count:
            args = bind(*args, **kwargs)
        return make(self._target, spec, self._id, args)

    method.__name__ = spec.name
    method.__qualname__ = f"{spec.entity_type}.{spec.name}"
    method.__doc__ = spec.function.__doc__
    return method
