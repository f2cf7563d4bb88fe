"""What forms a batch, and how long a failing one is tried."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub.storage.postgres import batching
from actorhub.storage.postgres.batching import Entry, Outage, Waiting


def _entry(key: str, owner: str = "", size: int = 0, request: int = 0) -> Entry[int, None]:
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    return Entry(request, future, ("t", key), owner, size)


def _filled(*entries: Entry[int, None]) -> Waiting[int, None]:
    waiting: Waiting[int, None] = Waiting()
    for entry in entries:
        assert waiting.add_nowait(entry)
    return waiting


def _keys(batch: list[Entry[int, None]]) -> str:
    return "".join(entry.key[1] for entry in batch)


def test_all_that_waits_goes_together() -> None:
    """One batch holds everything, in order, and nothing is left."""
    waiting = _filled(*map(_entry, "abcd"))
    assert _keys(waiting.next_batch()) == "abcd"
    assert waiting.next_batch() == []
    assert len(waiting) == 0


def test_one_entity_is_once_in_a_batch() -> None:
    """The second request of an entity waits for the next batch, its neighbours do not."""
    waiting = _filled(*map(_entry, "abaacb"))
    assert [_keys(waiting.next_batch()) for _ in range(4)] == ["abc", "ab", "a", ""]


def test_a_batch_has_one_owner() -> None:
    """Requests of another incarnation wait for the next batch."""
    waiting = _filled(_entry("a", "x"), _entry("b", "x"), _entry("c", "y"), _entry("d", "x"))
    assert [_keys(waiting.next_batch()) for _ in range(3)] == ["ab", "c", "d"]


def test_a_batch_is_bounded_in_number_and_bytes() -> None:
    """The limits hold, and one request above the limit of bytes still goes, alone."""
    waiting = _filled(*(_entry(str(number)) for number in range(batching.MAX_BATCH + 1)))
    assert len(waiting.next_batch()) == batching.MAX_BATCH
    large = batching.MAX_BATCH_BYTES
    waiting = _filled(
        _entry("a", size=large + 1), _entry("b", size=large // 2), _entry("c", size=large // 2), _entry("d")
    )
    assert [_keys(waiting.next_batch()) for _ in range(2)] == ["a", "bcd"]


def test_a_full_queue_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limits in number or bytes nothing is queued; room comes back with a batch."""
    monkeypatch.setattr(batching, "MAX_WAITING", 3)
    monkeypatch.setattr(batching, "MAX_WAITING_BYTES", 10)
    waiting = _filled(_entry("a", size=6), _entry("b", size=4))
    assert not waiting.add_nowait(_entry("c", size=1))
    assert waiting.add_nowait(_entry("c"))
    assert not waiting.add_nowait(_entry("d"))
    waiting.next_batch()
    assert waiting.add_nowait(_entry("e", size=10))


def test_an_unsettled_batch_comes_first_again() -> None:
    """What is given back keeps its place before what came later."""
    waiting = _filled(*map(_entry, "ab"))
    batch = waiting.next_batch()
    waiting.add_nowait(_entry("a", request=2))
    waiting.give_back(batch)
    assert _keys(waiting.next_batch()) == "ab"
    assert [entry.request for entry in waiting.next_batch()] == [2]


async def test_cancelled_requests_are_dropped() -> None:
    """A request whose future is done takes no place in a batch."""
    entries = [Entry(0, asyncio.get_running_loop().create_future(), ("t", key)) for key in "abc"]
    waiting: Waiting[int, None] = Waiting()
    for entry in entries:
        waiting.add_nowait(entry)
    entries[0].future.cancel()
    entries[2].future.cancel()
    assert waiting.next_batch() == [entries[1]]
    assert len(waiting) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=30))
def test_each_request_goes_once_and_each_entity_in_order(requests: list[tuple[str, str]]) -> None:
    """Whatever arrives: every request is in exactly one batch, and one entity's requests keep their order."""
    waiting = _filled(*(_entry(key, owner, request=number) for number, (key, owner) in enumerate(requests)))
    gone: list[Entry[int, None]] = []
    while batch := waiting.next_batch():
        assert len({entry.owner for entry in batch}) == 1
        assert len({entry.key for entry in batch}) == len(batch)
        gone += batch
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
