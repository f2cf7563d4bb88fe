"""`actorhub singletons` and `schedules`: how singletons and their schedules are, and changing schedules."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import grpc.aio
import msgspec
from google.protobuf.message import Message

from actorhub.cli.options import load, setting_options
from actorhub.cli.output import Row, iso_time, json_option, show_rows
from actorhub.cli.remote import ANSWER_SECONDS, CONNECTION_SETTINGS, ask
from actorhub.ops.channels import Metadata
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from actorhub.transport.grpc._pb import admin_v1_pb2_grpc as pb_grpc

F = TypeVar("F", bound=Callable[..., Any])

_STATES: Final = {
    pb.SINGLETON_STATE_UNLED: "nobody leads",
    pb.SINGLETON_STATE_LEADING: "leading",
    pb.SINGLETON_STATE_STALE: "stale",
}
_SINGLETON_DETAILS: Final = (
    *("entity_id", "shard", "incarnation", "heartbeat_at", "last_error_at"),
    *("state_errors", "state_error", "main_loop", "state_ttl", "schedules"),
)
_SCHEDULE_DETAILS: Final = (
    *("paused", "edited", "declared", "last_started_at", "last_duration"),
    *("failures_in_a_row", "last_skip", "revision"),
)

_json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object.")


@click.command
@setting_options(*CONNECTION_SETTINGS)
@json_option
def singletons(as_json: bool, **flags: object) -> None:
    """List the singletons and their leaders, and what each did last.

    `stale` means that a singleton has shown no sign of life for more than a minute, although it has a leader. --json
    shows more, such as errors of the state, and the schedules.
    """

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> list[Row]:
        stub = pb_grpc.AdminStub(channel)
        reply = await stub.ListSingletons(pb.ListSingletonsRequest(), timeout=ANSWER_SECONDS, metadata=metadata)
        return [_singleton_row(singleton) for singleton in reply.singletons]

    show_rows(ask(load(flags), question), as_json=as_json, leave_out=_SINGLETON_DETAILS)


@click.group
def schedules() -> None:
    """List, pause, resume, run and change the schedules of singletons.

    A schedule is named by two words, SINGLETON NAME, or by one, SINGLETON.NAME. Changes take effect at once and stay in
    effect, whoever leads the singleton.
    """


@schedules.command(name="list")
@click.argument("singleton", metavar="[SINGLETON]", default="")
@setting_options(*CONNECTION_SETTINGS)
@json_option
def list_schedules(singleton: str, as_json: bool, **flags: object) -> None:
    """List the schedules, and when each ran last and runs next.

    With SINGLETON, list only those of one singleton. --json shows more, such as what is declared in the code, and why
    fire times were skipped.
    """

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> list[Row]:
        request = pb.ListSchedulesRequest(singleton=singleton)
        reply = await pb_grpc.AdminStub(channel).ListSchedules(request, timeout=ANSWER_SECONDS, metadata=metadata)
        return [_schedule_row(schedule) for schedule in reply.schedules]

    show_rows(ask(load(flags), question), as_json=as_json, leave_out=_SCHEDULE_DETAILS)


def _schedule_arguments(function: F) -> F:
    """Give a command the arguments that name a schedule, as two words or one, and the options to reach a runner."""
    for part in (
        _json_option,
        setting_options(*CONNECTION_SETTINGS),
        click.argument("name", metavar="NAME", default=""),
        click.argument("singleton", metavar="SINGLETON"),
    ):
        function = part(function)
    return function


@schedules.command
@_schedule_arguments
def pause(singleton: str, name: str, as_json: bool, **flags: object) -> None:
    """Pause a schedule: it does not fire until it is resumed.

    A run that has begun continues.
    """
    _edit(_named(singleton, name, paused=True), as_json=as_json, flags=flags)


@schedules.command
@_schedule_arguments
def resume(singleton: str, name: str, as_json: bool, **flags: object) -> None:
    """Resume a schedule: it continues with its next fire time."""
    _edit(_named(singleton, name, paused=False), as_json=as_json, flags=flags)


@schedules.command(name="set")
@_schedule_arguments
@click.option("--expression", metavar="CRON", help="Five fields, six with seconds first, or @hourly and the like.")
@click.option("--timezone", metavar="ZONE", help="Time zone of the expression, such as Europe/Berlin.")
def set_times(
    singleton: str, name: str, *, expression: str | None, timezone: str | None, as_json: bool, **flags: object
) -> None:
    """Set when a schedule runs; what is left out stays as it is.

    The change stays in effect until the code declares another expression or time zone, or until `actorhub schedules
    reset`.
    """
    if expression is None and timezone is None:
        raise click.UsageError("say what to set: --expression, --timezone or both")
    times = pb.ScheduleTimes(expression=expression, timezone=timezone)
    _edit(_named(singleton, name, set=times), as_json=as_json, flags=flags)


@schedules.command
@_schedule_arguments
def reset(singleton: str, name: str, as_json: bool, **flags: object) -> None:
    """Reset a schedule to the times that are declared in the code."""
    _edit(_named(singleton, name, reset=pb.ScheduleReset()), as_json=as_json, flags=flags)


@schedules.command(name="run-now")
@_schedule_arguments
def run_now(singleton: str, name: str, as_json: bool, **flags: object) -> None:
    """Run a schedule's method once, now, and print the message's id.

    Its argument is the present time. Paused schedules can be run, too. `actorhub reply ID` waits until it has ended.
    """
    named = _named(singleton, name)
    request = pb.RunScheduleNowRequest(singleton=named.singleton, name=named.name)

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> str:
        stub = pb_grpc.AdminStub(channel)
        reply = await stub.RunScheduleNow(request, timeout=ANSWER_SECONDS, metadata=metadata)
        return str(reply.message_id)

    message_id = ask(load(flags), question)
    click.echo(msgspec.json.encode({"message_id": message_id}) if as_json else message_id)


def _named(singleton: str, name: str, **change: Any) -> pb.EditScheduleRequest:
    """Return a request about a schedule that is named by two words, or by one with a dot between them."""
    if not name:
        singleton, _, name = singleton.partition(".")
        if not name:
            raise click.UsageError(
                "name the schedule as SINGLETON NAME or SINGLETON.NAME: see `actorhub schedules list`"
            )
    return pb.EditScheduleRequest(singleton=singleton, name=name, **change)


def _edit(request: pb.EditScheduleRequest, *, as_json: bool, flags: dict[str, object]) -> None:
    """Change a schedule, and print what it is now."""

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.Schedule:
        return await pb_grpc.AdminStub(channel).EditSchedule(request, timeout=ANSWER_SECONDS, metadata=metadata)

    schedule = ask(load(flags), question)
    if as_json:
        click.echo(msgspec.json.encode(_schedule_row(schedule)))
    else:
        paused = "paused; it is " if schedule.paused else ""
        times = f"{schedule.expression} in {schedule.timezone}"
        click.echo(f"{schedule.singleton}.{schedule.name} is {paused}set to {times}")


def _singleton_row(singleton: pb.Singleton) -> Row:
    return {
        "singleton": singleton.singleton,
        "entity_id": singleton.entity_id,
        "shard": singleton.shard,
        "state": _STATES.get(singleton.state, "unknown"),
        "leader": singleton.leader or None,
        "incarnation": singleton.incarnation or None,
        "epoch": singleton.epoch,
        "since": _time(singleton, "since"),
        "heartbeat_at": _time(singleton, "heartbeat_at"),
        "executions": singleton.executions,
        "last_execution": singleton.last_execution or None,
        "last_execution_at": _time(singleton, "last_execution_at"),
        "last_duration": _seconds(singleton, "last_duration"),
        "last_error": singleton.last_error or None,
        "last_error_at": _time(singleton, "last_error_at"),
        "state_errors": singleton.state_errors,
        "state_error": singleton.state_error or None,
        "main_loop": singleton.main_loop or None,
        "state_ttl": _seconds(singleton, "state_ttl"),
        "schedules": [_schedule_row(schedule) for schedule in singleton.schedules],
    }


def _schedule_row(schedule: pb.Schedule) -> Row:
    return {
        "singleton": schedule.singleton,
        "name": schedule.name,
        "expression": schedule.expression,
        "timezone": schedule.timezone,
        "state": "paused" if schedule.paused else "active",
        "paused": schedule.paused,
        "edited": schedule.edited,
        "declared": schedule.declared,
        "next_at": _time(schedule, "next_at"),
        "last_at": _time(schedule, "last_at"),
        "last_started_at": _time(schedule, "last_started_at"),
        "last_duration": _seconds(schedule, "last_duration"),
        "runs": schedule.runs,
        "failures": schedule.failures,
        "failures_in_a_row": schedule.failures_in_a_row,
        "skipped": schedule.skipped,
        "last_skip": schedule.last_skip or None,
        "last_error": schedule.last_error or None,
        "revision": schedule.revision,
    }


def _time(message: Message, field: str) -> str | None:
    return iso_time(getattr(message, field)) if message.HasField(field) else None


def _seconds(message: Message, field: str) -> float | None:
    return round(getattr(message, field), 3) if message.HasField(field) else None
