"""Whether a value that was encoded comes back as it was.

A struct of a subclass in a field of its base comes back as the base, without its own fields; in a field of type `Any` a
`Decimal`, a date or a tuple comes back as what msgpack has for it. Both encode without an error.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec


def first_difference(value: object, back: object) -> str | None:
    """Return what differs in `back`, the decoded copy of `value`, and where; `None` if it is equal.

    Equal is what `==` says, so a `StrEnum` may come back as a `str`, and an `int` as a `float`. Where `==` says no, or
    is of no use (NaN, classes without `__eq__`), fields and items are compared one by one.
    """
    return None if _is_equal(value, back) else _difference(value, back, "")


def _is_equal(value: object, back: object) -> bool:
    try:
        return bool(value == back)
    except Exception:  # noqa: BLE001 - user code: `__eq__` may raise anything
        return False


def _difference(value: object, back: object, path: str) -> str | None:
    if _is_equal(value, back):
        return None
    if type(value) is type(back):
        if isinstance(value, float):
            return None  # NaN
        parts = _parts(value, back)
        if parts is not None:
            return next((found for found in (_difference(*part, f"{path}{at}") for at, part in parts) if found), None)
    where = path.lstrip(".") or "it"
    if isinstance(value, dict | list | tuple | set | frozenset) and type(value) is type(back):
        return f"{where} comes back with other items: use types that come back as they were"
    was, becomes = type(value).__qualname__, type(back).__qualname__
    return f"{where} is a {was} and would come back as a {becomes}: declare its exact type"


def _parts(value: Any, back: Any) -> Iterable[tuple[str, tuple[Any, Any]]] | None:
    """Return the parts of two values of one type, in pairs with their place; `None` if they have none that match."""
    if isinstance(value, msgspec.Struct):
        return _fields(value, back, value.__struct_fields__)
    if dataclasses.is_dataclass(value):
        return _fields(value, back, [field.name for field in dataclasses.fields(value)])
    if hasattr(type(value), "__attrs_attrs__"):
        return _fields(value, back, [field.name for field in type(value).__attrs_attrs__])
    if isinstance(value, list | tuple) and len(value) == len(back):
        return ((f"[{index}]", pair) for index, pair in enumerate(zip(value, back, strict=True)))
    if isinstance(value, dict) and value.keys() == back.keys():
        return ((f"[{key!r}]", (item, back[key])) for key, item in value.items())
    return None


def _fields(value: Any, back: Any, names: Iterable[str]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in names:
        yield f".{name}", (getattr(value, name, None), getattr(back, name, None))
