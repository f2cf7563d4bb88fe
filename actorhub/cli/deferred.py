"""`actorhub complete` and `fail`: the outcome of a deferred value, from the prompt."""

from typing import Final

import click
import grpc.aio
import msgspec

from actorhub.cli.calls import show_failure
from actorhub.cli.commands import CommandFailed
from actorhub.cli.filters import json_argument
from actorhub.cli.options import load, setting_options
from actorhub.cli.remote import ANSWER_SECONDS, CONNECTION_SETTINGS, ask
from actorhub.ops.channels import Metadata
from actorhub.transport.grpc._pb import client_v1_pb2 as pb
from actorhub.transport.grpc._pb import client_v1_pb2_grpc as pb_grpc

_json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print the answer, or a failure, as one JSON object."
)


@click.command
@click.argument("deferred", metavar="TOKEN")
@json_argument
@_json_option
@setting_options(*CONNECTION_SETTINGS)
def complete(deferred: str, arguments: bytes, as_json: bool, **flags: object) -> None:
    """Complete the deferred value of TOKEN, for whoever is waiting for it.

    JSON is the value, null if it is left out; `-` reads it from standard input. Only the first outcome counts: if there
    already is another one, the exit code is 1.
    """
    _complete(pb.CompleteRequest(token=deferred, value=arguments, encoding=pb.ENCODING_JSON), flags, as_json=as_json)


@click.command
@click.argument("deferred", metavar="TOKEN")
@click.argument("reason", metavar="REASON")
@_json_option
@setting_options(*CONNECTION_SETTINGS)
def fail(deferred: str, reason: str, as_json: bool, **flags: object) -> None:
    """Fail the deferred value of TOKEN: whoever is waiting for it gets an error with the text REASON.

    Only the first outcome counts: if there already is another one, the exit code is 1.
    """
    _complete(pb.CompleteRequest(token=deferred, failure=reason), flags, as_json=as_json)


def _complete(request: pb.CompleteRequest, flags: dict[str, object], *, as_json: bool) -> None:
    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.CompleteReply:
        return await pb_grpc.GatewayStub(channel).Complete(request, timeout=ANSWER_SECONDS, metadata=metadata)

    reply = ask(load(flags), question)
    if reply.WhichOneof("outcome") == "failure":
        show_failure(reply.failure, as_json=as_json)
    if not reply.completed:
        raise CommandFailed("the deferred value already has another outcome, which stays")
    click.echo(msgspec.json.encode({"completed": True}) if as_json else "the deferred value has its outcome")
