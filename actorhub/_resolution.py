"""Resolving the types of a declared class: its annotations, its state, and the codecs of arguments and results."""

import inspect
import sys
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import msgspec
import msgspec.inspect

from actorhub.core.codec import Codec

OURS: Final = ("actorhub.entity", "actorhub.singleton")
"""Modules of the classes from which users derive their own."""
_STREAMS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)


class UnknownName(TypeError):
    """An annotation contains a name that is not defined yet."""


def type_hints(function: Callable[..., Any], scope: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the resolved annotations of `function`. `scope` has the names around the class statement."""
    try:
        return typing.get_type_hints(function, localns=dict(scope), include_extras=True)
    except NameError as exc:
        raise UnknownName(f"{what}: {exc}: import it, or define it before the hub registers the class") from exc


def find_state_type(cls: type, scope: Mapping[str, Any]) -> Any:
    """Return the argument of `Entity[...]`, or `None` for an entity without state.

    Generic classes in between are followed: after `class Kept(Entity[S])`, the state of `class Orders(Kept[Ledger])` is
    `Ledger`.
    """
    for generic in getattr(cls, "__orig_bases__", ()) if "__orig_bases__" in vars(cls) else ():
        origin, arguments = typing.get_origin(generic), typing.get_args(generic)
        if origin is None or not hasattr(origin, "__declaration__"):
            if getattr(origin, "__module__", "") in OURS:
                return _known_state(cls, arguments[0], scope)
            continue
        state = find_state_type(origin, scope)
        if isinstance(state, TypeVar):
            return _known_state(cls, arguments[origin.__parameters__.index(state)], scope)
    found = (find_state_type(base, scope) for base in cls.__bases__)
    return next((state for state in found if state is not None), None)


def _known_state(cls: type, argument: Any, scope: Mapping[str, Any]) -> Any:
    if isinstance(argument, typing.ForwardRef):
        module = vars(sys.modules[cls.__module__])
        try:
            argument = eval(argument.__forward_code__, module, dict(scope))  # noqa: S307 - an annotation
        except NameError as exc:
            raise UnknownName(f"{cls.__name__}: {exc}") from exc
    return None if argument is type(None) else argument


def initial_state_of(cls: type, state_type: Any) -> Callable[[], Any]:
    """Return a function that makes the state of a new entity.

    Raises:
        TypeError: The type needs arguments.
    """
    if state_type is None:
        return lambda: None
    make = typing.get_origin(state_type) or state_type
    if type(None) in typing.get_args(state_type):
        return lambda: None
    try:
        make()
    except TypeError as exc:
        raise TypeError(
            f"{cls.__name__}: a new entity starts with {getattr(make, '__name__', make)}(), which fails ({exc}): "
            "give every field of the state a default"
        ) from exc
    return typing.cast("Callable[[], Any]", make)


def checked_codec(type_: Any, what: str) -> Codec[Any]:
    """Return a codec, after a check that msgspec can encode every type in it.

    Without the check, msgspec accepts any class here and fails at the first call.
    """
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


def tuple_type(types: tuple[Any, ...]) -> Any:
    """Return the type of a tuple with exactly these items."""
    return tuple[types] if types else tuple[()]  # type: ignore[valid-type]


def item_type(annotation: Any, what: str) -> Any:
    """Return the type of the items of a stream."""
    if typing.get_origin(annotation) in _STREAMS and typing.get_args(annotation):
        return typing.get_args(annotation)[0]
    raise TypeError(f"{what} is a stream: annotate it `-> AsyncIterator[Item]`")


def positional(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """Return a function that takes all arguments by position, keyword-only ones last."""
    keyword_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if not keyword_only:
        return function
    count = len(parameters) - len(keyword_only)

    def call(instance: object, *args: Any) -> Any:
        return function(instance, *args[:count], **dict(zip(keyword_only, args[count:], strict=True)))

    return call


def binder(signature: inspect.Signature, name: str) -> Callable[..., tuple[Any, ...]]:
    """Return a function that turns the arguments of any valid call into the full tuple of positional arguments."""
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


def named_codec(what: str, parameters: list[inspect.Parameter], types: tuple[Any, ...]) -> Codec[Any]:
    """Return the codec of arguments as JSON: the value itself for one parameter, else an object keyed by name."""
    if len(parameters) == 1:
        return Codec(types[0], f"{what}: {parameters[0].name}")
    fields: list[Any] = [
        (p.name, t) if p.default is p.empty else (p.name, t, msgspec.field(default_factory=_constant(p.default)))
        for p, t in zip(parameters, types, strict=True)
    ]
    return Codec(msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True), f"{what}: arguments")


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value
