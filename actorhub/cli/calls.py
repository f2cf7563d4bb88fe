"""`actorhub call` and `actorhub tell`: one message to one entity, through the gateway of any runner."""

import sys
from typing import Final, NoReturn

import click
import grpc.aio
import msgspec

from actorhub.cli.commands import Failed
from actorhub.cli.options import load, setting_options
from actorhub.cli.remote import CONNECTION_SETTINGS, ask
from actorhub.core.config import SETTINGS
from actorhub.ops.channels import Metadata
from actorhub.transport.grpc._pb import client_v1_pb2 as pb
from actorhub.transport.grpc._pb import client_v1_pb2_grpc as pb_grpc

_BEYOND_TIMEOUT: Final = 5.0
"""Seconds that the gateway has to tell that the call's own time is over."""

_json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print a failure as one JSON object.")
_timeout_option: Final = click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.001, 4_000_000),
    metavar="SECONDS",
    help="How long to wait; of a stream, for its first item.",
)


@click.command
@click.argument("entity_type", metavar="TYPE")
@click.argument("entity_id", metavar="ID")
@click.argument("handler")
@click.argument("arguments", metavar="[JSON]", default="")
@click.option("--stream", is_flag=True, help="The handler is a stream: print one line per item.")
@_timeout_option
@_json_option
@setting_options(*CONNECTION_SETTINGS)
def call(stream: bool, as_json: bool, **given: object) -> None:
    """Call HANDLER of the entity ID of TYPE and print its result as JSON.

    JSON is the argument itself where the handler has one parameter, an object by parameter name where it has several;
    `-` reads it from standard input. An error is printed to standard error, and the exit code is 1.
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
        _fail(failure, as_json=as_json)


@click.command
@click.argument("entity_type", metavar="TYPE")
@click.argument("entity_id", metavar="ID")
@click.argument("handler")
@click.argument("arguments", metavar="[JSON]", default="")
@_timeout_option
@_json_option
@setting_options(*CONNECTION_SETTINGS)
def tell(as_json: bool, **given: object) -> None:
    """Send a message to HANDLER of the entity ID of TYPE and print its id; nothing waits for the handler."""
    request, timeout = _request(given)

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.TellReply:
        return await pb_grpc.GatewayStub(channel).Tell(request, timeout=timeout, metadata=metadata)

    reply = ask(load(_connection(given)), question)
    if reply.WhichOneof("outcome") == "failure":
        _fail(reply.failure, as_json=as_json)
    click.echo(reply.message_id)


def _request(given: dict[str, object]) -> tuple[pb.CallRequest, float]:
    """Return the request, and the seconds after which the RPC is given up."""
    timeout = float(str(given["timeout"]))
    arguments = str(given["arguments"])
    request = pb.CallRequest(
        entity_type=str(given["entity_type"]),
        entity_id=str(given["entity_id"]),
        handler=str(given["handler"]),
        arguments=(sys.stdin.read() if arguments == "-" else arguments).encode(),
        encoding=pb.ENCODING_JSON,
        timeout_ms=max(1, int(timeout * 1000)),
    )
    return request, timeout + _BEYOND_TIMEOUT


def _connection(given: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in given.items() if name in SETTINGS}


def _printed(reply: pb.CallReply) -> pb.Failure | None:
    if reply.WhichOneof("outcome") == "failure":
        return reply.failure
    click.echo(reply.result)
    return None


def _fail(failure: pb.Failure, *, as_json: bool) -> NoReturn:
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
    raise Failed(f"{failure.kind}: {raised}{failure.message}{ran}")
