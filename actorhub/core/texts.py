"""What user code raises, as text that can be stored and sent.

An exception may have no text at all (its `__str__` raises), one that UTF-8 cannot hold (half of a surrogate pair, from
`json.loads` or `os.fsdecode`), or megabytes of it. None of that may keep the engine from answering.
"""

import traceback
from typing import Final

LONGEST_TEXT: Final = 10_000
"""Characters of the text of an exception that are kept."""
LONGEST_TRACEBACK: Final = 50_000
"""Characters of a traceback that are kept, the last ones: they say what failed."""
LONGEST_NAME: Final = 500
"""Characters of the name of a class of exceptions that are kept."""


def encodable(text: str) -> str:
    """Return `text` with whatever UTF-8 cannot hold written as an escape of its number."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def text_of(error: BaseException) -> str:
    """Return the text of an exception, shortened if it is very long. Never fails."""
    try:
        text = str(error)
    except BaseException as exc:  # noqa: BLE001 - user code: `__str__` may raise anything
        text = f"({type(exc).__name__} instead of a text)"
    text = encodable(text[: LONGEST_TEXT + 1])
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… (shortened)"


def summary_of(error: BaseException) -> str:
    """Return the name of an exception's class and its text, such as `ValueError: no luck`. Never fails."""
    return f"{type(error).__name__}: {text_of(error)}"


def name_of(cls: type) -> str:
    """Return the qualified name of a class of exceptions, without `builtins`. Never fails."""
    try:
        module, name = cls.__module__, cls.__qualname__
        text = name if module == "builtins" else f"{module}.{name}"
    except Exception:  # noqa: BLE001 - user code: a metaclass may have attributes of any kind
        text = "Exception"
    return encodable(text[:LONGEST_NAME])


def is_printable(error: BaseException) -> bool:
    """Return whether a log can show the exception as it is: its traceback can be encoded, and is not endless."""
    try:
        text = "".join(traceback.format_exception(error))
        text.encode()
    except BaseException:  # noqa: BLE001 - user code: notes and attributes may be of any kind
        return False
    return len(text) <= LONGEST_TRACEBACK


def traceback_of(error: BaseException) -> str:
    """Return the formatted traceback of an exception, shortened if it is very long. Never fails."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as exc:  # noqa: BLE001 - user code: notes and attributes may be of any kind
        text = f"({type(exc).__name__} instead of a traceback)\n{name_of(type(error))}: {text_of(error)}\n"
    text = text if len(text) <= LONGEST_TRACEBACK else f"… (shortened)\n{text[-LONGEST_TRACEBACK:]}"
    return encodable(text)
