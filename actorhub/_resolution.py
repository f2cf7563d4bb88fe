"""Resolving the types of a declared class: its annotations, its state, and the codecs of arguments and results."""

import copy
import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from actorhub.core.codec import Codec
from actorhub.core.errors import MalformedMessage
from actorhub.core.sendable import check_sendable
from actorhub.core.texts import shown, summary_of, text_of
from actorhub.core.type_hints import (
    Bases,
    UnknownName,
    bases_of,
    free_variables,
    resolved,
    substitute,
    type_arguments,
)

OURS: Final = ("actorhub.entity", "actorhub.singleton")
"""Modules of the classes from which users derive their own."""
_STREAMS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)


@dataclass(frozen=True, slots=True)
class Written:
    """The annotations of one class, with their names looked up."""

    bases: Bases
    methods: Mapping[str, Mapping[str, Any]]
    """By name of the method, then of the parameter; `return` is the result."""


def read_annotations(cls: type, names: Mapping[str, Any]) -> Written:
    """Look up the names in a class statement, and in the annotations of the public methods of the class.

    Args:
        cls: The class.
        names: Names around the class statement, besides those of its module.

    Raises:
        UnknownName: One is not defined (yet).
        TypeError: An annotation is not valid.
    """
    methods: dict[str, Mapping[str, Any]] = {}
    for name, function in vars(cls).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            written = inspect.unwrap(function)
            known = {
                **names,
                **{parameter.__name__: parameter for parameter in getattr(written, "__type_params__", ())},
            }
            methods[name] = resolved(
                cls,
                written.__annotations__,
                names=known,
                what=f"{cls.__name__}.{name}",
                module=written.__globals__,
            )
    return Written(bases_of(cls, names), methods)


class DeclaredTypes:
    """The types of a class's state and handlers, with the type variables of its bases replaced by what it sets."""

    def __init__(self, cls: type, written: Callable[[type], Written]) -> None:
        """Prepare.

        Args:
            cls: The class.
            written: Returns the annotations of `cls` and of the classes above it.

        Raises:
            UnknownName: A type argument contains a name that is not defined (yet).
            TypeError: Its bases do not fit together.
        """
        self._cls = cls
        self._written = written
        self._arguments = type_arguments(cls, lambda owner: written(owner).bases)

    def state(self) -> Any:
        """Return the argument of `Entity[...]`, or `None` for an entity without state."""
        root = next(owner for owner in self._arguments if owner.__module__ in OURS)
        (state,) = self._arguments[root].values()
        self._check_set(state, f"{self._cls.__name__}: state")
        return None if state is type(None) else state

    def of_handler(self, name: str, function: Callable[..., Any]) -> Mapping[str, Any]:
        """Return the types of a handler's parameters by name, and of its result as `return`."""
        owner = next(c for c in self._cls.__mro__ if vars(c).get(name) is function)
        values = self._arguments.get(owner, {})
        hints = {part: substitute(type_, values) for part, type_ in self._written(owner).methods[name].items()}
        for type_ in hints.values():
            self._check_set(type_, f"{self._cls.__name__}.{name}")
        return hints

    def _check_set(self, type_: Any, what: str) -> None:
        """Check that no type variable is left in a type."""
        for variable in free_variables(type_):
            owners = [owner for owner, values in self._arguments.items() if variable in values]
            if not owners:
                raise TypeError(
                    f"{what}: {variable.__name__} is a type variable of this method alone, so the type of the data is "
                    "unknown: name a type, or make the class generic"
                )
            if variable in getattr(self._cls, "__parameters__", ()):
                generic = self._cls.__name__
                raise UnknownName(
                    f"{what}: {generic} is generic: register a subclass that says what {variable.__name__} is, such as "
                    f"`class Some{generic}({generic}[int])`"
                )
            generic = owners[-1].__name__
            raise TypeError(f"{what}: {variable.__name__} of {generic} is not set: derive from {generic}[...]")


def initial_state_of(cls: type, state_type: Any, codec: Codec[Any] | None) -> Callable[[], Any]:
    """Return a function that makes the state of a new entity.

    Raises:
        TypeError: The type needs arguments, or what it makes without some is not of the type.
    """
    if codec is None or type(None) in typing.get_args(state_type):
        return lambda: None
    make = _constructor(state_type)
    name = getattr(make, "__name__", repr(make))
    try:
        initial = make()
    except Exception as exc:
        problem = text_of(exc) if isinstance(exc, TypeError) else summary_of(exc)
        raise TypeError(
            f"{cls.__name__}: a new entity starts with {name}(), which fails ({problem}): "
            "give every field of the state a default"
        ) from exc
    try:
        codec.check_faithful(initial, codec.encode(initial))
    except MalformedMessage as exc:
        raise TypeError(
            f"{cls.__name__}: a new entity starts with {name}(), which is not a valid state ({exc.message}): "
            "give its fields other defaults"
        ) from exc
    return typing.cast("Callable[[], Any]", make)


def _constructor(type_: Any) -> Any:
    """Return what makes values of a type: the class behind aliases, annotations and type arguments."""
    while (inner := getattr(type_, "__value__", None) or getattr(type_, "__supertype__", None)) is not None:
        type_ = inner
    origin = typing.get_origin(type_)
    return _constructor(type_.__origin__) if origin is typing.Annotated else origin or type_


def checked_codec(type_: Any, what: str) -> Codec[Any]:
    """Return a codec, after a check that msgspec can encode every type in it.

    Raises:
        UnknownName: An annotation in it contains a name that is not defined (yet).
        TypeError: A type in it cannot be sent or stored.
    """
    check_sendable(type_, what)
    return Codec[Any](type_, what)


def checked_defaults(what: str, parameters: list[inspect.Parameter], types: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the parameters' defaults as a handler gets them once they were sent: callers send them like any other.

    Raises:
        TypeError: One cannot, or does not fit its annotation.
    """
    defaults: list[Any] = []
    for parameter, type_ in zip(parameters, types, strict=True):
        if parameter.default is not parameter.empty:
            codec = Codec[Any](type_, f"{what}: {parameter.name}={shown(parameter.default)}")
            try:
                defaults.append(codec.decode(codec.encode(parameter.default)))
            except MalformedMessage as exc:
                raise TypeError(f"{exc.message}: give it a default that fits, or annotate it `| None = None`") from exc
    return tuple(defaults)


def tuple_type(types: tuple[Any, ...]) -> Any:
    """Return the type of a tuple with exactly these items."""
    return tuple[types] if types else tuple[()]  # type: ignore[valid-type]


def result_type(annotation: Any, what: str, *, stream: bool) -> Any:
    """Return the type of a handler's result, or of one item of a stream."""
    is_annotated = typing.get_origin(annotation) in _STREAMS
    if stream:
        if is_annotated and typing.get_args(annotation):
            return typing.get_args(annotation)[0]
        raise TypeError(f"{what} is a stream: annotate it `-> AsyncIterator[Item]`")
    if is_annotated or annotation in _STREAMS:
        raise TypeError(f"{what} is annotated as a stream but has no `yield`: `yield` each item, or return a list")
    return annotation


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
    return partial(copy.deepcopy, value)
