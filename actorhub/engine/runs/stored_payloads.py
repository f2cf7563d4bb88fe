"""Whether two messages with one key mean the same, although the hashes of their arguments differ.

The hashes are the quick check. They differ for equal arguments where two releases declare or encode them differently: a
parameter or a field with a default was added, or an int stands where a float is declared. So before a key is refused,
the arguments of both are decoded as this process declares them, with the defaults for what an older caller left out,
and compared by what they mean then. A message that means the same is then stored once more with the hash of the
earlier one, so that everything else goes the way of equal hashes.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import msgspec

from actorhub.core.errors import MalformedMessage
from actorhub.core.idempotency import payload_hash
from actorhub.engine.model.earlier_forms import earlier_forms, with_all_fields
from actorhub.engine.model.spec import HandlerSpec
from actorhub.storage.message_ports import KeyUse, MessageKey, MessageStore, NewMessage


async def as_earlier(store: MessageStore, message: NewMessage, spec: HandlerSpec) -> NewMessage | None:
    """Return `message` with the payload hash of the one that has its key; `None` if they do not mean the same.

    Raises:
        PersistenceError: the store failed.
    """
    earlier = await store.find_key(_key_of(message))
    if earlier is None:
        return message
    return _with_hash_of(earlier, message, spec)


async def outbox_as_earlier(
    store: MessageStore, outbox: Sequence[NewMessage], specs: Mapping[int, HandlerSpec]
) -> tuple[NewMessage, ...] | None:
    """Return the messages of an outbox, each with the payload hash of the one that has its key.

    That may be another message of the outbox. `None` if one of them does not mean the same.

    Args:
        store: Knows the earlier messages.
        outbox: What a run told.
        specs: The handlers, by message id.

    Raises:
        PersistenceError: the store failed.
    """
    known: dict[MessageKey, KeyUse] = {}
    found: list[NewMessage] = []
    for message in outbox:
        if message.key is None:
            found.append(message)
            continue
        key = _key_of(message)
        known[key] = earlier = known.get(key) or await store.find_key(key) or _use_by(message)
        same = _with_hash_of(earlier, message, specs[message.message_id])
        if same is None:
            return None
        found.append(same)
    return tuple(found)


def _key_of(message: NewMessage) -> MessageKey:
    assert message.key is not None
    return MessageKey(message.entity_type, message.entity_id, message.handler, message.key)


def _use_by(message: NewMessage) -> KeyUse:
    return KeyUse(message_id=message.message_id, payload_hash=message.payload_hash, body=message.body)


def _with_hash_of(earlier: KeyUse, message: NewMessage, spec: HandlerSpec) -> NewMessage | None:
    if message.payload_hash != earlier.payload_hash and not means_the_same(spec, message.body, earlier):
        return None
    return msgspec.structs.replace(message, payload_hash=earlier.payload_hash)


def means_the_same(spec: HandlerSpec, body: bytes, earlier: KeyUse) -> bool:
    """Whether the arguments in `body` are those of the earlier message, as this process declares them.

    If the earlier arguments are no longer kept, their hash must be that of a form in which an earlier release would
    have hashed these. Arguments that this process cannot decode, or only in part, are never the same.
    """
    try:
        arguments = _decode_whole(spec, body)
        if earlier.body is None:
            if spec.meaning_of(arguments) == earlier.payload_hash:
                return True
            forms = earlier_forms(spec, arguments, len(body))
            return any(payload_hash(form) == earlier.payload_hash for form in forms)
        return spec.meaning_of(arguments) == spec.meaning_of(_decode_whole(spec, earlier.body))
    except Exception:  # noqa: BLE001 - user code: default factories, and hooks of types, may raise anything
        return False


def _decode_whole(spec: HandlerSpec, body: bytes) -> tuple[object, ...]:
    """Return the full arguments in `body`.

    Raises:
        MalformedMessage: they do not fit the handler, or have fields that this release does not know and would drop.
    """
    arguments = spec.decode_arguments(body)
    try:
        whole = spec.arguments.encode(with_all_fields(arguments))
        is_whole = _covers(msgspec.msgpack.decode(whole), msgspec.msgpack.decode(body))
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
        raise MalformedMessage(f"{spec.entity_type}.{spec.name}: {exc}") from exc
    if not is_whole:
        raise MalformedMessage(f"{spec.entity_type}.{spec.name}: the arguments have fields that are not known here")
    return spec.decode_arguments(whole)  # with defaults as they are once they were sent


def _covers(whole: object, part: object) -> bool:
    """Whether `whole` has every field and element that `part` has."""
    if isinstance(part, dict):
        if not isinstance(whole, dict):
            return False
        fields = cast("dict[object, object]", whole)
        items = cast("dict[object, object]", part).items()
        return all(name in fields and _covers(fields[name], value) for name, value in items)
    if isinstance(part, list | tuple):
        if not isinstance(whole, list | tuple):
            return False
        elements, known = cast("Sequence[object]", part), cast("Sequence[object]", whole)
        return len(elements) <= len(known) and all(map(_covers, known, elements))
    return not isinstance(whole, dict | list | tuple)
