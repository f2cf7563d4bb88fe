"""Texts that come from errors, as Postgres can store them."""

from typing import Final

_ERROR_TEXT_BYTES: Final = 2048
_TRACEBACK_BYTES: Final = 8192


def error_text(text: str) -> str:
    """Return the beginning of `text` as Postgres can store it."""
    return _storable(text)[:_ERROR_TEXT_BYTES].decode(errors="ignore")


def traceback_text(text: str) -> str:
    """Return the end of `text`, which says most, as Postgres can store it."""
    return _storable(text)[-_TRACEBACK_BYTES:].decode(errors="ignore")


def _storable(text: str) -> bytes:
    return text.replace("\0", "\ufffd").encode(errors="replace")
