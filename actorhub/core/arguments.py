"""Checks of what callers pass, made before anything is sent: what nobody can encode or read would fail elsewhere.

What becomes part of a message, or names one (ids, keys, headers, tokens), is refused with `MalformedMessage`. How and
when a call is made (durations, times) is checked like the arguments of any Python function: `TypeError` for a value of
another type, `ValueError` for one that makes no sense. A value may be of a subclass whose methods do anything: those of
the class itself are used.
"""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, cast

from actorhub.core.errors import MalformedMessage
from actorhub.core.texts import is_of, plain, short_name_of, shown, summary_of

MAX_HEADER_BYTES: Final = 64 << 10
"""Headers of one call in UTF-8, names and values."""
LONGEST: Final = timedelta(days=1_000_000)
"""Nothing may take longer."""

_IDS: Final = (-1 << 63, 1 << 63)
"""A signed 64-bit column."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def seconds_of(duration: object, name: str) -> float:
    """Return a duration in seconds.

    Raises:
        TypeError: It is not a `timedelta`.
        ValueError: It is longer than a million days.
    """
    if not is_of(duration, timedelta):
        raise TypeError(f"{name}={shown(duration)} must be a timedelta, such as timedelta(seconds=2)")
    seconds = timedelta.total_seconds(duration)
    if seconds > LONGEST.total_seconds():
        raise ValueError(f"{name}={timedelta.__str__(duration)} is longer than {LONGEST.days} days")
    return seconds


def limit_of(duration: object, name: str) -> float | None:
    """Return a limit in seconds; `None` stands for no limit.

    Raises:
        TypeError: It is neither a `timedelta` nor `None`.
        ValueError: It is not more than zero, or is longer than a million days.
    """
    if duration is None:
        return None
    seconds = seconds_of(duration, name)
    if seconds <= 0:
        raise ValueError(f"{name}={timedelta(seconds=seconds)} must be more than zero, or None for no limit")
    return seconds


def due_time(deliver_at: object) -> float:
    """Return a time in seconds since the Unix epoch; one before the epoch becomes the epoch's first second.

    Raises:
        TypeError: It is not a `datetime`.
        ValueError: It has no time zone, or one that fails.
    """
    if not is_of(deliver_at, datetime):
        raise TypeError(
            f"deliver_at={shown(deliver_at)} must be a datetime with a time zone, such as datetime.now(UTC)"
        )
    try:
        has_zone = datetime.utcoffset(deliver_at) is not None
        due = datetime.timestamp(deliver_at) if has_zone else 0.0
    except Exception as exc:
        raise ValueError(f"deliver_at={shown(deliver_at)}: its time zone failed: {summary_of(exc)}") from exc
    if not has_zone:
        raise ValueError(f"deliver_at={shown(deliver_at)} has no time zone: use e.g. datetime.now(UTC)")
    return max(due, 1.0)


def check_message_id(message_id: object) -> int:
    """Return the id of a durable message.

    Raises:
        MalformedMessage: No message can have it.
    """
    number = int.__index__(message_id) if is_of(message_id, int) and not is_of(message_id, bool) else None
    if number is None or not _IDS[0] <= number < _IDS[1]:
        raise MalformedMessage(f"{shown(message_id)} is not the id of a message: use the number that tell returned")
    return number


def check_text(value: object, what: str) -> str:
    """Return text that can be encoded, as a plain `str`: msgspec encodes no subclass, and two may hash differently.

    Raises:
        MalformedMessage: It is not text, or UTF-8 cannot hold it.
    """
    if not is_of(value, str):
        raise MalformedMessage(f"{what} must be a string, not {short_name_of(type(value))}: {shown(value)}")
    text = plain(value)
    if not text.isascii() and _SURROGATE.search(text):
        raise MalformedMessage(f"{what} {text[:80]!r} contains half of a surrogate pair, which is not text: remove it")
    return text


def check_name(value: object, what: str, max_bytes: int) -> str:
    """Return text that can name something; empty text passes.

    Raises:
        MalformedMessage: It is not text, is longer than `max_bytes` in UTF-8, or contains control characters.
    """
    text = check_text(value, what)
    if _CONTROL.search(text):
        raise MalformedMessage(f"{what} {text[:80]!r} contains a control character: remove it")
    if len(text) * 4 > max_bytes and (size := len(text.encode())) > max_bytes:
        raise MalformedMessage(f"{what} {text[:40]!r}… has {size} bytes; the limit is {max_bytes}: shorten or hash it")
    return text


def check_headers(headers: object) -> dict[str, str]:
    """Return the headers of a call.

    Raises:
        MalformedMessage: They are not a mapping of text to text, cannot be read, or are too large.
    """
    if not issubclass(type(headers), Mapping):
        raise MalformedMessage(f"headers must be a mapping of text to text, not {short_name_of(type(headers))}")
    try:
        items = [(key, value) for key, value in cast("Mapping[object, object]", headers).items()]
    except Exception as exc:
        raise MalformedMessage(f"headers cannot be read: {summary_of(exc)}") from exc
    checked: dict[str, str] = {}
    size = 0
    for key, value in items:
        name = check_text(key, "the name of a header")
        checked[name] = text = check_text(value, f"header {name[:80]!r}")
        size += len(name.encode()) + len(text.encode())
    if size > MAX_HEADER_BYTES:
        raise MalformedMessage(f"headers have {size} bytes; the limit is {MAX_HEADER_BYTES}: use an argument instead")
    return checked
