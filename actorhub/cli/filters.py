"""The options that choose durable messages, and arguments of types of our own."""

import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

from actorhub.core.config.values import duration
from actorhub.core.errors import ConfigurationError
from actorhub.core.snowflake import Snowflake
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb

F = TypeVar("F", bound=Callable[..., Any])

STATES: Final = {
    "pending": pb.MESSAGE_STATE_PENDING,
    "scheduled": pb.MESSAGE_STATE_SCHEDULED,
    "done": pb.MESSAGE_STATE_DONE,
    "failed": pb.MESSAGE_STATE_FAILED,
    "cancelled": pb.MESSAGE_STATE_CANCELLED,
    "dead": pb.MESSAGE_STATE_DEAD,
}
_LONGEST: Final = timedelta(days=36_500)
_FIELDS: Final = ("entity_type", "entity_id", "handler", "shard", "key")


class MessageId(click.ParamType[int]):
    """The id of a message."""

    name = "id"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the id as a number."""
        try:
            return int(Snowflake.parse(str(value)))
        except ConfigurationError:
            self.fail(
                f"{str(value)[:40]!r} is not a message id: give a number such as `actorhub tell` prints", param, ctx
            )


class Duration(click.ParamType[timedelta]):
    """A duration such as 90s."""

    name = "duration"

    def __init__(self) -> None:
        self._parse = duration(timedelta(0), _LONGEST)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the duration."""
        try:
            return self._parse(value)
        except ValueError:
            self.fail(f"{str(value)[:40]!r} is not a duration: use 500ms, 15s, 5m, 2h or 1d", param, ctx)


class Seconds(click.FloatRange):
    """How long to wait."""

    def __init__(self) -> None:
        super().__init__(0.001, 4_000_000)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click parsed it, or not
        """Return the seconds."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):  # Neither below a minimum nor above a maximum.
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


class Moment(click.ParamType[datetime]):
    """A point in time, in ISO 8601 with its time zone."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time in UTC."""
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
            if moment.tzinfo is None:
                raise click.BadParameter(f"{value} has no time zone: add one, such as Z for UTC or +01:00", ctx, param)
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{str(value)[:40]!r} is not a time: use ISO 8601, such as 2027-01-31T09:00:00+01:00", param, ctx)


def json_argument(function: F) -> F:
    """Give a command the argument `arguments`: the bytes of JSON, which standard input has if it is `-`."""
    return click.argument("arguments", metavar="[JSON]", nargs=-1, callback=_json)(function)


def _json(_ctx: click.Context, _param: click.Parameter, words: tuple[str, ...]) -> bytes:
    if len(words) > 1:
        raise click.UsageError(
            "JSON is one argument: quote it for the shell; several parameters are one JSON object by their names, such "
            """as '{"item": "tea", "price": 3.5}'"""
        )
    if words != ("-",):
        return "".join(words).encode()
    given = sys.stdin.buffer.read()
    if not given.strip():
        raise click.UsageError("standard input is empty: write JSON to it, or leave out the -")
    return given


def filter_options(function: F) -> F:
    """Give a command the options from which `filter_of` makes a filter; a message must match all that are given."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def filter_of(given: dict[str, Any]) -> pb.MessageFilter:
    """Take the filter's options out of `given` and return the filter."""
    older_than: timedelta | None = given.pop("older_than")
    states: tuple[str, ...] = given.pop("states", ())
    texts: dict[str, str] = {name: given.pop(name) for name in _FIELDS}
    return pb.MessageFilter(
        states=[STATES[state] for state in states],
        older_than_seconds=older_than.total_seconds() if older_than is not None else 0.0,
        **texts,
    )


def is_empty(wanted: pb.MessageFilter) -> bool:
    """Whether a filter matches every message."""
    return wanted == pb.MessageFilter()


state_option: Final = click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(list(STATES)),
    help="Only messages that are stored in this state, pending also while they run or wait; repeatable.",
)
_OPTIONS: Final = (
    click.option("--type", "entity_type", default="", metavar="NAME", help="Only messages to this entity type."),
    click.option("--id", "entity_id", default="", metavar="ID", help="Only messages to entities with this id."),
    click.option("--handler", default="", metavar="NAME", help="Only messages to this handler."),
    click.option("--shard", default="", metavar="GROUP:N", help="Only messages in this shard."),
    click.option("--key", default="", metavar="KEY", help="Only messages with this idempotency key."),
    click.option(
        "--older-than", type=Duration(), metavar="DURATION", help="Only messages created at least that long ago."
    ),
)
