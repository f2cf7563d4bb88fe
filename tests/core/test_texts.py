"""Texts of exceptions: whatever the exception is like, there is one, it can be encoded, and it is not endless."""

from hypothesis import given
from hypothesis import strategies as st

from actorhub import ActorhubError, EntityError, HandlerFailed
from actorhub.core.codec import decode_error, encode_error
from actorhub.core.texts import LONGEST_TEXT, LONGEST_TRACEBACK, encodable, name_of, text_of, traceback_of

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=50)
"""Lone surrogates and control characters included."""


class _Nameless(type):
    def __getattribute__(cls, name: str) -> object:
        if name == "__qualname__":
            raise LookupError
        return super().__getattribute__(name)


class Note(EntityError):
    """A domain error with a text of its own."""

    text: str


@given(ANY_TEXT)
def test_a_text_that_can_be_encoded_is_left_as_it_is(text: str) -> None:
    """Of any other every character is still there, as itself or as an escape."""
    made = encodable(text)
    made.encode()
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert made == text
    else:
        assert len(made) > len(text)


@given(ANY_TEXT, st.integers(1, 4 * LONGEST_TEXT))
def test_texts_and_tracebacks_have_an_end(text: str, count: int) -> None:
    """However long the text of the exception is, and whatever it holds."""
    error = ValueError((text * count)[: 3 * LONGEST_TRACEBACK])
    error.add_note(text)
    assert len(text_of(error).encode(errors="strict")) <= 8 * LONGEST_TEXT
    assert len(traceback_of(error)) <= 7 * LONGEST_TRACEBACK
    assert name_of(type(error)) == "ValueError"


def test_a_class_without_a_name_has_one() -> None:
    """Even a metaclass may fail."""
    assert name_of(_Nameless("E", (Exception,), {})) == "Exception"


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
