"""What user code raises, as text that can be stored and sent.

An exception may have no text at all (its `__str__` raises), one that UTF-8 cannot hold (half of a surrogate pair, from
`json.loads` or `os.fsdecode`), or megabytes of it; its class may hide its name. None of that may keep the engine from
answering, so no function here fails, and none returns more than it says. Its class may even lie about itself (`is_of`).
"""

import traceback
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, TypeGuard, TypeVar

LONGEST_TEXT: Final = 8 * 1024
"""Bytes of the text of an exception that are kept."""
LONGEST_TRACEBACK: Final = 32 * 1024
"""Bytes of a traceback that are kept, the last ones: they say what failed."""
LONGEST_NAME: Final = 500
"""Bytes of the name of a class of exceptions that are kept."""

K = TypeVar("K")

_LONGEST_VALUE: Final = 80
_MOST_ERRORS: Final = 100
"""Errors of a group that its text has, and those of a group or chain that are formatted with their tracebacks."""
_CUT: Final = "… (shortened)"

# Of `type` itself: a metaclass may have attributes of these names, of any kind.
_name: Final = type.__dict__["__name__"].__get__
_qualified_name: Final = type.__dict__["__qualname__"].__get__
_module: Final = type.__dict__["__module__"].__get__
_cause: Final = BaseException.__dict__["__cause__"].__get__
_parts: Final = BaseExceptionGroup.__dict__["exceptions"].__get__


def encodable(text: str) -> str:
    """Return `text` with whatever UTF-8 cannot hold, and NUL, which Postgres cannot, as an escape of its number."""
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


def shown(value: object) -> str:
    """Return a value as an error shows it: a class by its name, anything long shortened. Never fails."""
    if is_of(value, type):
        name: str = _qualified_name(value)
        return name
    try:
        text = plain(repr(value))
    except Exception:  # noqa: BLE001 - user code: `__repr__` may raise anything
        text = f"<{_qualified_name(type(value))}>"
    return encodable(text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…")


def is_of(value: object, kind: type[K]) -> TypeGuard[K]:
    """Return whether a value is of a class, by its own class. `isinstance` reads `__class__`, which is user code."""
    return issubclass(type(value), kind)


def is_read_plainly(cls: type[BaseException]) -> bool:
    """Return whether attributes of these errors are read without code of the program: then they do not lie or raise."""
    own = (vars(base) for base in cls.__mro__[:-1])
    return cls.__getattribute__ is BaseException.__getattribute__ and not any("__class__" in names for names in own)


def only_error_in(error: BaseException) -> BaseException:
    """Return the error that a group consists of, at any depth; any other error, and a group of several, as it is."""
    errors = _errors_in(error)
    only = next(errors)
    return only if next(errors, None) is None else error


def _errors_in(error: BaseException) -> Iterator[BaseException]:
    """Iterate over the errors in a group, at any depth; any other error is alone."""
    left = [error]
    while left:
        found = left.pop()
        if is_of(found, BaseExceptionGroup):
            left += reversed(_parts(found))
        else:
            yield found


def causes_of(error: BaseException) -> list[BaseException]:
    """Return what an error was raised from, and the errors in it if it is a group."""
    cause = _cause(error)
    causes = [] if cause is None else [cause]
    if is_of(error, BaseExceptionGroup):
        causes += _parts(error)
    return causes


def text_of(error: BaseException) -> str:
    """Return the text of an exception, shortened if it is very long. That of a group has those of its errors."""
    try:
        text, errors = plain(str(error)), islice(_errors_in(error), _MOST_ERRORS)
        if is_of(error, BaseExceptionGroup):
            text += f": {'; '.join(map(summary_of, errors))}"
    except BaseException as exc:  # noqa: BLE001 - user code: `__str__` may raise anything
        text = f"({short_name_of(type(exc))} instead of a text)"
    whole = encodable(text[: LONGEST_TEXT + 1])
    head = _head(whole, LONGEST_TEXT)
    return head if head == whole else f"{head}{_CUT}"


def summary_of(error: BaseException) -> str:
    """Return the name of an exception's class and its text, such as `ValueError: no luck`."""
    name, text = short_name_of(type(error)), text_of(error)
    return f"{name}: {text}" if text else name


def short_name_of(cls: type) -> str:
    """Return the name of a class of exceptions."""
    return _head(_name(cls), LONGEST_NAME)


def name_of(cls: type) -> str:
    """Return the qualified name of a class of exceptions, without `builtins`."""
    try:
        module: Any = plain(_module(cls))
    except BaseException:  # noqa: BLE001 - user code: `__module__` may be of any kind
        module = "?"
    name = _qualified_name(cls)
    return _head(name if module == "builtins" else f"{module}.{name}", LONGEST_NAME)


def is_printable(error: BaseException) -> bool:
    """Return whether a log can show the exception as it is: its traceback can be encoded, and is not endless."""
    try:
        text = _formatted(error)
        return (
            text is not None
            and len(text) <= LONGEST_TRACEBACK
            and len(text.encode()) <= LONGEST_TRACEBACK
            and "\x00" not in text
        )
    except BaseException:  # noqa: BLE001 - user code: notes and attributes may be of any kind
        return False


def traceback_of(error: BaseException) -> str:
    """Return the formatted traceback of an exception, shortened if it is very long."""
    try:
        text = _formatted(error)
        if text is None:
            frames = "".join(traceback.format_tb(error.__traceback__))
            text = f"{frames}(more errors than a traceback shows) {summary_of(error)}\n"
    except BaseException as exc:  # noqa: BLE001 - user code: notes and attributes may be of any kind
        name = short_name_of(type(exc))
        text = f"({name} instead of a traceback)\n{name_of(type(error))}: {text_of(error)}\n"
    whole = encodable(text[-LONGEST_TRACEBACK - 1 :])
    tail = whole.encode()[-LONGEST_TRACEBACK:].decode(errors="ignore")
    return tail if tail == whole else f"{_CUT}\n{tail}"


def _formatted(error: BaseException) -> str | None:
    """Return the traceback with those of all errors in it and before it; `None` if they are too many.

    Thousands, as a handler may collect, would take seconds, in which nothing else runs.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        found = left.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        parts = _parts(found) if is_of(found, BaseExceptionGroup) else ()
        if len(seen) + len(parts) > _MOST_ERRORS:
            return None
        left += (found.__cause__, found.__context__, *parts)
    return "".join(traceback.format_exception(error))


def plain(text: str) -> str:
    """Return `text` as a `str` and nothing else."""
    # What user code returns may be of a subclass of `str`, whose methods may do anything; `join` uses none of them.
    return "".join((text,))  # noqa: FLY002 - an f-string would call `__format__`


def _head(text: str, limit: int) -> str:
    return encodable(text[: limit + 1]).encode()[:limit].decode(errors="ignore")
