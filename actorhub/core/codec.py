"""Encoding of user data (arguments, results, state, errors) with msgspec, and decoding with validation."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar, overload

import msgspec

from actorhub.core import errors
from actorhub.core.error_fields import fields_of
from actorhub.core.errors import (
    ActorhubError,
    EntityError,
    HandlerFailed,
    MalformedMessage,
    MessageTooLarge,
    RunnerUnavailable,
    field_names,
)
from actorhub.core.fidelity import first_difference
from actorhub.core.texts import LONGEST_NAME, is_of, is_read_plainly, short_name_of, summary_of, text_of

T = TypeVar("T")

_encode: Final = msgspec.msgpack.Encoder().encode
_JSON: Final = msgspec.json.Encoder()
_PLAIN: Final = (bool, int, str, bytes)
_EXPECTED: Final = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)


class _NoType:
    """No value is of this type."""


class Codec(Generic[T]):
    """Encoder and decoder of one type. Decoding validates, and its error names the field that does not fit."""

    __slots__ = ("_decode_json", "_plain", "raw_decode", "what")

    def __init__(self, type_: Any, what: str) -> None:
        """Prepare the decoders.

        Args:
            type_: Any type that msgspec supports.
            what: What the data is, for error messages, such as `orders.process: arguments`.

        Raises:
            TypeError: msgspec does not support the type.
        """
        self.what = what
        self._plain = type_ if type_ in _PLAIN else type(type_) if type_ is None else _NoType
        """A value of exactly this type fits; of others, only decoding tells."""
        try:
            self.raw_decode = msgspec.msgpack.Decoder(type_).decode
            """Like `decode`, but its errors are msgspec's, or of user code; it is cheaper by one call."""
            self._decode_json = msgspec.json.Decoder(type_).decode
        except TypeError as exc:
            raise TypeError(f"{what}: {exc}: use types that msgspec can encode") from exc

    def decode(self, data: bytes) -> T:
        """Return the value in `data`.

        Raises:
            MalformedMessage: The bytes do not contain a value of the type.
        """
        try:
            value: T = self.raw_decode(data)
        except BaseException as exc:
            raise _refusal(exc, self.what) from exc
        return value

    def decode_json(self, data: bytes) -> T:
        """Return the value in the JSON text `data`.

        Raises:
            MalformedMessage: The text does not contain a value of the type.
        """
        try:
            value: T = self._decode_json(data)
        except BaseException as exc:
            if (problem := _json_problem(data)) is not None:
                raise MalformedMessage(f"{self.what}: {problem}") from exc
            raise _refusal(exc, self.what) from exc
        return value

    def encode(self, value: T) -> bytes:
        """Return `value` encoded as msgpack.

        Raises:
            MalformedMessage: `value` contains something that msgspec cannot encode.
        """
        try:
            return _encode(value)
        except BaseException as exc:
            raise _refusal(exc, self.what) from exc

    def encode_fitting(self, value: T) -> tuple[bytes, T]:
        """Return what a handler returned, encoded as msgpack, and what that is decoded to: a copy, which fits the type.

        Raises:
            MalformedMessage: `value` contains something that msgspec cannot encode.
            TypeError: it is not of the type.
        """
        try:
            data = _encode(value)
        except BaseException as exc:
            raise _refusal(exc, self.what) from exc
        if type(value) is self._plain:
            return data, value
        try:
            return data, self.raw_decode(data)
        except BaseException as exc:
            problem = f"the handler returned something other than it declares: {_refusal(exc, self.what).message}"
            raise TypeError(problem) from exc

    def check_faithful(self, value: T, data: bytes) -> None:
        """Check that `data`, which is `value` encoded, is decoded to an equal value.

        Raises:
            MalformedMessage: it is not; the text names the field.
        """
        back = self.decode(data)
        try:
            problem = None if value == back else first_difference(value, back)
        except BaseException as exc:
            raise _refusal(exc, self.what) from exc
        if problem is not None:
            raise MalformedMessage(f"{self.what}: {problem}")

    def encode_json(self, value: T) -> bytes:
        """Return `value` as JSON text.

        Raises:
            MalformedMessage: `value` contains something that msgspec cannot encode.
        """
        try:
            return _JSON.encode(value)
        except BaseException as exc:
            raise _refusal(exc, self.what) from exc


def _refusal(error: BaseException, what: str) -> MalformedMessage:
    """Return what stands for an error of encoding or decoding, which runs user code: `__post_init__`, `__eq__`, hooks.

    They may raise anything, and `CancelledError`, `SystemExit` and the like are orders to whoever runs them: to a task
    of the engine, or to the process.
    """
    return MalformedMessage(f"{what}: {text_of(error) if issubclass(type(error), _EXPECTED) else summary_of(error)}")


def _json_problem(data: bytes) -> str | None:
    """Return why `data` is not JSON at all: msgspec may complain of a type before it sees that."""
    if not data.strip():
        return "nothing was given: write it as JSON"
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        why = text_of(exc).removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends too early")
        return f'this is not JSON ({why}): text and names stand in double quotes, as in "tea"'
    return None


def encode(value: object, what: str) -> bytes:
    """Return `value` encoded as msgpack.

    Raises:
        MalformedMessage: `value` contains something that msgspec cannot encode.
    """
    try:
        return _encode(value)
    except BaseException as exc:
        raise _refusal(exc, what) from exc


@overload
def decode_answer(data: bytes, answer_type: type[T]) -> T: ...


@overload
def decode_answer(data: bytes, answer_type: Any) -> Any: ...


def decode_answer(data: bytes, answer_type: Any) -> Any:
    """Return what a runner answered to a request of actorhub's own.

    Raises:
        RunnerUnavailable: It is not of the type. Whether the runner has done what it was asked for is not known.
    """
    try:
        return msgspec.msgpack.decode(data, type=answer_type)
    except _EXPECTED as exc:
        raise RunnerUnavailable(
            f"the answer of a runner cannot be read: {text_of(exc)}", possibly_executed=True
        ) from exc


def check_size(data: bytes, limit: int, what: str) -> bytes:
    """Return `data` if it is at most `limit` bytes long.

    Raises:
        MessageTooLarge: It is longer.
    """
    if len(data) > limit:
        raise MessageTooLarge(
            f"{what}: {len(data)} bytes; the limit is {limit}: send less, or raise max_message_bytes in every process"
        )
    return data


class _ErrorRecord(msgspec.Struct, array_like=True):
    """An error as it travels. A wire format: only append fields."""

    kind: str
    message: str
    possibly_executed: bool
    fields: dict[str, msgspec.Raw]
    domain: bool = False


_decode_error: Final = msgspec.msgpack.Decoder(_ErrorRecord).decode
_decode_any: Final = msgspec.msgpack.Decoder().decode
_SENT_FIELDS: Final = ("retry_after", "path", "type", "traceback", "reason")


def encode_error(error: ActorhubError, limit: int) -> bytes:
    """Return `error` in its wire form. Never fails.

    One that cannot be encoded, or takes more than `limit` bytes, becomes a `HandlerFailed` with a shortened text. A
    private subclass of a public error travels as that public error.
    """
    try:
        data = _encode_error(error)
    except BaseException as exc:  # noqa: BLE001 - user code: fields, and the class itself, may be of any kind
        problem = f"this error cannot be encoded: {text_of(exc)}"
    else:
        if len(data) <= limit:
            return data
        problem = f"this error takes {len(data)} bytes, the limit is {limit}"
    name = error.type[:LONGEST_NAME] if is_of(error, HandlerFailed) else _name_of(error)
    short = HandlerFailed(name, f"{text_of(error)}: {problem}", possibly_executed=_may_have_run(error))
    return _encode_error(short)


def encode_passed_error(error: ActorhubError, limit: int, what: str) -> bytes:
    """Return an error that a caller passes in its wire form, from which that error is decoded, and no other.

    Raises:
        MalformedMessage: A field cannot be encoded, or not as the type that it declares.
        MessageTooLarge: It takes more than `limit` bytes.
    """
    try:
        data = _encode_error(error)
        record = _decode_error(data)
        _ = _domain_error(record, type(error)) if is_of(error, EntityError) else _framework_error(record)
    except BaseException as exc:
        raise _refusal(exc, f"{what}: {public_name(error)}") from exc
    return check_size(data, limit, what)


def _encode_error(error: ActorhubError) -> bytes:
    if is_of(error, EntityError):
        fields = {name: msgspec.Raw(_encode(getattr(error, name))) for name in field_names(type(error))}
        return _encode(_ErrorRecord(_domain_name(type(error)), text_of(error), _may_have_run(error), fields, True))
    fields = {name: msgspec.Raw(_encode(getattr(error, name))) for name in _SENT_FIELDS if hasattr(error, name)}
    return _encode(_ErrorRecord(public_name(error), error.message, _may_have_run(error), fields))


def _may_have_run(error: ActorhubError) -> bool:
    try:
        return bool(error.possibly_executed)
    except BaseException:  # noqa: BLE001 - user code: a property may raise anything
        return True


def _name_of(error: ActorhubError) -> str:
    return _domain_name(type(error)) if is_of(error, EntityError) else public_name(error)


def public_name(error: ActorhubError) -> str:
    """Return the name of the public class of `error`. For a private subclass that is the public class above it."""
    if is_of(error, EntityError):
        return short_name_of(type(error))
    return next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)


def decode_error(data: bytes) -> ActorhubError:
    """Return the error in `data`. If this process does not know its class, the result is a `HandlerFailed`."""
    try:
        record = _decode_error(data)
    except msgspec.MsgspecError as exc:
        return HandlerFailed("unreadable error", f"the error that the runner sent cannot be decoded: {text_of(exc)}")
    try:
        return _domain_error(record, _domain_class(record.kind)) if record.domain else _framework_error(record)
    except BaseException as exc:  # noqa: BLE001 - user code: the class of an `EntityError` may raise anything
        return _undecodable(record, exc)


def copy_of(error: EntityError, limit: int, *, ran: bool = True) -> ActorhubError:
    """Return an error of a handler as a caller in another process gets it: it shares nothing with the entity's.

    It says whether the handler `ran`, whatever the program has set.
    """
    record = _decode_error(encode_error(error, limit))
    record.possibly_executed = ran
    if not is_read_plainly(type(error)):  # any longer: its class statement was
        return _undecodable(record, TypeError("the class has a __getattribute__ or __class__ of its own"))
    try:
        return _domain_error(record, type(error)) if record.domain else _framework_error(record)
    except msgspec.ValidationError as exc:
        return _undecodable(record, exc)
    except BaseException as exc:  # noqa: BLE001 - user code: its class may not be what it should
        return error if _may_have_run(error) is ran else _undecodable(record, exc)


def _undecodable(record: _ErrorRecord, error: BaseException) -> HandlerFailed:
    text = f"{record.message}: its fields cannot be decoded: {summary_of(error)}"
    return HandlerFailed(record.kind.rpartition(":")[2], text, possibly_executed=record.possibly_executed)


def _framework_error(record: _ErrorRecord) -> ActorhubError:
    cls = getattr(errors, record.kind, None)
    if not (isinstance(cls, type) and issubclass(cls, ActorhubError)):
        return HandlerFailed(record.kind, record.message, possibly_executed=record.possibly_executed)
    fields = {name: _decode_any(raw) for name, raw in record.fields.items() if name in _SENT_FIELDS}
    if "retry_after" in fields:
        fields["retry_after"] = msgspec.convert(fields["retry_after"], timedelta)
    if "path" in fields:
        fields["path"] = tuple(fields["path"])
    error: ActorhubError = cls(message=record.message, possibly_executed=record.possibly_executed, **fields)
    return error


def _domain_error(record: _ErrorRecord, cls: type[EntityError] | None) -> ActorhubError:
    if cls is None:
        return HandlerFailed(record.kind.replace(":", "."), record.message, possibly_executed=record.possibly_executed)
    fields = fields_of(cls)
    assert fields is not None
    values = {name: decode(record.fields[name]) for name, decode in fields.decoders().items() if name in record.fields}
    error = cls(**{name: values[name] for name in fields.parameters if name in values})
    vars(error).update(values)  # A `__post_init__` may have changed them once more.
    error.possibly_executed = record.possibly_executed
    return error


def _domain_name(cls: type[EntityError]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _domain_class(name: str) -> type[EntityError] | None:
    """Find the class by module and name, or else by its name if that is unique (a script's module is `__main__`)."""
    known = list(_subclasses(EntityError))
    exact = [cls for cls in known if _domain_name(cls) == name]
    if exact:
        return exact[-1]
    alike = [cls for cls in known if cls.__qualname__ == name.partition(":")[2]]
    return alike[0] if len(alike) == 1 else None


def _subclasses(cls: type[EntityError]) -> Sequence[type[EntityError]]:
    return [found for child in cls.__subclasses__() for found in (child, *_subclasses(child))]
