"""What forms a group, and how long a failing one is tried."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub.storage.postgres import grouping
from actorhub.storage.postgres.grouping import Entry, Outage, Waiting


def _entry(key: str, party: str = "", size: int = 0, request: int = 0) -> Entry[int, None]:
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    return Entry(request, future, ("t", key), party, size)


def _filled(*entries: Entry[int, None]) -> Waiting[int, None]:
    waiting: Waiting[int, None] = Waiting()
    for entry in entries:
        assert waiting.add_nowait(entry)
    return waiting


def _keys(group: list[Entry[int, None]]) -> str:
    return "".join(entry.key[1] for entry in group)


def test_all_that_waits_goes_together() -> None:
    """One group holds everything, in order, and nothing is left."""
    waiting = _filled(*map(_entry, "abcd"))
    assert _keys(waiting.next_group()) == "abcd"
    assert waiting.next_group() == []
    assert len(waiting) == 0


def test_one_entity_is_once_in_a_group() -> None:
    """The second request of an entity waits for the next group, its neighbours do not."""
    waiting = _filled(*map(_entry, "abaacb"))
    assert [_keys(waiting.next_group()) for _ in range(4)] == ["abc", "ab", "a", ""]


def test_a_group_has_one_party() -> None:
    """Requests of another incarnation wait for the next group."""
    waiting = _filled(_entry("a", "x"), _entry("b", "x"), _entry("c", "y"), _entry("d", "x"))
    assert [_keys(waiting.next_group()) for _ in range(3)] == ["ab", "c", "d"]


def test_a_group_is_bounded_in_number_and_bytes() -> None:
    """The limits hold, and one request above the limit of bytes still goes, alone."""
    waiting = _filled(*(_entry(str(number)) for number in range(grouping.MAX_GROUP + 1)))
    assert len(waiting.next_group()) == grouping.MAX_GROUP
    large = grouping.MAX_GROUP_BYTES
    waiting = _filled(
        _entry("a", size=large + 1), _entry("b", size=large // 2), _entry("c", size=large // 2), _entry("d")
    )
    assert [_keys(waiting.next_group()) for _ in range(2)] == ["a", "bcd"]


def test_a_full_queue_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limits in number or bytes nothing is queued; room comes back with a group."""
    monkeypatch.setattr(grouping, "MAX_WAITING", 3)
    monkeypatch.setattr(grouping, "MAX_WAITING_BYTES", 10)
    waiting = _filled(_entry("a", size=6), _entry("b", size=4))
    assert not waiting.add_nowait(_entry("c", size=1))
    assert waiting.add_nowait(_entry("c"))
    assert not waiting.add_nowait(_entry("d"))
    waiting.next_group()
    assert waiting.add_nowait(_entry("e", size=10))


def test_an_unsettled_group_comes_first_again() -> None:
    """What is given back keeps its place before what came later."""
    waiting = _filled(*map(_entry, "ab"))
    group = waiting.next_group()
    waiting.add_nowait(_entry("a", request=2))
    waiting.give_back(group)
    assert _keys(waiting.next_group()) == "ab"
    assert [entry.request for entry in waiting.next_group()] == [2]


async def test_cancelled_requests_are_dropped() -> None:
    """A request whose future is done takes no place in a group."""
    entries = [Entry(0, asyncio.get_running_loop().create_future(), ("t", key)) for key in "abc"]
    waiting: Waiting[int, None] = Waiting()
    for entry in entries:
        waiting.add_nowait(entry)
    entries[0].future.cancel()
    entries[2].future.cancel()
    assert waiting.next_group() == [entries[1]]
    assert len(waiting) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=30))
def test_each_request_goes_once_and_each_entity_in_order(requests: list[tuple[str, str]]) -> None:
    """Whatever arrives: every request is in exactly one group, and one entity's requests keep their order."""
    waiting = _filled(*(_entry(key, party, request=number) for number, (key, party) in enumerate(requests)))
    gone: list[Entry[int, None]] = []
    while group := waiting.next_group():
        assert len({entry.party for entry in group}) == 1
        assert len({entry.key for entry in group}) == len(group)
        gone += group
    assert sorted(entry.request for entry in gone) == list(range(len(requests)))
    for key in "abc":
        order = [entry.request for entry in gone if entry.key[1] == key]
        assert order == sorted(order)


def test_an_outage_is_waited_out_for_ten_seconds() -> None:
    """Pauses grow from 50 ms to a second with jitter; patience ends ten seconds after the first failure."""
    outage = Outage()
    pauses = [outage.failed(100.0 + number, 0.99) for number in range(8)]
    assert pauses[0] < 0.05
    assert pauses == sorted(pauses)
    assert 0.9 < pauses[-1] <= 1.0
    assert outage.failed(100.0, 0.0) >= 0.5
    assert not outage.too_long(109.9)
    assert outage.too_long(110.0)
    outage.ended()
    assert not outage.too_long(1000.0)
    assert outage.failed(1000.0, 0.0) <= 0.05
