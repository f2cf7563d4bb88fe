"""What a caller passes is checked before it is sent: a wrong value fails its own call, with an error that names it."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, cast

import pytest

from actorhub import Cluster, MalformedMessage, MessageTooLarge
from actorhub.cluster import part_of
from tests.calls.tills import Clerk, Id, Refused, Till, hub

__all__ = ["hub"]

SOON = timedelta(seconds=5)
NAIVE = datetime.fromisoformat("2030-01-01T00:00")
WEST = timezone(timedelta(hours=-5))
HUGE = "x" * (5 << 20)


def _raises(*_: object) -> object:
    raise LookupError("odd")


ODD_TEXT = type("OddText", (str,), dict.fromkeys(("__eq__", "__hash__", "__repr__", "encode"), _raises))
ODD_NUMBER = type("OddNumber", (int,), dict.fromkeys(("__le__", "__lt__", "__ge__", "__int__", "__repr__"), _raises))
ODD_ZONE = type("OddZone", (tzinfo,), {"utcoffset": _raises})
ODD_MAPPING = type("OddMapping", (dict,), {"items": _raises})
NO_PAIRS = type("NoPairs", (dict,), {"items": lambda _: [1, 2]})
LIAR: Callable[[], Any] = type("Liar", (), {"__class__": property(_raises), "__repr__": _raises})
ODD_DURATION = type("OddDuration", (timedelta,), dict.fromkeys(("total_seconds", "__gt__", "__str__"), _raises))
ODD_TIME = type("OddTime", (datetime,), dict.fromkeys(("timestamp", "utcoffset", "__str__"), _raises))


def _till(cluster: Cluster, **options: Any) -> Till:
    return cluster.client(Till).options(**options)("a")


WRONG: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "timeout of seconds": (lambda c: _till(c, timeout=5), TypeError, "timeout=5 must be a timedelta"),
    "timeout of ages": (lambda c: _till(c, timeout=timedelta.max), ValueError, "timeout="),
    "headers that are none": (lambda c: _till(c, headers=5), MalformedMessage, "headers must be a mapping"),
    "header of None": (lambda c: _till(c, headers={"tenant": None}), MalformedMessage, "header 'tenant' must be"),
    "header without a name": (lambda c: _till(c, headers={5: "x"}), MalformedMessage, "the name of a header"),
    "half a character": (lambda c: _till(c, headers={"x": "\ud800"}), MalformedMessage, "half of a surrogate pair"),
    "huge header": (lambda c: _till(c, headers={"x": "x" * 70_000}), MalformedMessage, "the limit is 65536"),
    "key of an int": (lambda c: _till(c, key=5), MalformedMessage, "key must be a string"),
    "key with a surrogate": (lambda c: _till(c, key="\udfff"), MalformedMessage, "half of a surrogate pair"),
    "on_full": (lambda c: _till(c, on_full="drop"), ValueError, "on_full='drop'"),
    "on_full that is odd": (lambda c: _till(c, on_full=ODD_TEXT("drop")), ValueError, "on_full=<OddText>"),
    "on_full that lies": (lambda c: _till(c, on_full=LIAR()), ValueError, "on_full=<Liar>"),
    "headers that raise": (lambda c: _till(c, headers=ODD_MAPPING()), MalformedMessage, "read: LookupError: odd"),
    "headers without pairs": (lambda c: _till(c, headers=NO_PAIRS()), MalformedMessage, "read: TypeError"),
    "headers that lie": (lambda c: _till(c, headers=LIAR()), MalformedMessage, "headers must be a mapping"),
    "timeout that lies": (lambda c: _till(c, timeout=LIAR()), TypeError, "timeout=<Liar> must be a timedelta"),
    "odd timeout of ages": (lambda c: _till(c, timeout=ODD_DURATION(10**7)), ValueError, "timeout="),
    "key that lies": (lambda c: _till(c, key=LIAR()), MalformedMessage, "key must be a string, not Liar"),
    "cancel of a liar": (lambda c: c.cancel(LIAR()), MalformedMessage, "<Liar> is not the id of a message"),
    "cancel of an odd number": (lambda c: c.cancel(ODD_NUMBER(1 << 64)), MalformedMessage, "<OddNumber> is not the"),
    "tell of a liar": (
        lambda c: c.tell(LIAR()),
        TypeError,
        "method(...), not Liar",
    ),
    "cancel as a liar says": (
        lambda c: c.cancel(7, terminate=LIAR()),
        TypeError,
        "terminate=<Liar> must be",
    ),
    "failed with a liar": (lambda c: c.fail("token", LIAR()), TypeError, "fail takes an EntityError or a text"),
    "client of a liar": (lambda c: c.client(LIAR()), TypeError, "<Liar> is not a class of entities"),
    "singleton of a liar": (lambda c: c.singleton(LIAR()), TypeError, "<Liar> is not a class of entities"),
    "shard of a liar": (lambda c: c.shard_of(LIAR(), "a"), TypeError, "<Liar> is not a class of entities"),
    "kv change of a liar": (lambda c: c.kv.modify("k", LIAR()), TypeError, "modify takes a function that returns"),
    "due in an odd zone": (
        lambda c: c.tell(_till(c).book(1), deliver_at=NAIVE.replace(tzinfo=ODD_ZONE())),
        ValueError,
        "its time zone failed: LookupError: odd",
    ),
    "id of an int": (lambda c: c.client(Till)(5), MalformedMessage, "entity id must be a string"),
    "id with a surrogate": (lambda c: c.client(Till)("a\ud900"), MalformedMessage, "half of a surrogate pair"),
    "id with a tab": (lambda c: c.client(Till)("a\t"), MalformedMessage, "control character"),
    "client of no class": (lambda c: c.client("till"), TypeError, "'till' is not a class of entities"),
    "singleton of no class": (lambda c: c.singleton(5), TypeError, "5 is not a class of entities"),
    "singleton's timeout": (lambda c: c.singleton(Clerk, timeout=5), TypeError, "timeout=5 must be a timedelta"),
    "shard of no class": (lambda c: c.shard_of(int, "a"), TypeError, "is not a class of entities"),
    "shard of no id": (lambda c: c.shard_of(Till, None), MalformedMessage, "entity id must be a string"),
    "another id of a singleton": (lambda c: c.shard_of(Clerk, "b"), MalformedMessage, "clerk is a singleton"),
    "no argument": (lambda c: c.client(Till)("a").add(), TypeError, "amount"),
    "an argument of no type": (lambda c: c.client(Till)("a").add(object()), MalformedMessage, "till.add"),
    "a told argument of no type": (lambda c: c.tell(c.client(Till)("a").book(object())), MalformedMessage, "till.book"),
    "tell of no call": (lambda c: c.tell(5), TypeError, "tell takes a call"),
    "due at a number": (lambda c: c.tell(_till(c).book(1), deliver_at=5.0), TypeError, "deliver_at=5.0 must be"),
    "due without a zone": (
        lambda c: c.tell(_till(c).book(1), deliver_at=NAIVE),
        ValueError,
        "time zone",
    ),
    "due in the first year without a zone": (
        lambda c: c.tell(_till(c).book(1), deliver_at=datetime.min),  # noqa: DTZ901 - that is what is tested
        ValueError,
        "has no time zone",
    ),
    "delay of seconds": (lambda c: c.tell(_till(c).book(1), delay=5), TypeError, "delay=5 must be a timedelta"),
    "told key": (lambda c: c.tell(_till(c).book(1), key=b"k"), MalformedMessage, "key must be a string"),
    "cancel of text": (lambda c: c.cancel("7"), MalformedMessage, "'7' is not the id of a message"),
    "cancel of True": (lambda c: c.cancel(True), MalformedMessage, "True is not the id of a message"),
    "cancel that is to terminate": (
        lambda c: c.cancel(7, terminate="x"),
        TypeError,
        "terminate='x' must be True or Fal",
    ),
    "local of no class": (lambda c: c.is_local(int, "a"), TypeError, "is not a class of entities"),
    "reply of None": (lambda c: c.reply(None), MalformedMessage, "None is not the id of a message"),
    "reply of 65 bits": (lambda c: c.reply(1 << 64), MalformedMessage, "is not the id of a message"),
    "reply in seconds": (lambda c: c.reply(7, timeout=2), TypeError, "timeout=2 must be a timedelta"),
    "reply at once": (lambda c: c.reply(7, timeout=timedelta()), ValueError, "timeout=0:00:00 must be more than zero"),
    "retry of None": (lambda c: c.retry(None), MalformedMessage, "None is not the id of a message"),
    "token of bytes": (lambda c: c.complete(b"token", 1), MalformedMessage, "token must be a string"),
    "value of no type": (lambda c: c.complete("token", object()), MalformedMessage, "deferred value"),
    "failed token": (lambda c: c.fail(None, "no"), MalformedMessage, "token must be a string"),
    "failed with a class": (lambda c: c.fail("token", ValueError), TypeError, "fail takes an EntityError or a text"),
    "failed with a field that does not fit": (
        lambda c: c.fail("token", Refused(why=403)),  # type: ignore[arg-type]
        MalformedMessage,
        "error of a deferred value: Refused: Expected `str`, got `int`",
    ),
    "failed with a lock": (
        lambda c: c.fail("token", Refused(why=threading.Lock())),  # type: ignore[arg-type]
        MalformedMessage,
        "_thread.lock",
    ),
    "failed with half a character": (lambda c: c.fail("token", Refused(why="\ud800")), MalformedMessage, "surrogates"),
    "failed with a huge field": (lambda c: c.fail("token", Refused(why=HUGE)), MessageTooLarge, "limit is 4194304"),
    "failed with a huge text": (lambda c: c.fail("token", HUGE), MessageTooLarge, "limit is 4194304"),
    "huge value": (lambda c: c.complete("token", HUGE), MessageTooLarge, "limit is 4194304"),
    "kv key": (lambda c: c.kv.get(5), MalformedMessage, "key must be a string"),
    "kv key with a surrogate": (lambda c: c.kv.get("\ud800"), MalformedMessage, "half of a surrogate pair"),
    "kv value": (lambda c: c.kv.set("k", object()), MalformedMessage, "key 'k'"),
    "kv ttl": (lambda c: c.kv.set("k", 1, ttl=5), TypeError, "ttl=5 must be a timedelta"),
    "kv prefix": (lambda c: c.kv.prefix(5), MalformedMessage, "key must be a string"),
    "kv change": (lambda c: c.kv.modify("k", 5), TypeError, "modify takes a function"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_value_fails_its_own_call_before_anything_is_sent(
    name: str, client: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is typed and says what is wrong, and the link has carried nothing."""
    act, expected, text = WRONG[name]
    assert await client.client(Till)("a").add(1) == 1
    before = part_of(client).node.transport.statistics().envelopes_sent
    with pytest.raises(expected) as caught:
        await act(client)
    assert type(caught.value) is expected
    assert text in str(caught.value)
    assert part_of(client).node.transport.statistics().envelopes_sent == before
    assert caplog.records == []


@pytest.mark.parametrize("what", ["sleep", "delay", "key", "step", "client"])
async def test_a_wrong_value_in_a_handler_is_named_there(client: Cluster, what: str) -> None:
    """The handler can catch it, as it can catch any error of its own."""
    text = await client.client(Till)("a").misbehave(what)
    assert "=5 must be a timedelta" in text or "must be a string" in text or "not a class of entities" in text, text


async def test_texts_of_other_classes_are_the_same_text(cluster: Cluster) -> None:
    """An enum of texts, as an id or in headers, means its text: there is one entity, and it gets plain text."""
    tills = cluster.client(Till)
    assert await tills("first").add(1) == 1
    assert await tills(Id.FIRST).add(1) == 2
    assert await tills(Id.FIRST).identity() == ("first", "str")
    assert await tills.options(headers={Id.FIRST: Id.FIRST}, key=None)("a").headers() == {"first": "first"}


async def test_methods_of_the_classes_of_right_values_do_not_matter(cluster: Cluster) -> None:
    """They may raise: nobody calls them."""
    options: dict[str, Any] = {"timeout": ODD_DURATION(days=1), "on_full": ODD_TEXT("wait")}
    till = cluster.client(Till).options(**options, headers={"x": ODD_TEXT("y")})("a")
    assert await till.add(1) == 1
    told = await cluster.tell(till.book(1), key=ODD_TEXT("k"), deliver_at=ODD_TIME(2020, 1, 1, tzinfo=UTC))
    assert await cluster.reply(cast("int", ODD_NUMBER(told)), timeout=cast("timedelta", ODD_DURATION(seconds=20))) > 0


async def test_right_values_at_the_limits_pass(cluster: Cluster) -> None:
    """The longest times and headers, and times in any zone."""
    tills = cluster.client(Till)
    most = tills.options(timeout=timedelta(days=1_000_000), headers={"x": "x" * (64 * 1024 - 1)})
    assert len((await most("a").headers())["x"]) == 64 * 1024 - 1
    for due in (datetime.min.replace(tzinfo=WEST), datetime(2, 1, 1, tzinfo=timezone(timedelta(hours=5)))):
        told = await cluster.tell(tills("a").book(1), deliver_at=due)
        assert await cluster.reply(told, timeout=timedelta(days=1_000_000)) > 0
    late = await cluster.tell(tills("a").book(1), deliver_at=datetime.max.replace(tzinfo=WEST))
    later = await cluster.tell(tills("a").book(1), delay=timedelta(days=1_000_000))
    assert await cluster.cancel(late)
    assert await cluster.cancel(later)
