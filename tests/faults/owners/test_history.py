"""The judge of owners finds what is wrong, and nothing where nothing is."""

from dataclasses import replace

from tests.faults.cluster.processes import Freeze
from tests.faults.owners.history import Event, History, violations


def _history(*events: Event) -> History:
    """Return what happened to one key, of which 1 was acknowledged at second 1, and 2 at second 2."""
    return History(events, {"k": [(1.0, 1), (2.0, 2)]})


def test_a_read_may_return_what_was_acknowledged_when_it_began_or_more() -> None:
    """Also what is acknowledged later."""
    reads = [Event(0.5, "read", "k", 0), Event(0.5, "read", "k", 2), Event(1.5, "read", "k", 1)]
    assert violations(_history(*reads, Event(2.5, "read", "k", 2))) == []


def test_a_read_that_returns_less_is_stale() -> None:
    """It says by how much."""
    [text] = violations(_history(Event(2.5, "read", "k", 1)))
    assert text == "k: 1 stale reads, one of 1 0.500 s after the next was acknowledged"


def test_an_entity_that_acts_for_an_owner_before_is_found() -> None:
    """Epochs never fall."""
    acts = [Event(1.0, "act", "k", 1), Event(2.0, "act", "k", 2), Event(2.1, "act", "k", 1)]
    assert violations(_history(*acts[:2])) == []
    assert violations(_history(*acts)) == ["k acted at epoch 1 0.100 s after it did at 2"]


def test_a_process_that_was_stopped_may_end_what_it_had_begun() -> None:
    """For a moment after it goes on, and no longer."""
    acts = [Event(1.0, "act", "k", 1, "a"), Event(2.0, "act", "k", 2, "b"), Event(2.6, "act", "k", 1, "a")]
    assert violations(replace(_history(*acts), freezes=[Freeze("i", "a", 1.5, 2.5)])) == []
    assert violations(replace(_history(*acts), freezes=[Freeze("i", "a", 1.5, 2.2)])) != []
    assert violations(replace(_history(*acts), freezes=[Freeze("i", "b", 1.5, 2.5)])) != []


def test_what_was_judged_can_be_forgotten_without_missing_what_comes() -> None:
    """Of each number the last is kept, and the last act."""
    settled = _history(Event(1.5, "act", "k", 3), Event(1.5, "read", "k", 1)).settled()
    assert settled.acknowledged == {"k": [(1.0, 1), (2.0, 2)]}
    later = replace(settled, acknowledged={"k": [(1.0, 1), (2.0, 2), (99.0, 3)]})
    assert later.settled().acknowledged == {"k": [(2.0, 2), (99.0, 3)]}
    events = [*settled.events, Event(3.0, "act", "k", 2), Event(3.0, "read", "k", 1)]
    assert len(violations(replace(settled, events=events))) == 2


def test_a_leader_that_begins_before_its_predecessor_was_told_is_found() -> None:
    """Whether that is told later, or never."""
    reigns = [Event(1.0, "become", "leader", 1), Event(2.0, "become", "leader", 2)]
    assert violations(_history(*reigns, Event(1.9, "lose", "leader", 1))) == []
    assert violations(_history(*reigns, Event(2.5, "lose", "leader", 1))) != []
    assert violations(_history(*reigns)) != []
