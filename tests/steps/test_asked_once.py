"""What a durable run asks and tells is sent once, however often the run is repeated, without a key of the user's."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from actorhub import CallTimeout, Cluster, HandlerFailed, MessageCancelled, current
from actorhub.storage.message_ports import MessageFilter
from actorhub.testing import MemoryCluster
from tests.steps.bank import Bank, Line, bank, paid
from tests.steps.entities import Clerk, Declined, doing, hub, owner
from tests.support.gates import failure, gates, outcomes, soon

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the clerks do."""
    doing.clear()


def fails_until(runs: int) -> None:
    """End the handler with an exception that nothing asked for has raised, unless this is a later run of it."""
    if len(gates["a"].log) < runs:
        raise RuntimeError("on purpose")


async def test_an_ask_of_a_run_that_is_repeated_is_answered_by_the_first(anywhere: Cluster) -> None:
    """The later runs of the handler get the reply of the message that the first one sent."""

    async def work(_: Clerk) -> list[int]:
        replies = [await bank().pay("rent"), await bank().pay("tax")]
        fails_until(3)
        return replies

    doing["a"] = work
    assert await anywhere.client(Clerk)("a").work() == [1, 2]
    assert await paid(anywhere) == ["rent", "tax"]
    assert len(gates["a"].log) == 3
    assert await anywhere.client(Clerk)("a").work() == [3, 4], "another message asks for messages of its own"


async def test_an_ask_of_a_step_that_is_repeated_is_answered_by_the_first(anywhere: Cluster) -> None:
    """The step's result was not stored, so it runs again, and pays once."""

    async def pay() -> int:
        paid = await bank().pay("rent")
        fails_until(2)
        return paid

    async def work(_: Clerk) -> int:
        return await current().step("pay", pay) + await current().step("pay again", bank().pay, "rent")

    doing["a"] = work
    assert await anywhere.client(Clerk)("a").work() == 3
    assert await paid(anywhere) == ["rent", "rent"], "one for each step"


@pytest.mark.parametrize("in_a_step", [True, False])
async def test_an_ask_that_was_cancelled_is_cancelled_for_each_run(anywhere: Cluster, in_a_step: bool) -> None:
    """The repeated run gets the same error, and whoever was asked goes on with other messages."""

    async def work(_: Clerk) -> str:
        try:
            if in_a_step:
                await current().step("pay", bank().pay_slowly, "rent")
            else:
                await bank().pay_slowly("rent")
        except MessageCancelled:
            fails_until(3)
            return "cancelled"
        return "paid"

    doing["a"] = work
    working = soon(anywhere.client(Clerk)("a").work())
    await gates["bank"].came()
    assert await anywhere.cancel(int(gates["slow"].log[0]))
    async with asyncio.timeout(10):
        assert await working == "cancelled"
        assert len(gates["a"].log) == 3
        assert await anywhere.client(Bank)("b").pay("tax") == 1


@pytest.mark.parametrize("in_a_step", [True, False])
async def test_an_ask_under_way_when_its_runner_dies_is_joined(memory: MemoryCluster, in_a_step: bool) -> None:
    """The next owner's run waits for the message that the killed one sent."""
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    banks = owner(memory, client, Bank, "b")
    clerk = next(name for name in map(str, range(99)) if owner(memory, client, Clerk, name) is not banks)

    async def work(_: Clerk) -> int:
        if in_a_step:
            return await current().step("pay", bank().pay_slowly, "rent")
        return await bank().pay_slowly("rent")

    doing[clerk] = work
    asked = soon(client.client(Clerk)(clerk).work())
    await gates["bank"].came()
    await memory.kill(owner(memory, client, Clerk, clerk))
    async with asyncio.timeout(10):
        while len(gates[clerk].log) < 2:
            await asyncio.sleep(0.005)
        gates["bank"].open()
        assert await asked == 1
    assert await paid(client) == ["rent"]


async def test_equal_asks_of_one_run_are_as_many_messages(anywhere: Cluster) -> None:
    """One after the other or at the same time: each is one message, in each of the runs the same one."""

    async def work(_: Clerk) -> None:
        await bank().pay("rent")
        async with asyncio.TaskGroup() as tasks:
            for _task in range(5):
                tasks.create_task(bank().pay("rent"))
        fails_until(3)

    doing["a"] = work
    await anywhere.client(Clerk)("a").work()
    assert await paid(anywhere) == ["rent"] * 6


async def test_a_tell_that_leaves_at_once_is_sent_once(anywhere: Cluster) -> None:
    """That is one by a connection of the program's, which no commit of the run sends; it returns the first one's id."""
    ids: list[int] = []

    async def work(_: Clerk) -> None:
        ids.append(await anywhere.tell(anywhere.client(Bank)("b").pay("rent")))
        fails_until(2)

    doing["a"] = work
    await anywhere.client(Clerk)("a").work()
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert await anywhere.reply(ids[0]) == 1
    assert await paid(anywhere) == ["rent"]


async def test_a_repetition_that_asks_for_something_else_makes_another_ask(anywhere: Cluster) -> None:
    """Other arguments are another message, not a key that is used with another payload."""

    async def work(_: Clerk) -> int:
        reply = await bank().pay(f"rent of run {len(gates['a'].log)}")
        fails_until(2)
        return reply

    doing["a"] = work
    assert await anywhere.client(Clerk)("a").work() == 2


async def test_equal_arguments_are_one_message_whatever_they_are_made_of(anywhere: Cluster) -> None:
    """An int in a float's place is a float in the next run, whose state was loaded; and defaults need not be said."""

    async def work(_: Clerk) -> None:
        if len(gates["a"].log) == 1:
            lines: Any = (Line(3, {"b", "a", "c"}), Line(4))
            await bank().transfer(300, lines=lines)
        else:
            await bank().transfer(300.0, lines=[Line(3.0, {"c", "b", "a"}, ""), Line(4.0)], urgent=False)
        fails_until(3)

    doing["a"] = work
    await anywhere.client(Clerk)("a").work()
    assert await paid(anywhere) == ["300.0 for 2"]


async def test_an_error_that_a_run_handled_is_what_its_repetition_gets(anywhere: Cluster) -> None:
    """What the run did about it is done: the next run must not find the same ask successful."""
    seen: list[str] = []

    async def work(_: Clerk) -> None:
        try:
            await bank().decline("rent")
        except Declined as error:
            seen.append(error.why)
        fails_until(3)

    doing["a"] = work
    await anywhere.client(Clerk)("a").work()
    assert seen == ["rent number 1"] * 3
    assert gates["declined"].log == ["rent"]


async def pay_wrapped(what: str) -> int:
    """Raise another error than the bank's."""
    try:
        return await bank().try_to_pay(what)
    except HandlerFailed as error:
        raise LookupError("no money today") from error


async def pay_in_a_group(what: str) -> int:
    """Raise the bank's error in a group."""
    async with asyncio.TaskGroup() as tasks:
        paying = tasks.create_task(bank().try_to_pay(what))
    return paying.result()


async def pay_plainly(what: str) -> int:
    """Raise the bank's error as it is."""
    return await bank().try_to_pay(what)


@pytest.mark.parametrize("pay", [pay_plainly, pay_wrapped, pay_in_a_group])
@pytest.mark.parametrize("in_a_step", [True, False])
async def test_an_ask_that_failed_the_run_is_made_again_by_the_next(
    anywhere: Cluster, pay: Callable[[str], Awaitable[int]], in_a_step: bool
) -> None:
    """It and no other: what the failed run had asked for successfully keeps its reply."""

    async def work(_: Clerk) -> list[int]:
        first = await bank().pay("tax")
        return [first, await (current().step("pay", pay, "rent") if in_a_step else pay("rent"))]

    doing["a"] = work
    assert await anywhere.client(Clerk)("a").work() == [1, 2]
    assert await paid(anywhere) == ["tax", "rent"]
    assert gates["tries"].entered == 4, "three attempts of the message that became a dead letter, one of the next"
    assert len(gates["a"].log) == 2


async def test_a_run_that_asks_again_after_an_error_sends_a_second_message(anywhere: Cluster) -> None:
    """It has seen how the first one ended; a repetition sees the same error, and gets the second one's reply."""

    async def work(_: Clerk) -> int:
        await failure(bank().try_to_pay("rent"))
        reply = await bank().try_to_pay("rent")
        fails_until(2)
        return reply

    doing["a"] = work
    assert await anywhere.client(Clerk)("a").work() == 1
    assert gates["tries"].entered == 4


async def test_a_run_that_asks_again_after_a_timeout_waits_for_the_first_message(anywhere: Cluster) -> None:
    """It cannot know how that one ends, and does not want two; so it is if the ask was cancelled."""

    async def work(_: Clerk) -> int:
        hasty = current().client(Bank).options(timeout=timedelta(milliseconds=30))("b")
        assert isinstance(await failure(hasty.pay_slowly("rent")), CallTimeout)
        try:
            async with asyncio.timeout(0.03):
                await bank().pay_slowly("rent")
        except TimeoutError:
            gates["bank"].open()
        return await bank().pay_slowly("rent")

    doing["a"] = work
    assert await anywhere.client(Clerk)("a").work() == 1
    assert await paid(anywhere) == ["rent"]


async def test_a_key_of_the_users_own_counts(anywhere: Cluster) -> None:
    """By `options` or by the payload: a message with such a key is nobody's alone."""

    async def work(_: Clerk) -> int:
        return await current().client(Bank).options(key="rent of May")("b").pay("rent")

    doing["a"] = doing["c"] = work
    clerks = anywhere.client(Clerk)
    assert await outcomes(clerks("a").work(), clerks("c").work()) == [1, 1]
    assert gates["keys"].log == ["'rent of May'"]


async def test_the_asked_handler_sees_no_key(anywhere: Cluster) -> None:
    """`current().key` is what a user gave; to outside services a handler gives its message's id, which stays."""

    async def work(_: Clerk) -> int:
        return await bank().pay("rent")

    doing["a"] = work
    await anywhere.client(Clerk)("a").work()
    assert gates["keys"].log == ["None"]


async def test_a_reply_is_kept_as_long_as_the_run_can_be_repeated(memory: MemoryCluster, runner: Cluster) -> None:
    """Its own retention may be over long before; once the run has ended nothing keeps it."""

    async def work(_: Clerk) -> int:
        reply = await bank().pay_and_forget("rent")
        await gates["waits"].pass_through()
        fails_until(2)
        return reply

    doing["a"] = work
    asked = soon(runner.client(Clerk)("a").work())
    await gates["waits"].came()
    assert memory.store.messages.remove_expired(10) == 1, "it has expired"
    gates["waits"].open()
    assert await asked == 1
    assert await paid(runner) == ["rent"]
    kept = memory.store.messages.messages(MessageFilter(handler="pay_and_forget"))
    assert [row.key is None for row in kept] == [False]


async def test_what_a_volatile_handler_asks_is_asked_whenever_it_runs(anywhere: Cluster) -> None:
    """Nothing repeats it but its caller, and that is a second call."""

    async def work(_: Clerk) -> int:
        return await bank().pay("rent")

    doing["a"] = work
    assert await anywhere.client(Clerk)("a").work_now() == 1
    assert await anywhere.client(Clerk)("a").work_now() == 2
