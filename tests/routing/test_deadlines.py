"""One sweeper for every deadline."""

import asyncio

from actorhub.core.clock import SystemClock
from actorhub.engine.model.records import FOREVER
from actorhub.engine.routing.deadlines import Deadlines
from actorhub.testing import until


class Item:
    """Something with a deadline, that notes when it expired."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.expired_at: list[float] = []


CLOCK = SystemClock()


def _table() -> Deadlines[Item]:
    def expired(item: Item) -> None:
        item.expired_at.append(CLOCK.monotonic())

    return Deadlines(asyncio.get_running_loop(), CLOCK, expired)


async def test_items_expire_once_and_never_early() -> None:
    """Each item is called back after its deadline, within a sweep and what the machine adds, in order of deadlines."""
    table = _table()
    now = CLOCK.monotonic()
    items = [Item(now + n / 1000) for n in range(0, 300, 7)]
    for item in items:
        table.add(item)
    assert table.size == len(items)
    await until(lambda: table.size == 0, deadline=2)
    assert all(len(item.expired_at) == 1 for item in items)
    assert all(0 <= item.expired_at[0] - item.deadline < 0.5 for item in items)
    times = [item.expired_at[0] for item in items]
    assert times == sorted(times)


async def test_dropped_items_never_expire() -> None:
    """Dropping is final, can be repeated, and counts."""
    table = _table()
    soon, never = Item(CLOCK.monotonic() + 0.03), Item(CLOCK.monotonic() + 0.03)
    table.add(soon)
    table.add(never)
    table.drop(never)
    table.drop(never)
    assert table.size == 1
    await until(lambda: bool(soon.expired_at), deadline=2)
    table.drop(soon)
    assert never.expired_at == []
    assert table.size == 0


async def test_an_infinite_deadline_is_counted_and_never_expires() -> None:
    """Calls that wait forever count towards the limit, and disturb the sweeper for nobody else."""
    table = _table()
    forever, soon = Item(FOREVER), Item(CLOCK.monotonic() + 0.02)
    table.add(forever)
    table.add(soon)
    await until(lambda: bool(soon.expired_at), deadline=2)
    assert table.size == 1
    assert forever.expired_at == []
    table.drop(forever)
    assert table.size == 0


async def test_a_callback_may_add_and_drop_items() -> None:
    """What expires may be given a later deadline, and another item may be dropped, from inside the callback."""
    seen: list[str] = []

    class Named(Item):
        name = ""

    def expired(item: Item) -> None:
        assert isinstance(item, Named)
        seen.append(item.name)
        table.drop(second)
        if len(seen) < 3:
            item.deadline = CLOCK.monotonic() + 0.02
            table.add(item)

    table: Deadlines[Item] = Deadlines(asyncio.get_running_loop(), CLOCK, expired)
    first, second = Named(CLOCK.monotonic() + 0.01), Named(CLOCK.monotonic() + 10)
    first.name, second.name = "first", "second"
    table.add(first)
    table.add(second)
    await until(lambda: len(seen) == 3, deadline=3)
    assert seen == ["first"] * 3
    assert table.size == 0


async def test_a_closed_table_calls_nobody() -> None:
    """After close nothing expires."""
    table = _table()
    item = Item(CLOCK.monotonic() + 0.02)
    table.add(item)
    table.close()
    await asyncio.sleep(0.12)
    assert item.expired_at == []
    assert table.size == 0
