"""Checks of options against their annotations, so that a wrong one is refused where it is written.

Type checkers say the same, but not everybody runs one, and an option of a wrong type otherwise fails in the middle of a
run. The annotation of an option is the only place that says what it may be.
"""

import types
import typing
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, Final, Literal, TypeVar, cast

import msgspec

from actorhub.core.texts import is_of, shown

LONGEST: Final = timedelta(days=36_500)
"""The longest duration of any option: a hundred years. Longer ones lead to times that no clock has."""

_CALLABLE: Final[object] = typing.get_origin(Callable[..., Any])
_MAPPING: Final[object] = typing.get_origin(Mapping[str, str])
_PHRASES: Final[Mapping[object, str]] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    timedelta: "a timedelta",
    type(None): "None",
    _MAPPING: "a mapping of text to text",
    _CALLABLE: "a function",
}


def check_types(where: str, allowed: Mapping[str, Any], values: Mapping[str, object]) -> None:
    """Check options against their annotations.

    Args:
        where: Begins the text of the error; may be empty.
        allowed: The annotations by name. Names that `values` does not have are left out.
        values: The options by name.

    Raises:
        TypeError: One is of another type. The text names it, and says what to write.
        ValueError: One is not among the words that its annotation lists.
    """
    for name, value in values.items():
        if not _fits(value, allowed[name]):
            prefix = f"{where}: " if where else ""
            text = (
                f"{prefix}{name}={shown(value)} must be {_phrase(allowed[name])}{_advice(name, value, allowed[name])}"
            )
            is_word = typing.get_origin(allowed[name]) is Literal and is_of(value, str)
            raise (ValueError if is_word else TypeError)(text)


def check_record(where: str, record: object) -> None:
    """Check all fields of a record of options: a dataclass or a struct.

    Raises:
        TypeError: One is of another type.
    """
    owner: Any = type(record)
    allowed = annotations_of(owner)
    check_types(where, allowed, {name: getattr(record, name) for name in allowed})


def check_duration(name: str, value: timedelta | None, *, zero: bool = False) -> None:
    """Check that a duration is more than zero (or `zero`), and not longer than any clock can count.

    Raises:
        ValueError: It is not. The text names it.
    """
    if value is None:
        return
    if not (timedelta(0) <= value if zero else timedelta(0) < value):
        raise ValueError(f"{name}={value} must {'not be negative' if zero else 'be more than zero'}")
    if value > LONGEST:
        raise ValueError(f"{name}={value} must be at most {LONGEST.days} days")


@cache
def annotations_of(owner: Any) -> Mapping[str, Any]:
    """Return the annotations of a class or function, resolved, without class variables and the result."""
    hints = typing.get_type_hints(owner)
    return {
        name: hint
        for name, hint in hints.items()
        if name != "return" and typing.get_origin(hint) is not typing.ClassVar
    }


def _fits(value: object, allowed: Any) -> bool:
    kind = typing.get_origin(allowed) or allowed
    if kind in _CHECKS:
        return _CHECKS[kind](value, typing.get_args(allowed))
    if isinstance(kind, TypeVar):
        return True
    # Of a protocol, an object may be one by attributes that its class does not have.
    return isinstance(value, kind) if getattr(kind, "_is_protocol", False) else is_of(value, kind)


def _fits_one(value: object, allowed: tuple[Any, ...]) -> bool:
    return any(_fits(value, one) for one in allowed)


def _fits_literal(value: object, allowed: tuple[Any, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in allowed)


def _fits_items(value: Any, allowed: tuple[Any, ...]) -> bool:
    return issubclass(type(value), tuple) and all(_fits(item, allowed[0]) for item in cast("tuple[object, ...]", value))


def _fits_mapping(value: Any, allowed: tuple[Any, ...]) -> bool:
    if not issubclass(type(value), Mapping):
        return False
    items = cast("Mapping[object, object]", value).items()
    return all(_fits(part, one) for item in items for part, one in zip(item, allowed, strict=True))


_CHECKS: Final[Mapping[object, Callable[[object, tuple[Any, ...]], bool]]] = {
    typing.Any: lambda _value, _: True,
    typing.Union: _fits_one,
    types.UnionType: _fits_one,
    typing.Literal: _fits_literal,
    tuple: _fits_items,
    type: lambda value, allowed: is_of(value, type) and issubclass(value, allowed[0]),
    _MAPPING: _fits_mapping,
    _CALLABLE: lambda value, _: callable(value),
    int: lambda value, _: is_of(value, int) and not is_of(value, bool),
    float: lambda value, _: issubclass(type(value), int | float) and not is_of(value, bool),
}


def _phrase(allowed: Any) -> str:
    """Return what is allowed, in words."""
    origin, arguments = typing.get_origin(allowed), typing.get_args(allowed)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_phrase(one) for one in arguments if one is not msgspec.UnsetType)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        bases = typing.get_args(arguments[0])
        return f"a tuple of subclasses of {bases[0].__name__}" if bases else f"a tuple of {arguments[0].__name__}"
    phrase = _PHRASES.get(allowed) or _PHRASES.get(origin)
    return phrase or f"{'an' if allowed.__name__[0] in 'AEIO' else 'a'} {allowed.__name__}"


def _advice(name: str, value: object, allowed: Any) -> str:
    """Return what to write instead, if that can be guessed."""
    options = typing.get_args(allowed) if typing.get_origin(allowed) in (typing.Union, types.UnionType) else (allowed,)
    for option in options:
        if option is timedelta and isinstance(value, int | float):
            return f": write {name}=timedelta(seconds={shown(value)})"
        if typing.get_origin(option) is tuple and (bases := typing.get_args(typing.get_args(option)[0])):
            return _advice_for_classes(name, value, bases[0])
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return f": write {name}={option.__name__}(...)"
    return ""


def _advice_for_classes(name: str, value: object, base: type) -> str:
    if isinstance(value, type) and issubclass(value, base):
        return f": write {name}=({value.__name__},)"
    return f": derive what it names from {base.__name__}, and write {name}=(OutOfStock,)"
