"""The judge of leaders finds what is wrong in a chronicle, and nothing where all is right."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.leaders.history import Chronicle, Done, Sample, Stored, Tick, Turn, leader_violations
from tests.faults.leaders.hub import LEAD

RIGHT = Chronicle(
    done=[
        Done(1, 5, LEAD, 5, "a", 10.0),
        Done(2, 1, "first", 5, "a", 10.1),
        Done(3, 1, "second", 5, "a", 10.2),
        Done(4, 2, "first", 5, "a", 10.3),
        Done(5, 6, LEAD, 6, "b", 11.1),
        Done(6, 2, "second", 6, "b", 11.2),
    ],
    ticks=[Tick(1, 100, 1, 5, "a", 10.25), Tick(2, 101, 2, 6, "b", 11.15), Tick(3, 103, 3, 6, "b", 13.0)],
    stored=Stored(version=5, epoch=6, number=2, ticks=3),
    skipped=1,
    samples=[
        Sample(1.0, ("lock a",), 5, "a"),
        Sample(2.0, (), 5, "a"),
        Sample(3.0, ("lock b",), 6, "b"),
        Sample(4.0, ("lock b",), 6, None),
    ],
    turns=[Turn(0.5, "become", 5, "a"), Turn(2.5, "become", 6, "b"), Turn(5.0, "lose", 6, "b")],
    ends={"a": 1.5},
)


def without(chronicle: Chronicle, number: int) -> Chronicle:
    """Leave out one step."""
    return replace(chronicle, done=[row for place, row in enumerate(chronicle.done) if place != number])


MISTAKES: dict[str, tuple[Callable[[Chronicle], Chronicle], str]] = {
    "a commit of an earlier epoch comes later": (
        lambda it: replace(it, done=[*it.done, Done(7, 3, "first", 5, "a", 11.3)]),
        "epoch fell",
    ),
    "two leaders commit at the same time": (
        lambda it: replace(it, ticks=[replace(it.ticks[0], at=11.12), *it.ticks[1:]]),
        "epochs 5 and 6 interleave",
    ),
    "two leaders share an epoch": (
        lambda it: replace(it, ticks=[replace(it.ticks[0], incarnation="c"), *it.ticks[1:]]),
        "epoch 5 has leaders",
    ),
    "a step is committed twice": (
        lambda it: replace(it, done=[*it.done, Done(7, 2, "second", 6, "b", 11.3)]),
        "came where (3, 'first') was to come",
    ),
    "a step is left out": (lambda it: without(it, 2), "came where (1, 'second') was to come"),
    "a save is forgotten": (lambda it: replace(it, stored=replace(it.stored, number=0, version=3)), "the state says 0"),
    "a tick is forgotten": (lambda it: replace(it, stored=replace(it.stored, ticks=2, version=4)), "the state says 2"),
    "a version is left out": (lambda it: replace(it, stored=replace(it.stored, version=6)), "version 6 after"),
    "a fire time is committed twice": (
        lambda it: replace(it, ticks=[*it.ticks, Tick(4, 103, 4, 6, "b", 13.1)]),
        "fire time 103 was committed 2 times",
    ),
    "a fire time is left out": (lambda it: replace(it, skipped=0), "1 fire times did not run, 0 were skipped"),
    "a fire time is given up": (lambda it: replace(it, dead=1), "1 fire times became dead letters"),
    "ticks count from where an older leader was": (
        lambda it: replace(it, ticks=[*it.ticks[:2], replace(it.ticks[2], ticks=2)]),
        "the ticks count 2 where 3 was to come",
    ),
    "two sessions have the lock": (
        lambda it: replace(it, samples=[replace(it.samples[0], holders=("lock a", "lock b"))]),
        "several have the lock",
    ),
    "the shard's epoch falls": (
        lambda it: replace(it, samples=[*it.samples, replace(it.samples[0], at=5.0)]),
        "the shard's epoch fell",
    ),
    "the owner changes within an epoch": (
        lambda it: replace(it, samples=[*it.samples[:3], Sample(5.0, ("lock c",), 6, "c")]),
        "the owner changed within an epoch",
    ),
    "a leader begins before the last one stopped": (
        lambda it: replace(it, ends={"a": 2.7}),
        "two led",
    ),
    "a leader that was handed over never stopped": (lambda it: replace(it, ends={}), "two led"),
}


def test_a_right_chronicle_has_no_violations() -> None:
    """A kill between two steps, a takeover, and a skipped fire time break no promise."""
    assert leader_violations(RIGHT) == []


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_of_leaders_is_found(name: str) -> None:
    """Whatever contradicts a promise is named."""
    make, expected = MISTAKES[name]
    found = leader_violations(make(RIGHT))
    assert any(expected in text for text in found), found


def test_a_leader_that_was_frozen_need_not_know_that_it_lost() -> None:
    """It may believe that it leads, so long as it commits nothing."""
    assert leader_violations(replace(RIGHT, ends={}, frozen={"a": [1.0]})) == []
    assert leader_violations(replace(RIGHT, ends={}, frozen={"a": [3.0]})) != []
