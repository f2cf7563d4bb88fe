"""Idempotency keys of durable messages: how a call gets its key, and the hashes under which the store keeps it."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import msgspec

from actorhub.core.arguments import check_name
from actorhub.core.errors import MalformedMessage
from actorhub.core.fields import fields_of
from actorhub.core.texts import summary_of

MAX_KEY_BYTES: Final = 1024
"""Longest idempotency key, in UTF-8."""
HASH_BYTES: Final = 16
"""Length of both hashes."""

_MARK: Final = "\x1f"
"""Begins the keys that runs give what they send, and parts them. No key of a user's, no type and no id contains it."""
_LENGTH_BYTES: Final = 4

_encode: Final = msgspec.msgpack.Encoder().encode
_encode_in_order: Final = msgspec.msgpack.Encoder(order="deterministic").encode


def key_hash(entity_type: str, entity_id: str, handler: str, key: str) -> bytes:
    """Return the 16 bytes that stand for one key of one handler of one entity.

    A storage format, frozen by a test: blake2b over the four texts in UTF-8, each preceded by its length in four
    big-endian bytes, so that no two combinations yield the same input.
    """
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for part in (entity_type, entity_id, handler, key):
        data = part.encode()
        digest.update(len(data).to_bytes(_LENGTH_BYTES, "big"))
        digest.update(data)
    return digest.digest()


def payload_hash(arguments: tuple[Any, ...]) -> bytes:
    """Return 16 bytes that are equal in every process for equal arguments, and different for different ones.

    The order in which sets and dicts were filled does not matter. A storage format, frozen by a test.
    Complexity: linear, at the speed of the encoder. If a set has elements that Python cannot sort, or a dict has keys
    that are not strings, hashing takes about a microsecond per element of the payload.

    Args:
        arguments: All arguments of the handler, by position. Frozensets inside a set cannot be sorted: such a set may
            have another hash in another process.

    Raises:
        MalformedMessage: msgspec cannot encode the arguments.
    """
    try:
        try:
            data = _encode_in_order(arguments)
        except TypeError:
            # The encoder sorts with Python's `<`, and only string keys. It fails for dict[int, ...] and sets of enums.
            data = _encode(_in_order(arguments))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise MalformedMessage(f"the arguments of a call with a key: {exc}") from exc
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def run_key(scope: Sequence[str], step: str, payload: bytes, number: int) -> str:
    """Return the key of a durable message that a durable run sends: the same one whenever the run is repeated.

    A storage format, frozen by a test. It begins with the scope, by which the store's clean-up finds out whether the
    run can still be repeated.

    Args:
        scope: Who may send the message again: `(message id,)`, or `(type, id, generation)` of a singleton's `run`.
        step: Name of the step that sends it; empty outside of steps.
        payload: Hash of its arguments.
        number: Which of the messages of the scope that are equal in everything else.
    """
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for data in (step.encode(), payload, str(number).encode()):
        digest.update(len(data).to_bytes(_LENGTH_BYTES, "big"))
        digest.update(data)
    return _MARK.join(("", *scope, digest.hexdigest()))


def scope_of_key(key: str | None) -> Sequence[str] | None:
    """Return the scope in a key that a run made; `None` for a user's key, or none."""
    return key.split(_MARK)[1:-1] if key is not None and key.startswith(_MARK) else None


def users_key(key: str | None) -> str | None:
    """Return the key if a user gave it, not a run."""
    return None if scope_of_key(key) is not None else key


def check_key(key: object) -> str:
    """Return `key` if it is a valid idempotency key.

    Raises:
        MalformedMessage: The key is not a string, is empty, is longer than 1024 bytes in UTF-8, or contains control
            characters.
    """
    checked = check_name(key, "key", MAX_KEY_BYTES)
    if not checked:
        raise MalformedMessage("key must not be empty: omit it, or use one that identifies this message")
    return checked


def primary_key_of(arguments: Sequence[Any]) -> str | None:
    """Return the key in the arguments: the result of `primary_key()` of the first argument that has this method.

    Raises:
        MalformedMessage: The method raised, or its result is not a valid key. The text names the argument's type.
    """
    for argument in arguments:
        try:
            method = getattr(argument, "primary_key", None)
            if not callable(method):
                continue
            key = method()
        except Exception as exc:  # user code may raise anything
            what = f"{type(argument).__name__}.primary_key()"
            raise MalformedMessage(f"{what} raised {summary_of(exc)}") from exc
        try:
            return check_key(key)
        except MalformedMessage as exc:
            raise MalformedMessage(f"{type(argument).__name__}.primary_key(): {exc.message}") from exc
    return None


def _in_order(value: object) -> object:
    """Return the content of `value`, with each set and dict as a list, sorted by the encoding of its elements."""
    match value:
        case set() | frozenset():
            return sorted(_encode(_in_order(item)) for item in cast("Iterable[object]", value))
        case dict():
            pairs = cast("dict[object, object]", value).items()
            return sorted((_encode(_in_order(key)), _encode(_in_order(item))) for key, item in pairs)
        case list() | tuple():
            return [_in_order(item) for item in cast("Iterable[object]", value)]
        case _:
            fields = fields_of(type(value))
            if fields is None:
                return value
            tag = value.__struct_config__.tag if isinstance(value, msgspec.Struct) else None
            return [tag, *(_in_order(getattr(value, field.name, None)) for field in fields)]
