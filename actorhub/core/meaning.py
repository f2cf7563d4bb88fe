"""What the arguments of a call mean, whichever objects say it: by that, a repeated run finds what it has asked before.

The next repetition may run in another process, with a state that was loaded and not just made, or in another release:
the int that was put into a float's place is a float then, sets have another order, and there are parameters and fields
more, which have their defaults.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from actorhub.core.fields import fields_of
from actorhub.core.idempotency import HASH_BYTES

_LEAVES: Final = frozenset({type(None), bool, int, float, str, bytes})
_EMPTY: Final[dict[Any, object]] = {list: [], dict: {}, set: set(), tuple: (), frozenset: frozenset()}
"""What the factories make whose products are told from other values without calling them, which may be user code."""
_Fields: TypeAlias = Sequence[tuple[str, str, bytes]]

_encode: Final = msgspec.msgpack.Encoder().encode


def meaning_hash(arguments: Sequence[Any], defaults: Sequence[Any]) -> bytes:
    """Return 16 bytes that are equal in every process and release for arguments that mean the same.

    What is equal to its default counts as left out, whether parameters or fields of structs, dataclasses and attrs
    classes; the order of fields, sets and dicts does not matter.

    Args:
        arguments: All arguments of the handler, by position, of the types that it declares.
        defaults: Those of its last parameters.

    Raises:
        TypeError: msgspec cannot encode them. Also other errors, such as of user code: whoever calls has encoded them
            before.
    """
    meanings = [_encode(_meaning(argument)) for argument in arguments]
    for default in reversed(defaults):
        if not meanings or meanings[-1] != _encode(_meaning(default)):
            break
        meanings.pop()
    return hashlib.blake2b(_encode(meanings), digest_size=HASH_BYTES).digest()


def _meaning(value: Any) -> object:
    """Return what msgpack encodes in one way only."""
    kind = _kind(value)
    if kind in _LEAVES:
        return value
    if issubclass(kind, dict):
        return ["dict", *sorted((_encode(_meaning(key)), _encode(_meaning(item))) for key, item in value.items())]
    if issubclass(kind, set | frozenset):
        return ["set", *sorted(_encode(_meaning(item)) for item in value)]
    fields = _fields(kind)
    if fields is not None:
        return ["fields", _tag(value), *sorted(_given(value, fields))]
    if issubclass(kind, list | tuple):
        return ["list", *(value if _LEAVES.issuperset(map(type, value)) else map(_meaning, value))]
    return value


def _kind(value: object) -> Any:
    return type(value)


def _tag(value: object) -> object:
    return value.__struct_config__.tag if isinstance(value, msgspec.Struct) else None


def _given(value: object, fields: _Fields) -> Iterator[tuple[str, bytes]]:
    for attribute, name, default in fields:
        content = getattr(value, attribute, msgspec.UNSET)
        if content is not msgspec.UNSET and (meaning := _encode(_meaning(content))) != default:
            yield name, meaning


@functools.lru_cache(maxsize=4096)
def _fields(kind: Any) -> _Fields | None:
    """Return attribute, encoded name, and meaning of the default of each field; `None` if there are none."""
    if hasattr(kind, "_field_defaults"):  # a named tuple
        return [(name, name, _default(kind._field_defaults.get(name, msgspec.NODEFAULT))) for name in kind._fields]
    found = fields_of(kind)
    if found is None:
        return None
    return [(each.name, each.encoded, _default(_EMPTY.get(each.factory, each.default))) for each in found]


def _default(default: object) -> bytes:
    try:
        return _encode(_meaning(default))
    except (TypeError, ValueError):
        return b""  # none, or made by user code: no value is equal to that
