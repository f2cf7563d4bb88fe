"""Errors of handlers and hooks that claim, share or are what they should not: callers get the truth, each its own."""

import asyncio
from collections.abc import AsyncIterator
from typing import NoReturn, cast

import pytest

from actorhub import ActorhubError, CallTimeout, Entity, EntityError, HandlerFailed, Hub, Retry, current, handler
from actorhub.testing import MemoryCluster
from tests.support.gates import all_items, failure


def _read_nothing(_error: object, name: str) -> NoReturn:
    raise LookupError(name)


class Sold(EntityError):
    """A domain error with a field that can be changed."""

    to: list[str]


class Seller(Entity[int]):
    """Keeps what it raises."""

    async def refuse(self, to: list[str]) -> None:
        self._error = Sold(to=to)
        raise self._error

    async def refuse_wrongly(self) -> None:
        raise Sold(to=cast("list[str]", 5))

    async def buyers(self) -> list[str]:
        return self._error.to


async def test_a_caller_shares_no_error_with_the_entity() -> None:
    """In the same process it gets a copy, and the same error as elsewhere where a field does not have its type."""
    own = Hub()
    own.register(Seller)
    async with MemoryCluster(own) as memory:
        runner = await memory.start_runner()
        for side in (runner, await memory.client()):
            seller = side.client(Seller)("a")
            error = await failure(seller.refuse(["ada"]))
            assert isinstance(error, Sold)
            error.to.append("bob")
            assert await seller.buyers() == ["ada"]
            wrong = await failure(seller.refuse_wrongly())
            assert isinstance(wrong, HandlerFailed)
            assert wrong.type == "Sold"


class Closed(Entity):
    """Does not start, with what its id says for a reason."""

    async def on_activate(self) -> None:
        wrong = current().entity_id == "wrong"
        raise Sold(to=cast("list[str]", 5) if wrong else ["ada"])

    async def buy(self) -> None: ...


@pytest.mark.parametrize("remote", [False, True])
async def test_no_two_callers_share_the_error_of_an_activation(*, remote: bool) -> None:
    """Each gets its own, and a field that does not have its type fails for both alike; none of their handlers ran."""
    own = Hub()
    own.register(Closed)
    async with MemoryCluster(own) as memory:
        runner = await memory.start_runner()
        client = (await memory.client() if remote else runner).client(Closed)
        sold, too = await asyncio.gather(failure(client("a").buy()), failure(client("a").buy()))
        assert isinstance(sold, Sold)
        assert isinstance(too, Sold)
        assert (sold.to, too.to, sold.possibly_executed) == (["ada"], ["ada"], False)
        assert sold.to is not too.to
        wrong = await failure(client("wrong").buy())
        assert isinstance(wrong, HandlerFailed)
        assert (wrong.type, wrong.possibly_executed) == ("Sold", False)


class Denied(EntityError):
    """Claims that its handler did not run."""

    possibly_executed = False


class DeniedFirmly(EntityError):
    """Lets nobody change what it claims."""


class DeniedOddly(EntityError):
    """Claims nothing."""


class TimedOut(CallTimeout):
    """Lets nobody change what it claims, as the class above does."""


def _claim_oddly(_error: object) -> NoReturn:
    raise SystemExit


# Refused in the class statement, but a class can be changed afterwards.
for firm in (DeniedFirmly, TimedOut):
    firm.possibly_executed = property(lambda _: False)  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
DeniedOddly.possibly_executed = property(_claim_oddly)  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]


class Denier(Entity[int]):
    @handler(durable=True, retry=Retry(attempts=1))
    async def deny_for_good(self, how: str) -> None:
        await self.deny(how)

    async def deny_in_a_stream(self, how: str) -> AsyncIterator[int]:
        await self.deny(how)
        yield 0

    async def deny(self, how: str) -> None:
        kinds: dict[str, type[ActorhubError]] = {"firmly": DeniedFirmly, "oddly": DeniedOddly, "with ours": TimedOut}
        error = kinds.get(how, Denied)()
        if how == "by an attribute":
            error.possibly_executed = False
        elif how == "by another type":
            error.possibly_executed = cast("bool", "never")
        raise error

    async def ping(self) -> int:
        return 1


class Stillborn(Entity):
    """Fails to start with an error that claims to have run."""

    async def on_activate(self) -> None:
        raise TimedOut

    async def ping(self) -> int:
        return 1


@pytest.mark.parametrize("how", ["by its class", "by an attribute", "by another type", "firmly", "oddly", "with ours"])
async def test_no_error_of_a_handler_says_that_it_did_not_run(how: str) -> None:
    """Whatever the program sets: to call again could do everything twice."""
    own = Hub()
    own.register(Denier)
    async with MemoryCluster(own) as memory:
        runner = await memory.start_runner()
        for side in (runner, await memory.client()):
            denier = side.client(Denier)("a")
            calls = (denier.deny(how), denier.deny_for_good(how), all_items(denier.deny_in_a_stream(how)))
            for call in calls:
                error = await failure(call)
                assert isinstance(error, ActorhubError)
                assert how == "oddly" or error.possibly_executed
                assert await denier.ping() == 1


async def test_an_error_that_lets_nobody_change_it_ends_an_activation_as_any_other() -> None:
    """What its class refuses costs neither the caller an answer nor the entity its next activation."""
    own = Hub()
    own.register(Stillborn)
    async with MemoryCluster(own) as memory:
        stillborn = (await memory.start_runner()).client(Stillborn)("a")
        for _ in range(2):
            error = await failure(stillborn.ping())
            assert isinstance(error, HandlerFailed)
            assert (error.type.rpartition(".")[2], error.possibly_executed) == ("TimedOut", False)


@pytest.mark.parametrize("base", [ActorhubError, CallTimeout, EntityError])
@pytest.mark.parametrize("claim", [property(lambda _: False), None, "no", 1])
def test_an_error_class_cannot_replace_what_says_whether_its_handler_ran(
    base: type[ActorhubError], claim: object
) -> None:
    """The class statement is refused, and says what may stand there."""
    with pytest.raises(TypeError, match=r"Mine\.possibly_executed is set by actorhub: write `possibly_ex"):
        type("Mine", (base,), {"possibly_executed": claim})
    type("Mine", (base,), {"possibly_executed": True})


@pytest.mark.parametrize("base", [ActorhubError, CallTimeout, EntityError])
@pytest.mark.parametrize("name", ["__getattribute__", "__class__"])
@pytest.mark.parametrize("is_inherited", [False, True])
def test_an_error_class_cannot_replace_how_its_attributes_are_read(
    base: type[ActorhubError], name: str, *, is_inherited: bool
) -> None:
    """The class statement is refused, for what a mix-in brings as well."""
    members = {name: property(lambda _: 1) if name == "__class__" else _read_nothing}
    bases, own = ((type("Mixin", (), members), base), {}) if is_inherited else ((base,), members)
    with pytest.raises(TypeError, match="Mine has a __getattribute__ or __class__ of its own"):
        type("Mine", bases, own)
