"""Whether the factory of a field makes the same value always and everywhere.

If it does not (the day, a setting, the host), releases cannot be compared by what it makes: what was made yesterday
would count as left out then, and as given today, so that one message would have two meanings.
"""

import builtins
import datetime as dt
import decimal
import enum
import functools
import typing
import uuid
from types import FunctionType
from typing import Any, Final, cast

import msgspec

from actorhub.core.fields import fields_of

_VALUES: Final[frozenset[object]] = frozenset({
    *(type(None), bool, int, float, str, bytes, bytearray, list, dict, set, frozenset, tuple),
    *(decimal.Decimal, dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID),
})  # fmt: skip
_OWN_CODE: Final = ("__post_init__", "__attrs_post_init__")


def is_constant(factory: object) -> bool:
    """Whether a factory is a plain class, or a function that names nothing but plain classes and members of enums.

    A plain class holds values: those of Python, structs and dataclasses without code of their own in their making.
    """
    made_by: object = typing.get_origin(factory) or factory
    if isinstance(made_by, FunctionType):
        return _names_only_values(made_by)
    return isinstance(made_by, type) and _is_plain(made_by)


def _names_only_values(function: FunctionType) -> bool:
    code = function.__code__
    if code.co_freevars or code.co_argcount or code.co_kwonlyargcount:
        return False
    known = {**vars(builtins), **function.__globals__}
    named = {name: known.get(name) for name in code.co_names}
    members = {
        member
        for kind in named.values()
        if isinstance(kind, enum.EnumMeta)
        for member in cast("type[enum.Enum]", kind).__members__
    }
    return all(name in members or (isinstance(kind, type) and _is_plain(kind)) for name, kind in named.items())


@functools.lru_cache(maxsize=4096)
def _is_plain(kind: type[Any]) -> bool:
    if kind in _VALUES or isinstance(kind, enum.EnumMeta):
        return True
    if hasattr(kind, "__attrs_attrs__"):
        return False
    fields = fields_of(kind)
    if fields is None or any(hasattr(kind, name) for name in _OWN_CODE) or not _has_no_init(kind):
        return False
    return all(field.factory is msgspec.NODEFAULT or is_constant(field.factory) for field in fields)


def _has_no_init(kind: type[Any]) -> bool:
    if issubclass(kind, msgspec.Struct):
        return True  # it cannot define one
    cls: Any = kind
    return bool(cls.__dataclass_params__.init) and cls.__new__ is object.__new__
