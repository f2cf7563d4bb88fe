"""Whether a value that was encoded comes back as it was.

A struct of a subclass in a field of its base comes back as the base, without its own fields; in a field of type `Any` a
`Decimal`, a date or a tuple comes back as what msgpack has for it. Both encode without an error.
"""

from collections.abc import Iterator
from typing import Any

from actorhub.core.fields import fields_of


def first_difference(value: object, back: object) -> str | None:
    """Return what differs in `back`, the decoded copy of `value`, and where; `None` if it is equal.

    Equal is what `==` says, so a `StrEnum` may come back as a `str`, and an `int` as a `float`. Where `==` says no, or
    is of no use (NaN, classes without `__eq__`), fields and items are compared one by one.
    """
    return None if _is_equal(value, back) else _difference(value, back, "")


def _is_equal(value: object, back: object) -> bool:
    try:
        return bool(value == back)
    except BaseException:  # noqa: BLE001 - user code: `__eq__` may raise anything
        return False


def _difference(value: object, back: object, path: str) -> str | None:
    if _is_equal(value, back):
        return None
    where = path.lstrip(".") or "it"
    if type(value) is not type(back):
        was, becomes = type(value).__qualname__, type(back).__qualname__
        return f"{where} is a {was} and would come back as a {becomes}: declare its exact type"
    if isinstance(value, float):
        return None  # NaN
    pairs = list(_pairs(value, back, type(value)))
    found = (_difference(part, copy, f"{path}{at}") for at, part, copy in pairs)
    first = next((problem for problem in found if problem is not None), None)
    if first is None and not pairs:
        return f"{where} would come back with another value: use types that come back as they were"
    return first


def _pairs(value: Any, back: Any, kind: type[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over the parts of two values of a type: place, value and copy; there are none if they do not match."""
    if issubclass(kind, list | tuple):
        if len(value) == len(back):
            for index, item in enumerate(value):
                yield f"[{index}]", item, back[index]
    elif issubclass(kind, dict):
        if value.keys() == back.keys():
            for key, item in value.items():
                yield f"[{key!r}]", item, back[key]
    else:
        for field in fields_of(kind) or ():
            yield f".{field.name}", getattr(value, field.name, None), getattr(back, field.name, None)
