"""Errors as the gateway sends them: typed, and readable without our library."""

from typing import Final

import msgspec

from actorhub.core.codec import public_name
from actorhub.core.errors import ActorhubError, EntityError, field_names
from actorhub.core.texts import encodable, text_of
from actorhub.transport.grpc._pb import client_v1_pb2 as pb

_FIELDS: Final = ("retry_after", "path", "type", "reason")
_encode: Final = msgspec.json.Encoder().encode


def failure_of(error: ActorhubError) -> pb.Failure:
    """Return the message that represents `error`."""
    is_domain_error = isinstance(error, EntityError)
    names = field_names(type(error)) if isinstance(error, EntityError) else _FIELDS
    fields = {name: getattr(error, name) for name in names if hasattr(error, name)}
    return pb.Failure(
        kind=public_name(error),
        message=text_of(error) if is_domain_error else error.message,
        possibly_executed=error.possibly_executed,
        is_domain_error=is_domain_error,
        fields_json=_as_json(fields),
        traceback=str(getattr(error, "traceback", "")),
    )


def _as_json(fields: dict[str, object]) -> str:
    """Return the fields; one that JSON cannot hold is shown by its `repr`."""
    return _encode({name: _plain(value) for name, value in fields.items()}).decode() if fields else ""


def _plain(value: object) -> object:
    try:
        return msgspec.Raw(_encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return encodable(repr(value)[:1000])
