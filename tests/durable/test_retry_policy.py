"""The pauses between the runs of a failing durable message, and the settings that are refused."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub.core.retry import DEFAULT_RETRY, Retry

CHANCES = st.floats(0, 1, exclude_max=True)
FAILED = st.integers(1, 1000)


@st.composite
def retries(draw: st.DrawFn) -> Retry:
    """Any valid settings, including extreme ones."""
    initial = draw(st.timedeltas(timedelta(0), timedelta(days=1000)))
    return Retry(
        attempts=draw(st.integers(1, 1000)),
        initial=initial,
        maximum=initial + draw(st.timedeltas(timedelta(0), timedelta(days=1000))),
        multiplier=draw(st.floats(1, allow_nan=False, allow_infinity=False) | st.integers(1, 10**6)),
    )


def test_pauses_double_from_the_initial_one_up_to_the_longest() -> None:
    """At the mean of the jitter, each pause is twice the one before, up to the maximum."""
    retry = Retry(initial=timedelta(milliseconds=100), maximum=timedelta(seconds=1))
    pauses = [retry.pause(failed, 0.5) / 0.75 for failed in range(1, 7)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 1])


def test_a_slowly_growing_pause_reaches_its_maximum_too() -> None:
    """Pauses stay valid for the greatest number of attempts."""
    retry = Retry(attempts=1000, initial=timedelta(milliseconds=1), maximum=timedelta(seconds=10), multiplier=1.01)
    assert retry.pause(100, 0.5) < retry.pause(500, 0.5) < 0.75 * 10
    assert retry.pause(999, 0.5) == pytest.approx(0.75 * 10)


@given(retry=retries(), failed=FAILED, chance=CHANCES)
def test_every_pause_lies_between_half_of_its_length_and_the_whole(retry: Retry, failed: int, chance: float) -> None:
    """Jitter spreads messages that failed together, between half of the pause and the whole."""
    shortest = retry.pause(failed, 0)
    assert shortest <= retry.pause(failed, chance) <= 2 * shortest
    assert retry.initial.total_seconds() / 2 <= shortest <= retry.maximum.total_seconds() / 2


@given(retry=retries(), failed=FAILED, chance=CHANCES)
def test_no_pause_is_shorter_than_the_one_before(retry: Retry, failed: int, chance: float) -> None:
    """With equal jitter, pauses never shrink, whatever the settings."""
    assert retry.pause(failed, chance) <= retry.pause(failed + 1, chance)


@given(failed=FAILED, chance=CHANCES, multiplier=st.floats(1, 1e300))
def test_without_an_initial_pause_there_is_none_at_all(failed: int, chance: float, multiplier: float) -> None:
    """An initial pause of zero stays zero, however large the multiplier is."""
    assert Retry(initial=timedelta(0), multiplier=multiplier).pause(failed, chance) == 0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"attempts": 0}, r"Retry: attempts=0 must be from 1 to 1000"),
        ({"attempts": 1001}, r"attempts=1001 must be from 1 to 1000"),
        ({"initial": timedelta(seconds=-1)}, r"Retry: initial=.* must not be negative, nor more than maximum="),
        ({"initial": timedelta(minutes=1)}, r"initial=0:01:00 must not be negative, nor more than maximum=0:00:30"),
        ({"multiplier": 0.9}, r"multiplier=0\.9 must be a number of at least 1"),
        ({"multiplier": float("nan")}, r"multiplier=nan must be a number of at least 1"),
        ({"multiplier": float("inf")}, r"multiplier=inf must be a number of at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], text: str) -> None:
    """The error names the setting, its value, and what is allowed."""
    with pytest.raises(ValueError, match=text):
        Retry(**settings)


def test_the_default_gives_up_after_a_few_seconds() -> None:
    """By default there are five runs within 1.5 s, so that a mistake shows soon."""
    assert Retry() == DEFAULT_RETRY
    assert DEFAULT_RETRY.attempts == 5
    assert sum(DEFAULT_RETRY.pause(failed, 0.999) for failed in range(1, 5)) == pytest.approx(1.5, rel=0.01)
