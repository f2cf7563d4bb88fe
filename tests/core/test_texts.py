"""Texts of exceptions: whatever the exception is like, there is one, it can be encoded, and it is not endless."""

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub import ActorhubError, EntityError, HandlerFailed
from actorhub.core.codec import decode_error, encode_error
from actorhub.core.texts import (
    LONGEST_TEXT,
    LONGEST_TRACEBACK,
    encodable,
    is_printable,
    name_of,
    summary_of,
    text_of,
    traceback_of,
)

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=50)
"""Lone surrogates and control characters included."""


class _Nameless(type):
    def __getattribute__(cls, name: str) -> object:
        if name in ("__qualname__", "__name__", "__module__"):
            raise SystemExit
        return super().__getattribute__(name)


class Note(EntityError):
    """A domain error with a text of its own."""

    text: str


@given(ANY_TEXT)
def test_a_text_that_can_be_encoded_is_left_as_it_is(text: str) -> None:
    """Of any other every character is still there, as itself or as an escape."""
    made = encodable(text)
    made.encode()
    if not any("\ud800" <= character <= "\udfff" or character == "\0" for character in text):
        assert made == text
    else:
        assert len(made) > len(text)


@given(ANY_TEXT, st.integers(1, 4 * LONGEST_TEXT))
def test_texts_and_tracebacks_have_an_end(text: str, count: int) -> None:
    """However long the text of the exception is, and whatever it holds."""
    error = ValueError((text * count)[: 3 * LONGEST_TRACEBACK])
    error.add_note(text)
    assert len(text_of(error).encode()) <= LONGEST_TEXT + 20
    assert len(traceback_of(error).encode()) <= LONGEST_TRACEBACK + 20
    assert text_of(error).endswith("(shortened)") == (len(encodable(str(error)).encode()) > LONGEST_TEXT)
    assert name_of(type(error)) == "ValueError"


@pytest.mark.parametrize("shape", ["a group", "groups in groups", "a chain", "a chain of groups"])
def test_many_errors_cost_no_more_than_some(shape: str) -> None:
    """However they hang together, few of them are formatted; a traceback with all would take seconds."""
    shown: list[int] = []

    class Counted(Exception):
        def __str__(self) -> str:
            shown.append(1)
            return "counted"

    error = cast("Exception", Counted())
    match shape:
        case "a group":
            error = ExceptionGroup("many", [Counted() for _ in range(20_000)])
        case "groups in groups":
            for _ in range(100):
                error = ExceptionGroup("many", [error, *(Counted() for _ in range(200))])
        case "a chain":
            for _ in range(5_000):
                after = Counted()
                after.__cause__, error = error, after
        case _:
            for _ in range(500):
                group = ExceptionGroup("many", [Counted() for _ in range(40)])
                group.__context__, error = error, group
    assert "ount" in traceback_of(error)
    assert not is_printable(error)
    assert text_of(error)
    assert len(shown) < 500


def test_a_class_without_a_name_has_one() -> None:
    """Even a metaclass may fail, and what `__str__` and `__module__` return may not be an ordinary string."""
    nameless = _Nameless("E", (Exception,), {"__module__": "m", "__str__": _raise_nameless})
    assert name_of(nameless) == "m.E"
    assert text_of(nameless()) == "(E instead of a text)"
    assert summary_of(nameless()) == "E: (E instead of a text)"
    odd = type("F", (Exception,), {"__module__": 5, "__str__": lambda _: _Unsliceable("text")})
    assert name_of(odd) == "?.F"
    assert summary_of(odd()) == "F: text"
    assert not is_printable(nameless())
    assert "E: (E instead of a text)" in traceback_of(nameless())
    assert summary_of(Exception()) == "Exception"


def _raise_nameless(_: BaseException) -> str:
    raise cast("type[BaseException]", _Nameless("E", (BaseException,), {}))


class _Unsliceable(str):
    __slots__ = ()

    def __getitem__(self, key: object) -> str:
        raise KeyboardInterrupt

    def encode(self, *_: object, **__: object) -> bytes:
        raise SystemExit


@given(st.sampled_from([ActorhubError, ValueError, HandlerFailed, Note]), ANY_TEXT, st.integers(100, 100_000))
def test_any_error_has_a_wire_form_within_the_limit(cls: type[Exception], text: str, count: int) -> None:
    """It comes back as an error of ours, with what it says about whether the handler ran."""
    made = cls(text=text * count) if cls is Note else cls(text * count)
    error = made if isinstance(made, ActorhubError) else HandlerFailed("ValueError", text_of(made))
    data = encode_error(error, 100_000)
    assert len(data) <= 100_000
    came = decode_error(data)
    assert isinstance(came, type(error) | HandlerFailed)
    assert came.possibly_executed == error.possibly_executed
