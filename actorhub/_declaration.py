"""From a user's class to the engine's spec: checks at class definition, types resolved as soon as they can be."""

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import msgspec
import msgspec.inspect

from actorhub.core.address import NAME_PATTERN
from actorhub.core.codec import Codec
from actorhub.core.retry import DEFAULT_RETRY, Retry
from actorhub.engine.spec import EntitySpec, HandlerSpec

_OPTIONS: Final = "__actorhub_handler__"
_HOOKS: Final = frozenset({"on_activate", "on_deactivate"})
_ENTITY_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_LONGEST_RETENTION: Final = timedelta(days=36_500)
_STREAMS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """What `@handler(...)` said."""

    durable: bool = False
    retry: Retry | None = None
    retention: timedelta | None = None
    readonly: bool = False
    reentrant: bool = False
    timeout: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityOptions:
    """What the class statement said."""

    name: str
    shard_group: str
    mailbox_capacity: int
    concurrency: int
    max_idle: timedelta
    shard_key: Callable[[str], str] | None


class Declaration:
    """One checked entity class; `spec` resolves its types at the first use, when every name is known."""

    def __init__(
        self,
        cls: type,
        options: EntityOptions,
        handlers: Mapping[str, Callable[..., Any]],
        scope: Mapping[str, Any],
    ) -> None:
        self.cls = cls
        self.options = options
        self.handlers = handlers
        self._scope = dict(scope)
        self._spec: EntitySpec | None = None

    @property
    def spec(self) -> EntitySpec:
        """The engine's view of the class.

        Raises:
            TypeError: an annotation names something unknown, or a type that msgspec cannot encode.
        """
        if self._spec is None:
            self._spec = self._resolve()
            self._scope.clear()
        return self._spec

    def try_resolve(self) -> None:
        """Resolve now where every annotation's name is known already, so that mistakes show at class definition."""
        try:
            _ = self.spec
        except _UnknownName:
            return

    def _resolve(self) -> EntitySpec:
        options, cls = self.options, self.cls
        state_type = _state_type(cls, self._scope)
        if isinstance(state_type, TypeVar):
            state_type = None  # A generic class in between: what derives from it says.
        state = None if state_type is None else _codec(state_type, f"{options.name}: state")
        if state is not None and options.concurrency > 1:
            raise TypeError(
                f"{cls.__name__}: concurrency={options.concurrency} needs an Entity without state, because interleaved "
                f"handlers cannot be rolled back one by one: remove concurrency, or [{state_type!r}]"
            )
        base = next(c for c in cls.__mro__ if c.__name__ == "Entity" and c.__module__ == "actorhub.entity")
        return EntitySpec(
            name=options.name,
            handlers={name: self._handler(name, function) for name, function in self.handlers.items()},
            state=state,
            initial_state=_initial_state(cls, state_type),
            shard_group=options.shard_group,
            mailbox_capacity=options.mailbox_capacity,
            concurrency=options.concurrency,
            max_idle=options.max_idle,
            shard_key=options.shard_key,
            on_activate=self._hook(base, "on_activate"),
            on_deactivate=self._hook(base, "on_deactivate"),
        )

    def _hook(self, base: type, name: str) -> HandlerSpec | None:
        function = getattr(self.cls, name)
        if function is getattr(base, name):
            return None
        return dataclasses.replace(self._handler(name, getattr(base, name)), function=function)

    def _handler(self, name: str, function: Callable[..., Any]) -> HandlerSpec:
        options: HandlerOptions = getattr(function, _OPTIONS, HandlerOptions())
        what = f"{self.options.name}.{name}"
        hints = _hints(function, self._scope | {self.cls.__name__: self.cls}, what)
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[1:]
        types = tuple(hints[p.name] for p in parameters)
        defaults = tuple(p.default for p in parameters if p.default is not p.empty)
        stream = inspect.isasyncgenfunction(function)
        return HandlerSpec(
            entity_type=self.options.name,
            name=name,
            function=_positional(function, parameters),
            parameters=tuple(p.name for p in parameters),
            defaults=defaults,
            by_position=sum(p.kind is not p.KEYWORD_ONLY for p in parameters),
            bind=_binder(signature, name),
            arguments=_codec(_tuple_type(types), f"{what}: arguments"),
            leading=tuple(
                Codec(_tuple_type(types[: len(types) - missing]), f"{what}: arguments")
                for missing in range(1, len(defaults) + 1)
            ),
            named=_named_codec(what, parameters, types),
            result=_codec(_item_type(hints["return"], what) if stream else hints["return"], f"{what}: result"),
            stream=stream,
            readonly=options.readonly,
            reentrant=options.reentrant,
            timeout=_seconds(options.timeout),
            durable=options.durable,
            retry=options.retry or DEFAULT_RETRY,
            retention=_seconds(options.retention),
        )


def declare(cls: type, options: EntityOptions, scope: Mapping[str, Any]) -> Declaration:
    """Check an entity class and return its declaration.

    Raises:
        TypeError: says which name is wrong and what to write instead.
    """
    _check_options(cls, options)
    handlers: dict[str, Callable[..., Any]] = {}
    for owner in reversed(_user_classes(cls)):
        for name, value in vars(owner).items():
            if not name.startswith("_") and name not in _HOOKS:
                _check_public(cls, name, value)
                if inspect.isfunction(value):
                    handlers[name] = value
        for name in inspect.get_annotations(owner):
            if not name.startswith("_") and not name.isupper() and name not in handlers:
                raise TypeError(
                    f"{cls.__name__}.{name}: public attributes of an entity cannot be reached from outside: "
                    f"rename it to _{name}, or keep it in the state"
                )
    for hook in _HOOKS:
        if not inspect.iscoroutinefunction(getattr(cls, hook)):
            raise TypeError(f"{cls.__name__}.{hook} must be `async def {hook}(self) -> None`")
    declaration = Declaration(cls, options, handlers, scope)
    declaration.try_resolve()
    return declaration


def snake_case(name: str) -> str:
    """Return a class name in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def attach_options(function: Callable[..., Any], options: HandlerOptions) -> None:
    """Remember what `@handler(...)` said; the function stays itself.

    Raises:
        TypeError: says which option is wrong, or that the function is private and so no handler.
    """
    name = getattr(function, "__qualname__", repr(function))
    if options.timeout is not None and options.timeout <= timedelta(0):
        raise TypeError(f"{name}: timeout={options.timeout} must be more than zero")
    if getattr(function, "__name__", "").startswith("_"):
        raise TypeError(f"{name}: @handler on a private method, which nobody can call: rename it, or drop @handler")
    _check_durable(name, options)
    setattr(function, _OPTIONS, options)


def _check_durable(where: str, options: HandlerOptions) -> None:
    if not options.durable:
        for name in ("retry", "retention"):
            if getattr(options, name) is not None:
                raise TypeError(f"{where}: {name}=... is for stored messages: add durable=True, or remove {name}")
        return
    if options.readonly:
        raise TypeError(
            f"{where}: a durable handler commits its reply, so it cannot be readonly: remove durable or readonly"
        )
    if options.reentrant:
        raise TypeError(
            f"{where}: a durable handler commits on its own, so it cannot run inside another one's turn: "
            "remove durable or reentrant"
        )
    retention = options.retention
    if retention is not None and not timedelta(0) < retention <= _LONGEST_RETENTION:
        raise TypeError(
            f"{where}: retention={retention} must be more than zero, and at most {_LONGEST_RETENTION.days} days"
        )


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


class _UnknownName(TypeError):
    """An annotation names something that is not defined yet."""


def _user_classes(cls: type) -> list[type]:
    return [c for c in cls.__mro__ if c is not object and not c.__module__.startswith(("actorhub.entity", "typing"))]


def _check_options(cls: type, options: EntityOptions) -> None:
    where = cls.__name__
    if not _ENTITY_NAME.fullmatch(options.name):
        raise TypeError(f"{where}: name={options.name!r} must be a letter, then up to 99 letters, digits, _ . or -")
    if not NAME_PATTERN.fullmatch(options.shard_group):
        raise TypeError(f"{where}: shard_group={options.shard_group!r} must match {NAME_PATTERN.pattern}")
    if options.mailbox_capacity < 1:
        raise TypeError(f"{where}: mailbox_capacity={options.mailbox_capacity} must be at least 1")
    if options.concurrency < 1:
        raise TypeError(f"{where}: concurrency={options.concurrency} must be at least 1")
    if options.max_idle <= timedelta(0):
        raise TypeError(f"{where}: max_idle={options.max_idle} must be more than zero")


def _check_public(cls: type, name: str, value: object) -> None:
    where = f"{cls.__name__}.{name}"
    if name in ("state", "save"):
        raise TypeError(f"{where}: this name belongs to Entity: choose another")
    if name.isupper():
        return
    if not inspect.isfunction(value):
        raise TypeError(
            f"{where}: public names of an entity are handlers (async methods) or UPPER_CASE constants: "
            f"write `async def {name}(self, ...)`, or rename it to _{name}"
        )
    if not (inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)):
        raise TypeError(f"{where} is not async: write `async def {name}(...)`, or rename it to _{name}")
    parameters = list(inspect.signature(value).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise TypeError(f"{where}: its first parameter must be self")
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{where}: *{parameter.name} cannot be sent over the wire: name each parameter")
        if parameter.annotation is parameter.empty:
            raise TypeError(f"{where}: annotate {parameter.name}: write e.g. `{parameter.name}: str`; it is validated")
    if inspect.signature(value).return_annotation is inspect.Signature.empty:
        raise TypeError(f"{where}: annotate the result, e.g. `-> None`: it is validated by type")


def _hints(function: Callable[..., Any], scope: Mapping[str, Any], what: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(scope), include_extras=True)
    except NameError as exc:
        raise _UnknownName(f"{what}: {exc}: import it, or define it before the hub registers the class") from exc


def _state_type(cls: type, scope: Mapping[str, Any]) -> Any:
    """Return the argument of `Entity[...]`, or `None` for an entity without state.

    Generic classes in between count: with `class Kept(Entity[S])`, `class Orders(Kept[Ledger])` has the state `Ledger`.
    """
    for generic in getattr(cls, "__orig_bases__", ()) if "__orig_bases__" in vars(cls) else ():
        origin, arguments = typing.get_origin(generic), typing.get_args(generic)
        if origin is None or not hasattr(origin, "__declaration__"):
            if getattr(origin, "__module__", "") == "actorhub.entity":
                return _known_state(cls, arguments[0], scope)
            continue
        state = _state_type(origin, scope)
        if isinstance(state, TypeVar):
            return _known_state(cls, arguments[origin.__parameters__.index(state)], scope)
    found = (_state_type(base, scope) for base in cls.__bases__)
    return next((state for state in found if state is not None), None)


def _known_state(cls: type, argument: Any, scope: Mapping[str, Any]) -> Any:
    if isinstance(argument, typing.ForwardRef):
        module = vars(sys.modules[cls.__module__])
        try:
            argument = eval(argument.__forward_code__, module, dict(scope))  # noqa: S307 - an annotation
        except NameError as exc:
            raise _UnknownName(f"{cls.__name__}: {exc}") from exc
    return None if argument is type(None) else argument


def _initial_state(cls: type, state_type: Any) -> Callable[[], Any]:
    if state_type is None:
        return lambda: None
    make = typing.get_origin(state_type) or state_type
    if type(None) in typing.get_args(state_type):
        return lambda: None
    try:
        make()
    except TypeError as exc:
        raise TypeError(
            f"{cls.__name__}: a new entity starts with {getattr(make, '__name__', make)}(), which fails: {exc}: "
            "give every field of the state a default"
        ) from exc
    return typing.cast("Callable[[], Any]", make)


def _codec(type_: Any, what: str) -> Codec[Any]:
    """Return a codec of types that can be encoded; msgspec itself would take any class, and fail at the first call."""
    codec = Codec[Any](type_, what)
    unknown = next(_custom_types(msgspec.inspect.type_info(type_), set()), None)
    if unknown is not None:
        raise TypeError(f"{what}: {unknown.__qualname__} cannot be sent or stored: use types that msgspec can encode")
    return codec


def _custom_types(info: object, seen: set[int]) -> Iterator[type]:
    if isinstance(info, tuple):
        for part in typing.cast("tuple[object, ...]", info):
            yield from _custom_types(part, seen)
    elif isinstance(info, msgspec.Struct) and id(info) not in seen:
        seen.add(id(info))
        if isinstance(info, msgspec.inspect.CustomType) and info.cls is not object:
            yield info.cls
        for name in info.__struct_fields__:
            yield from _custom_types(getattr(info, name), seen)


def _tuple_type(types: tuple[Any, ...]) -> Any:
    return tuple[types] if types else tuple[()]  # type: ignore[valid-type]


def _item_type(annotation: Any, what: str) -> Any:
    if typing.get_origin(annotation) in _STREAMS and typing.get_args(annotation):
        return typing.get_args(annotation)[0]
    raise TypeError(f"{what} is a stream: annotate it `-> AsyncIterator[Item]`")


def _positional(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """Return `function`, or what calls it with its keyword-only parameters by name."""
    keyword_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if not keyword_only:
        return function
    count = len(parameters) - len(keyword_only)

    def call(instance: object, *args: Any) -> Any:
        return function(instance, *args[:count], **dict(zip(keyword_only, args[count:], strict=True)))

    return call


def _binder(signature: inspect.Signature, name: str) -> Callable[..., tuple[Any, ...]]:
    parameters = list(signature.parameters.values())[1:]
    outside = signature.replace(parameters=parameters)

    def bind(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        try:
            bound = outside.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{name}(): {exc}") from None
        bound.apply_defaults()
        return tuple(bound.arguments[p.name] for p in parameters)

    return bind


def _named_codec(what: str, parameters: list[inspect.Parameter], types: tuple[Any, ...]) -> Codec[Any]:
    if len(parameters) == 1:
        return Codec(types[0], f"{what}: {parameters[0].name}")
    fields: list[Any] = [
        (p.name, t) if p.default is p.empty else (p.name, t, msgspec.field(default_factory=_constant(p.default)))
        for p, t in zip(parameters, types, strict=True)
    ]
    return Codec(msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True), f"{what}: arguments")


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value
