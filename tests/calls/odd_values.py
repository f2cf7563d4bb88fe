"""Everything that a caller, a peer or a hand can pass, each place with every odd value, and what must come of it."""

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, Final, TypeAlias

import msgspec

from actorhub import ActorhubError, Cluster, Current, HandlerFailed, current
from actorhub.cluster import cluster_of_handler, part_of
from actorhub.core.envelope import ASK, TELL, Cancel, Credit, Durable, Envelope, Failure, NotOwner, Reply, Request
from actorhub.storage.message_ports import NewMessage
from tests.calls.tills import Clerk, Id, Refused, Till
from tests.support.parts import runner_of

VALUES: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 7, 1 << 31, 1 << 63, (1 << 64) - 1, 1 << 64, -1 << 63, 1.5, math.nan, math.inf, -math.inf, 1e300,
    "", "a", "7", "\ud800", "\0", "a\nb", "\x7f", "é" * 600, "x" * 70_000, b"", b"\xff", b"\x91\xa1x", [], [None], {},
    {"tenant": None}, {"tenant": "t"}, {5: "x"}, {"\udfff": "x"}, {"x": "x" * 70_000}, object(), Id.FIRST, timedelta(),
    timedelta(seconds=-1), timedelta(milliseconds=200), timedelta.max, timedelta.min, date(2030, 1, 1),
    datetime.fromisoformat("2030-01-01"), datetime.now(UTC), datetime.max.replace(tzinfo=timezone(timedelta(hours=-9))),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=9))), int, Till, Clerk, current, ValueError("x"),
)  # fmt: skip
"""Of every kind, near to right ones and far from them."""

Odd: TypeAlias = Any
"""One of them."""
Act = Callable[..., Any]
Right = Callable[[Any], bool]


def _text(value: object) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _name(value: Odd, most: int) -> bool:
    return (
        _text(value) and 0 < len(value.encode()) <= most and all(c.isprintable() or ord(c) > 0x9F for c in str(value))
    )


def _headers(value: Odd) -> bool:
    return (
        isinstance(value, Mapping)
        and all(_text(text) for pair in value.items() for text in pair)
        and sum(len(text) for pair in value.items() for text in pair) <= 65_536
    )


def _id(value: Odd) -> bool:
    return type(value) is int and -1 << 63 <= value < 1 << 63


def _short(value: Odd) -> bool:
    return isinstance(value, timedelta) and value <= timedelta(days=1_000_000)


def _timeout(value: Odd) -> bool:
    return value is None or (_short(value) and value > timedelta())


def _moment(value: Odd) -> bool:
    return value is None or (isinstance(value, datetime) and value.utcoffset() is not None)


def _anything(_: object) -> bool:
    return True


def _nothing(_: object) -> bool:
    return False


def _odd(cluster: Cluster | Current, **options: Any) -> Till:
    return cluster.client(Till).options(timeout=timedelta(seconds=2)).options(**options)("odd")


async def _consumed(stream: Odd) -> list[int]:
    return [item async for item in stream]


CALLERS: Final[dict[str, tuple[Act, Right]]] = {
    "timeout": (lambda c, v: _odd(c, timeout=v).add(1), _timeout),
    "headers": (lambda c, v: _odd(c, headers=v).add(1), _headers),
    "headers, durable": (lambda c, v: _odd(c, headers=v).book(1), _headers),
    "header": (lambda c, v: _odd(c, headers={"x": v}).add(1), lambda v: _headers({"x": v})),
    "on_full": (lambda c, v: _odd(c, on_full=v).add(1), _nothing),
    "key": (lambda c, v: _odd(c, key=v).book(1), lambda v: v is None or _name(v, 1024)),
    "key of a tell": (lambda c, v: c.tell(_odd(c).book(1), key=v), lambda v: v is None or _name(v, 1024)),
    "entity_id": (lambda c, v: c.client(Till)(v).add(1), lambda v: _name(v, 255)),
    "entity": (lambda c, v: c.client(v)("odd").add(1), lambda v: v is Till),
    "singleton": (lambda c, v: c.singleton(v).greet(), lambda v: v is Clerk),
    "singleton's timeout": (lambda c, v: c.singleton(Clerk, timeout=v).greet(), _timeout),
    "argument": (lambda c, v: _odd(c).add(v), _anything),
    "argument, durable": (lambda c, v: _odd(c).book(v), _anything),
    "argument of a stream": (lambda c, v: _consumed(_odd(c).watch(v)), _anything),
    "call": (lambda c, v: c.tell(v), _nothing),
    "deliver_at": (lambda c, v: c.tell(_odd(c).book(1), deliver_at=v), _moment),
    "delay": (lambda c, v: c.tell(_odd(c).book(1), delay=v), lambda v: v is None or _short(v)),
    "cancelled id": (lambda c, v: c.cancel(v), _id),
    "retried id": (lambda c, v: c.retry(v), _id),
    "id of a reply": (lambda c, v: c.reply(v), _id),
    "timeout of a reply": (lambda c, v: c.reply(7, timeout=v), _timeout),
    "terminate": (lambda c, v: c.cancel(7, terminate=v), lambda v: isinstance(v, bool)),
    "token": (lambda c, v: c.complete(v, 1), _nothing),
    "token that fails": (lambda c, v: c.fail(v, "no"), _nothing),
    "deferred value": (lambda c, v: c.complete("token", v), _nothing),
    "failure": (lambda c, v: c.fail("token", v), _nothing),
    "failure's field": (lambda c, v: c.fail("token", Refused(why=v)), _nothing),
    "kv key": (lambda c, v: c.kv.get(v), lambda v: _name(v, 1024)),
    "kv value": (lambda c, v: c.kv.set("odd", v), _anything),
    "kv ttl": (lambda c, v: c.kv.set("odd", 1, ttl=v), _timeout),
    "kv prefix": (lambda c, v: c.kv.prefix(v).size(), lambda v: v == "" or _name(v, 1024)),
    "kv change": (lambda c, v: c.kv.modify("odd", v), _anything),
    "shard's entity": (lambda c, v: c.shard_of(v, "odd"), lambda v: v is Till),
    "shard's id": (lambda c, v: c.shard_of(Till, v), lambda v: _name(v, 255)),
    "local entity": (lambda c, v: c.is_local(v, "odd"), lambda v: v in (Till, Clerk)),
    "local id": (lambda c, v: c.is_local(Till, v), _anything),
}


async def _waited(now: Odd, timeout: Odd) -> int:
    deferred = now.deferred("waited", int)
    await cluster_of_handler().complete(deferred.token, 1)
    return await deferred.wait(timeout=timeout)  # type: ignore[no-any-return]


async def _failed(now: Odd, why: Odd) -> str:
    deferred = now.deferred("failed", int)
    await cluster_of_handler().fail(deferred.token, Refused(why=why))
    try:
        await deferred.wait()
    except Refused as error:
        return error.why
    except HandlerFailed as error:
        raise AssertionError("the error that was passed was accepted, and is not the one that came") from error
    raise AssertionError("nothing was raised")


HANDLERS: Final[dict[str, tuple[Act, Right]]] = {
    "in a handler: client's class": (lambda now, v: now.client(v)("odd").add(1), lambda v: v is Till),
    "in a handler: client's id": (lambda now, v: now.client(Till)(v).add(1), lambda v: _name(v, 255)),
    "in a handler: singleton": (lambda now, v: now.singleton(v).greet(), lambda v: v is Clerk),
    "in a handler: call": (lambda now, v: now.tell(v), _nothing),
    "in a handler: key": (lambda now, v: now.tell(_odd(now).book(1), key=v), lambda v: v is None or _name(v, 1024)),
    "in a handler: deliver_at": (lambda now, v: now.tell(_odd(now).book(1), deliver_at=v), _moment),
    "in a handler: delay": (lambda now, v: now.tell(_odd(now).book(1), delay=v), lambda v: v is None or _short(v)),
    "in a handler: argument": (lambda now, v: now.tell(_odd(now).book(v)), _anything),
    "in a handler: step's name": (lambda now, v: now.step(v, int), lambda v: _name(v, 1024)),
    "in a handler: step": (lambda now, v: now.step("step", v), lambda v: v in (int, current)),
    "in a handler: step's result": (lambda now, v: now.step("result", lambda: v), _anything),
    "in a handler: deferred value's name": (lambda now, v: now.deferred(v, int), lambda v: _name(v, 1024)),
    "in a handler: deferred value's type": (lambda now, v: now.deferred("typed", v), _anything),
    "in a handler: timeout of a wait": (_waited, lambda v: v is None or _short(v)),
    "in a handler: failure's field": (_failed, _anything),
    "in a handler: duration": (lambda now, v: now.sleep(v), _short),
    "in a handler: sleep's name": (
        lambda now, v: now.sleep(timedelta(), name=v),
        lambda v: v is None or _name(v, 1024),
    ),
    "in a handler: work": (lambda now, v: now.spawn(v), _nothing),
    "in a handler: keep_alive": (lambda now, v: now.keep_alive(v), _anything),
    "in a handler: kv key": (lambda now, v: now.kv.get(v), lambda v: _name(v, 1024)),
}
"""What a handler does by `current()`."""


async def outcome(act: Act, *arguments: Any) -> object:
    """Return what comes of an act: its value, or what it raised at once or later."""
    try:
        found = act(*arguments)
        return await found if isinstance(found, Awaitable) else found
    except Exception as error:  # noqa: BLE001 - user code: the test judges it
        return error


def judge(place: str, right: Right, value: Odd, came: object) -> None:
    """Check the outcome of an act: a wrong value is an error, and no error is one of Python's own making."""
    case = (place, repr(value)[:80], came)
    try:
        is_right = right(value)
    except TypeError:
        is_right = False
    if not is_right:
        assert isinstance(came, Exception), case
        # A handler that makes a mistake has been executed itself.
        assert place in HANDLERS or not getattr(came, "possibly_executed", False), case
    is_their_own = place == "kv change" and callable(value)
    if isinstance(came, Exception) and not isinstance(came, ActorhubError) and not is_their_own:
        assert type(came) in (TypeError, ValueError), case
        assert any(said in str(came) for said in _SAID), case


_SAID: Final = (
    "timeout=", "duration=", "delay=", "deliver_at=", "ttl=", "on_full=", "terminate=", "is not a class of entities",
    "is a singleton", "modify takes", "is not a singleton", "tell takes a call", "fail takes", "None cannot be stored",
    "annotate what", "use types that msgspec can encode", "spawn takes", " takes a function and its arguments",
)  # fmt: skip
"""Texts of our own checks; Python's own say nothing of the kind."""


def raw_envelope(cluster: Cluster, number: int, field: int, value: Odd) -> Envelope | None:
    """Return an envelope as any peer may send it, with a field set to anything; `None`: msgpack cannot hold that."""
    body = msgspec.msgpack.encode((1,))
    fresh = int(cluster.snowflake())
    made: list[Envelope] = [
        Request(number, ASK, "till", "odd", "add", body, 2_000),
        Request(number, TELL, "till", "odd", "book", body, 2_000, message_id=fresh, durable=Durable()),
        Reply(number, 0, b""),
        Failure(number, 0, b""),
        NotOwner(number),
        Credit(number, 1),
        Cancel(number),
    ]
    envelope = made[field % len(made)]
    names = [name for name in envelope.__struct_fields__ if name not in ("id", "body")]
    name = names[field // len(made) % len(names)]
    if name == "durable":
        parts = Durable.__struct_fields__
        value = msgspec.structs.replace(Durable(), **{parts[field % len(parts)]: value})
    envelope = msgspec.structs.replace(envelope, **{name: value})
    with suppress(TypeError, ValueError, OverflowError):
        msgspec.msgpack.encode(envelope)
        return envelope
    return None


def raw_row(cluster: Cluster, field: int, value: Odd) -> NewMessage | None:
    """Return a row as a hand may write it, with a column set to anything; `None`: no store would take it."""
    spec = Till.__declaration__.spec
    row = NewMessage(
        message_id=int(cluster.snowflake()),
        shard=runner_of(cluster).node.router.sharding.shard_of(spec, "odd row"),
        entity_type="till",
        entity_id="odd row",
        handler="book",
        body=msgspec.msgpack.encode((1,)),
    )
    names: tuple[tuple[str, type], ...] = (
        ("headers", dict), ("headers", dict), ("entity_id", str), ("entity_type", str), ("handler", str), ("key", str),
        ("body", bytes), ("attempts", int), ("message_id", int), ("deliver_at", float),
    )  # fmt: skip
    name, kind = names[field % len(names)]
    if name == "headers":
        value = {"odd": value}
    if type(value) is not kind or (isinstance(value, int) and abs(value) >= 1 << 31) or not _storable(value):
        return None
    return msgspec.structs.replace(row, **{name: value})


def is_hopeless(row: NewMessage) -> bool:
    """Whether a row for a handler of ours cannot be that of a message."""
    is_ours = row.entity_type == "till" and row.handler == "book"
    is_text = all(_text(text) for pair in (row.headers or {}).items() for text in pair)
    return is_ours and not (is_text and _name(row.entity_id, 1 << 20) and row.message_id)


def _storable(value: Odd) -> bool:
    try:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
        return "\0" not in text and "\n" not in text and text != "" and text.encode() is not None
    except (TypeError, ValueError):
        return False


def transports(*clusters: Cluster) -> list[tuple[int, int]]:
    """Return of each process how many links it has lost, and how many envelopes it could not decode."""
    counts = [part_of(cluster).node.transport.statistics() for cluster in clusters]
    return [(count.links_closed, count.envelopes_malformed) for count in counts]
