"""`actorhub call`, `tell` and `reply`: one message to one entity, through the gateway of any runner."""

from datetime import datetime, timedelta
from typing import Any, Final, NoReturn

import click
import grpc.aio
import msgspec

from actorhub.cli.commands import CommandFailed
from actorhub.cli.filters import Duration, MessageId, Moment, Seconds, json_argument
from actorhub.cli.options import load, setting_options
from actorhub.cli.remote import CONNECTION_SETTINGS, ask
from actorhub.core.config import SETTINGS
from actorhub.ops.channels import Metadata
from actorhub.transport.grpc._pb import client_v1_pb2 as pb
from actorhub.transport.grpc._pb import client_v1_pb2_grpc as pb_grpc

_BEYOND_TIMEOUT: Final = 5.0
"""Seconds that the gateway has, beyond the call's own, to report that the call has timed out."""

_json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print a failure as one JSON object.")
_key_option: Final = click.option(
    "--key",
    default="",
    metavar="KEY",
    help="Idempotency key: calls of one durable handler of one entity with equal keys are one message.",
)
_timeout_option: Final = click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=Seconds(),
    metavar="SECONDS",
    help="How long to wait.",
)


@click.command
@click.argument("entity_type", metavar="TYPE")
@click.argument("entity_id", metavar="ID")
@click.argument("handler")
@json_argument
@click.option("--stream", is_flag=True, help="The handler is a stream: print one line per item.")
@_key_option
@_timeout_option
@_json_option
@setting_options(*CONNECTION_SETTINGS)
def call(stream: bool, as_json: bool, **given: Any) -> None:
    """Call HANDLER of the entity ID of TYPE and print its result as JSON.

    JSON is the argument itself if the handler has one parameter, and an object by parameter name if it has several; `-`
    reads it from standard input. An error is printed to standard error, and the exit code is 1.
    """
    request, timeout = _request(given)

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.Failure | None:
        stub = pb_grpc.GatewayStub(channel)
        if not stream:
            reply = await stub.Call(request, timeout=timeout, metadata=metadata)
            return _printed(reply)
        async for reply in stub.Stream(request, metadata=metadata):
            if (failure := _printed(reply)) is not None:
                return failure
        return None

    failure = ask(load(_connection(given)), question)
    if failure is not None:
        show_failure(failure, as_json=as_json)


@click.command
@click.argument("entity_type", metavar="TYPE")
@click.argument("entity_id", metavar="ID")
@click.argument("handler")
@json_argument
@_key_option
@click.option(
    "--at", "deliver_at", type=Moment(), metavar="TIME", help="Run it at this time: ISO 8601 with a time zone."
)
@click.option("--in", "delay", type=Duration(), metavar="DURATION", help="Run it after this long, such as 90s or 2h.")
@_timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print the id, or a failure, as one JSON object.")
@setting_options(*CONNECTION_SETTINGS)
def tell(deliver_at: datetime | None, delay: timedelta | None, as_json: bool, **given: Any) -> None:
    """Send a message to HANDLER of the entity ID of TYPE and print its id, without waiting for the handler.

    A message to a durable handler is stored before its id is printed. Only such messages can have a key or a time.
    """
    if deliver_at is not None and delay is not None:
        raise click.UsageError("--at and --in both say when: give one of them")
    request, timeout = _request(given)
    if deliver_at is not None:
        request.deliver_at_ms = max(1, round(deliver_at.timestamp() * 1000))
    if delay is not None:
        request.delay_ms = round(delay.total_seconds() * 1000)

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.TellReply:
        return await pb_grpc.GatewayStub(channel).Tell(request, timeout=timeout, metadata=metadata)

    told = ask(load(_connection(given)), question)
    if told.WhichOneof("outcome") == "failure":
        show_failure(told.failure, as_json=as_json)
    message_id = str(told.message_id)
    click.echo(msgspec.json.encode({"message_id": message_id}) if as_json else message_id)


@click.command
@click.argument("message_id", metavar="ID", type=MessageId())
@_timeout_option
@_json_option
@setting_options(*CONNECTION_SETTINGS)
def reply(message_id: int, timeout: float, as_json: bool, **flags: object) -> None:
    """Wait until the durable message ID has ended and print its result as JSON, or its error as `call` does."""
    request = pb.ReplyRequest(message_id=message_id, timeout_ms=max(1, int(timeout * 1000)), encoding=pb.ENCODING_JSON)

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.CallReply:
        stub = pb_grpc.GatewayStub(channel)
        return await stub.Reply(request, timeout=timeout + _BEYOND_TIMEOUT, metadata=metadata)

    failure = _printed(ask(load(flags), question))
    if failure is not None:
        show_failure(failure, as_json=as_json)


def _request(given: dict[str, Any]) -> tuple[pb.CallRequest, float]:
    """Return the request, and the time limit of the RPC in seconds."""
    timeout = float(str(given["timeout"]))
    request = pb.CallRequest(
        entity_type=str(given["entity_type"]),
        entity_id=str(given["entity_id"]),
        handler=str(given["handler"]),
        arguments=given["arguments"],
        encoding=pb.ENCODING_JSON,
        timeout_ms=max(1, int(timeout * 1000)),
        key=str(given["key"]),
    )
    return request, timeout + _BEYOND_TIMEOUT


def _connection(given: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in given.items() if name in SETTINGS}


def _printed(reply: pb.CallReply) -> pb.Failure | None:
    if reply.WhichOneof("outcome") == "failure":
        return reply.failure
    click.echo(reply.result)
    return None


def show_failure(failure: pb.Failure, *, as_json: bool) -> NoReturn:
    """End the command with what the gateway says went wrong, as one line or as a JSON object.

    Raises:
        CommandFailed: always, unless it is printed as JSON; then `SystemExit`.
    """
    if as_json:
        record = {
            "kind": failure.kind,
            "message": failure.message,
            "possibly_executed": failure.possibly_executed,
            "is_domain_error": failure.is_domain_error,
            "fields": msgspec.Raw(failure.fields_json.encode() or b"{}"),
            "traceback": failure.traceback or None,
        }
        click.echo(msgspec.json.encode(record), err=True)
        raise SystemExit(1)
    fields = msgspec.json.decode(failure.fields_json or "{}", type=dict[str, object])
    raised = f"{fields['type']}: " if "type" in fields else ""
    ran = "" if failure.is_domain_error or not failure.possibly_executed else " (the handler may have run)"
    raise CommandFailed(f"{failure.kind}: {raised}{failure.message}{ran}")
