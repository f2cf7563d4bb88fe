"""The fields of objects that are encoded by their fields: structs, dataclasses and attrs classes."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec


class Field(msgspec.Struct, frozen=True):
    """One field of a class."""

    name: str
    """Of the attribute."""
    encoded: str
    """The name under which it is encoded."""
    default: Any
    """Its value if none is given; `msgspec.NODEFAULT` if one must be, or if the default is made by `factory`."""
    factory: Any
    """Makes the default; `msgspec.NODEFAULT` if it is not made, or only with the other fields."""


def fields_of(kind: type[Any]) -> tuple[Field, ...] | None:
    """Return the fields of a class in their order; `None` if its objects are not encoded by fields.

    Annotations are not evaluated: those of a class inside a function may name what cannot be found.
    """
    key: Any = kind
    return _fields_of(key)


def plain_object(value: object, contents: Iterable[tuple[str, object]]) -> object:
    """Return the dict or tuple as which `value` is encoded, with these contents by their encoded names."""
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        if config.tag is not None:
            contents = ((str(config.tag_field), config.tag), *contents)
        if config.array_like:
            return tuple(content for _, content in contents)
    return dict(contents)


@functools.lru_cache(maxsize=4096)
def _fields_of(kind: Any) -> tuple[Field, ...] | None:
    if issubclass(kind, msgspec.Struct):
        return tuple(_of_struct(kind))
    if dataclasses.is_dataclass(kind):
        return tuple(
            Field(field.name, field.name, _given(field.default), _given(field.default_factory))
            for field in dataclasses.fields(kind)
        )
    attributes = getattr(kind, "__attrs_attrs__", None)
    return None if attributes is None else tuple(map(_of_attribute, attributes))


def _of_struct(kind: type[msgspec.Struct]) -> Iterator[Field]:
    names = kind.__struct_fields__
    defaults: tuple[Any, ...] = kind.__struct_defaults__
    required = (msgspec.NODEFAULT,) * (len(names) - len(defaults))
    default: Any
    for name, encoded, default in zip(names, kind.__struct_encode_fields__, (*required, *defaults), strict=True):
        if isinstance(default, _FACTORY):
            yield Field(name, encoded, msgspec.NODEFAULT, default.factory)
        else:
            yield Field(name, encoded, default, msgspec.NODEFAULT)


def _factory_class() -> Any:
    class Sample(msgspec.Struct):
        made: list[int] = msgspec.field(default_factory=list[int])

    factory: object = Sample.__struct_defaults__[0]
    return type(factory)


_FACTORY: Final = _factory_class()
"""The class in which msgspec keeps factories. It has no public name."""


def _given(default: object) -> Any:
    return msgspec.NODEFAULT if default is dataclasses.MISSING else default


def _of_attribute(attribute: Any) -> Field:
    # By the names of their classes, since attrs need not be installed.
    default = attribute.default
    match type(default).__name__:
        case "_Nothing":
            return Field(attribute.name, attribute.name, msgspec.NODEFAULT, msgspec.NODEFAULT)
        case "Factory":
            made = msgspec.NODEFAULT if default.takes_self else default.factory
            return Field(attribute.name, attribute.name, msgspec.NODEFAULT, made)
        case _:
            return Field(attribute.name, attribute.name, default, msgspec.NODEFAULT)
