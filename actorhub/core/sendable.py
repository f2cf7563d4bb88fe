"""Which types can be sent and stored: those that msgspec encodes, and decodes as the same type."""

import inspect
import typing
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import msgspec.inspect

from actorhub.core.type_hints import WHAT_TO_DO, UnknownName, resolved, type_name

_MUTABLE: Final = (
    msgspec.inspect.ListType,
    msgspec.inspect.SetType,
    msgspec.inspect.DictType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.ByteArrayType,
)
_CLASSES: Final = (msgspec.inspect.StructType, msgspec.inspect.DataclassType, msgspec.inspect.NamedTupleType)


def check_sendable(type_: Any, what: str) -> None:
    """Check that msgspec can encode and decode every type in `type_`.

    Without the check, msgspec accepts any class here and fails at the first value, and it decodes the fields of a
    generic class without arguments as whatever is in the data.

    Args:
        type_: A type without type variables.
        what: What is of the type, for error messages.

    Raises:
        UnknownName: An annotation of a class in it contains a name that is not defined (yet).
        TypeError: A type in it cannot be sent. The text names it.
    """
    try:
        msgspec.msgpack.Decoder(type_)
        info = msgspec.inspect.type_info(type_)
    except (NameError, AttributeError) as exc:
        raise UnknownName(f"{what}: {_place_of(type_, exc)}") from exc
    except RecursionError as exc:
        raise TypeError(f"{what}: an alias of a type cannot contain itself: use a struct, which can") from exc
    except Exception as exc:
        raise TypeError(f"{what}: {exc}: {_remedy(str(exc))}") from exc
    for problem in _problems(info, set()):
        raise TypeError(f"{what}: {problem}")


def _remedy(problem: str) -> str:
    if "typing.Self" in problem:
        return "write the name of the class instead"
    if "typing.No" in problem or "typing.Never" in problem:
        return "write None: whatever is raised reaches the caller"
    if "ForwardRef" in problem:
        return "an alias of a type cannot contain itself: use a struct, which can"
    return "use types that msgspec can encode"


def _problems(info: object, seen: set[int]) -> Iterator[str]:
    if isinstance(info, tuple):
        for part in typing.cast("tuple[object, ...]", info):
            yield from _problems(part, seen)
    elif isinstance(info, msgspec.Struct) and id(info) not in seen:
        seen.add(id(info))
        cls = getattr(info, "cls", None)
        if isinstance(info, msgspec.inspect.CustomType) and cls is not object:
            yield f"{type_name(cls)} cannot be sent or stored: use types that msgspec can encode"
        elif variables := _unbound(cls):
            generic: Any = typing.get_origin(cls) or cls
            arguments = ", ".join("..." for _ in variables)
            yield (
                f"{generic.__qualname__} is generic: write {generic.__name__}[{arguments}] with the type of its "
                f"{' and '.join(variables)}"
            )
        elif (inner := _unhashable_part(info)) is not None:
            yield f"values of {inner} cannot be in a set, nor be keys of a dict: use a list, or a type that is frozen"
        for name in info.__struct_fields__:
            yield from _problems(getattr(info, name), seen)


def _unhashable_part(info: object) -> str | None:
    """Return what the items of a set, or the keys of a dict, consist of, if they cannot be hashed."""
    if isinstance(info, msgspec.inspect.SetType | msgspec.inspect.FrozenSetType):
        return _unhashable(info.item_type, set())
    return _unhashable(info.key_type, set()) if isinstance(info, msgspec.inspect.DictType) else None


def _unhashable(info: msgspec.inspect.Type, seen: set[int]) -> str | None:
    if id(info) in seen:
        return None
    seen.add(id(info))
    if isinstance(info, _MUTABLE):
        return type(info).__name__.removesuffix("Type").lower()
    parts: tuple[msgspec.inspect.Type, ...] = ()
    if isinstance(info, msgspec.inspect.TupleType):
        parts = info.item_types
    elif isinstance(info, msgspec.inspect.VarTupleType):
        parts = (info.item_type,)
    elif isinstance(info, _CLASSES):
        cls: Any = typing.get_origin(info.cls) or info.cls
        # A struct that can be changed has a `__hash__`, which raises.
        config = getattr(cls, "__struct_config__", None)
        is_mutable = config is not None and config.eq and not config.frozen and cls.__hash__ is msgspec.Struct.__hash__
        if cls.__hash__ is None or is_mutable:
            return str(cls.__qualname__)
        parts = tuple(field.type for field in info.fields)
    return next((found for part in parts if (found := _unhashable(part, seen)) is not None), None)


def _unbound(cls: object) -> list[str]:
    """Return the type variables of a generic class that msgspec takes for `Any`: those without a bound."""
    variables: tuple[Any, ...] = getattr(cls, "__parameters__", ())
    return [variable.__name__ for variable in variables if getattr(variable, "__bound__", None) is None]


def _place_of(type_: Any, error: Exception) -> str:
    """Return which annotation contains the unknown name that msgspec does not tell."""
    found = next(_unknown_names(type_, set()), None)
    if found is None:
        return f"{error}: {WHAT_TO_DO}"
    cls, field, problem = found
    where = f"{cls.__qualname__}.{field}: {problem}"
    if "<locals>" in cls.__qualname__:
        return f"{where}: the class is local to a function, so its names are looked up in its module: move both there"
    return f"{where}: {WHAT_TO_DO}"


def _unknown_names(type_: Any, seen: set[int]) -> Iterator[tuple[type, str, BaseException | None]]:
    """Iterate over the annotations with unknown names in the classes that a type is made of."""
    if id(type_) in seen:
        return
    seen.add(id(type_))
    for part in (*typing.get_args(type_), getattr(type_, "__value__", None), typing.get_origin(type_)):
        yield from _unknown_names(part, seen)
    if not isinstance(type_, type):
        return
    for cls in type_.__mro__:
        for field, annotation in inspect.get_annotations(cls).items():
            try:
                hint = resolved(cls, {field: annotation}, names={}, what=field)[field]
            except UnknownName as exc:
                yield cls, field, exc.__cause__
            else:
                yield from _unknown_names(hint, seen)
