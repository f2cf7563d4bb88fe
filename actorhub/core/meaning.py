"""What the arguments of a call mean, whichever objects say it: by that, a repeated run finds what it has asked before.

The next repetition may run in another process, with a state that was loaded and not just made, or in another release:
the int that was put into a float's place is a float then, sets have another order, and there are parameters and fields
more, which have their defaults. So numbers that are equal mean the same, and a field means nothing if its value is what
stands in the class (an object that was never encoded has that), or what comes of that once it was sent.
"""

import functools
import hashlib
import operator
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec

from actorhub.core.factories import is_constant
from actorhub.core.fields import Field, fields_of, plain_object
from actorhub.core.idempotency import HASH_BYTES

_LEAVES: Final = frozenset({type(None), bool, int, str, bytes})
_INTS: Final = range(-(2**63), 2**64)
"""Those that msgspec encodes."""
_Defaults: TypeAlias = frozenset[bytes]
_Fields: TypeAlias = Sequence[tuple[str, str, _Defaults]]

_encode: Final = msgspec.msgpack.Encoder().encode


def meaning_hash(arguments: Sequence[Any], defaults: Sequence[Any]) -> bytes:
    """Return 16 bytes that are equal in every process and release for arguments that mean the same.

    What is equal to its default counts as left out, whether parameters or fields of structs, dataclasses and attrs
    classes; the order of fields, sets and dicts does not matter.

    Args:
        arguments: All arguments of the handler, by position, of the types that it declares.
        defaults: Those of its last parameters, of the declared types, too.

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
    if kind in _LEAVES or kind is float:
        return int(value) if kind is float and value.is_integer() and int(value) in _INTS else value
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
    for attribute, name, defaults in fields:
        content = getattr(value, attribute, msgspec.UNSET)
        if content is not msgspec.UNSET and (meaning := _encode(_meaning(content))) not in defaults:
            yield name, meaning


@functools.lru_cache(maxsize=4096)
def _fields(kind: Any) -> _Fields | None:
    """Return attribute, encoded name, and the meanings of the default of each field; `None` if there are none."""
    found: Iterable[Field] | None = fields_of(kind)
    if hasattr(kind, "_field_defaults"):  # a named tuple
        defaults = kind._field_defaults
        none = msgspec.NODEFAULT
        found = [Field(name, name, defaults.get(name, none), none) for name in kind._fields]
    if found is None:
        return None
    types = _types(kind)
    return [(each.name, each.encoded, _meanings_of_default(each, types.get(each.name, Any))) for each in found]


def _types(kind: Any) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception:  # noqa: BLE001 - user code; what cannot be found here is then taken as it is
        return {}


def _meanings_of_default(field: Field, type_: Any) -> _Defaults:
    """Return what the default means as it stands in the class, and as it is once it was sent; nothing if there is none.

    One that cannot be made is none. One that is not of the field's type cannot be sent: it is only what it is.
    """
    if field.factory is not msgspec.NODEFAULT and not is_constant(field.factory):
        return frozenset()
    try:
        default = field.default if field.factory is msgspec.NODEFAULT else field.factory()
        written = _encode(_meaning(default))
    except BaseException:  # noqa: BLE001 - user code: factories may raise anything
        return frozenset()  # none, or none that can be encoded: no value is equal to that
    try:
        return frozenset({written, _encode(_meaning(msgspec.msgpack.decode(_encode(default), type=type_)))})
    except BaseException:  # noqa: BLE001 - user code: hooks of types may raise anything
        return frozenset({written})


def in_order(value: object) -> object:
    """Return `value` with its sets as tuples, in an order that is the same in every process; it is encoded alike.

    Where no type is declared, what is decoded are lists, and nothing tells that they were sets.
    """
    kind = _kind(value)
    if kind in _LEAVES:
        return value
    parts = cast("Any", value)
    if issubclass(kind, set | frozenset):
        items = sorted((_encode(_meaning(item)), place, item) for place, item in enumerate(parts))
        return tuple(in_order(item) for _, _, item in items)
    if issubclass(kind, dict):
        pairs = [(_key_in_order(key), in_order(item)) for key, item in parts.items()]
        return value if _is_same(pairs, parts.items()) else dict(pairs)
    fields = _fields(kind)
    if fields is not None and not issubclass(kind, tuple):
        return _fields_in_order(value, fields)
    if issubclass(kind, list | tuple) and not _LEAVES.issuperset(map(type, parts)):
        ordered = tuple(map(in_order, parts))
        return value if all(map(operator.is_, ordered, parts)) else ordered
    return value


def _key_in_order(key: object) -> object:
    ordered = in_order(key)
    try:
        hash(ordered)
    except TypeError:
        return key  # an object with a set in it: those that can be keys are decoded only if their type is declared
    return ordered


def _is_same(pairs: Iterable[tuple[object, object]], others: Iterable[tuple[object, object]]) -> bool:
    return all(key is old and item is was for (key, item), (old, was) in zip(pairs, others, strict=True))


def _fields_in_order(value: object, fields: _Fields) -> object:
    contents = [(encoded, getattr(value, name, msgspec.UNSET)) for name, encoded, _ in fields]
    given = [(name, content) for name, content in contents if content is not msgspec.UNSET]
    pairs = [(name, in_order(content)) for name, content in given]
    return value if _is_same(pairs, given) else plain_object(value, pairs)
