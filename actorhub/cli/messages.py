"""`actorhub messages` and `dead-letters`: what is stored, as a list, as one message in detail, or as it comes."""

from typing import Any, Final

import click
import grpc.aio
import msgspec

from actorhub.cli.commands import CommandFailed
from actorhub.cli.filters import MessageId, filter_of, filter_options, is_empty, state_option
from actorhub.cli.follow import Follower, follow
from actorhub.cli.message_rows import message_record, message_row, message_text, state_detail
from actorhub.cli.options import load, setting_options
from actorhub.cli.output import json_option, show_rows
from actorhub.cli.remote import ANSWER_SECONDS, CONNECTION_SETTINGS, ask
from actorhub.core.config import Settings
from actorhub.ops.channels import Metadata
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from actorhub.transport.grpc._pb import admin_v1_pb2_grpc as pb_grpc

_PAGE: Final = 1000

_limit_option: Final = click.option(
    "--limit", default=1000, show_default=True, type=click.IntRange(1), help="At most this many."
)


@click.command
@click.argument("message_id", metavar="[ID]", type=MessageId(), required=False)
@setting_options(*CONNECTION_SETTINGS)
@state_option
@filter_options
@_limit_option
@click.option("--follow", "is_followed", is_flag=True, help="Print messages as they come and change, until Ctrl-C.")
@json_option
def messages(message_id: int | None, limit: int, is_followed: bool, as_json: bool, **given: Any) -> None:
    """List durable messages, by id. With ID show one in detail, with --follow print them as they come.

    Messages that have ended are listed until their retention is over. --follow begins with those that have not, and
    watches as many of them as --limit says; with --json it prints one JSON object per line.
    """
    wanted = filter_of(given)
    settings = load(given)
    if message_id is not None:
        if is_followed or not is_empty(wanted):
            raise click.UsageError("an ID names one message: leave out the other options")
        _show_one(settings, message_id, as_json=as_json, only_dead=False)
    elif is_followed:
        follow(settings, Follower(wanted, limit), as_json=as_json)
    else:
        _show_list(settings, wanted, limit, as_json=as_json)


@click.command
@click.argument("message_id", metavar="[ID]", type=MessageId(), required=False)
@setting_options(*CONNECTION_SETTINGS)
@filter_options
@_limit_option
@json_option
def dead_letters(message_id: int | None, limit: int, as_json: bool, **given: Any) -> None:
    """List messages that failed for good, by id. With ID show one in detail, with its errors and tracebacks.

    `actorhub retry` runs them again, `actorhub purge` deletes them.
    """
    wanted = filter_of(given)
    settings = load(given)
    if message_id is None:
        _show_list(settings, wanted, limit, as_json=as_json, only_dead=True)
    elif not is_empty(wanted):
        raise click.UsageError("an ID names one message: leave out the other options")
    else:
        _show_one(settings, message_id, as_json=as_json, only_dead=True)


def _show_list(
    settings: Settings, wanted: pb.MessageFilter, limit: int, *, as_json: bool, only_dead: bool = False
) -> None:
    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> tuple[list[pb.Message], bool]:
        stub, token = pb_grpc.AdminStub(channel), ""
        rpc = stub.ListDeadLetters if only_dead else stub.ListMessages
        found: list[pb.Message] = []
        while True:
            request = pb.ListMessagesRequest(filter=wanted, page_size=min(limit - len(found), _PAGE), page_token=token)
            reply = await rpc(request, timeout=ANSWER_SECONDS, metadata=metadata)
            found += reply.messages
            token = reply.next_page_token
            if not token or len(found) >= limit:
                return found, bool(token)

    found, more = ask(settings, question)
    rows = [message_row(message) for message in found]
    if not as_json and not only_dead:
        rows = [{**row, "detail": state_detail(message)} for row, message in zip(rows, found, strict=True)]
    leave_out = ("shard", "expires_at", "deliver_at", "max_attempts", "run", "state" if only_dead else "error")
    show_rows(rows, as_json=as_json, leave_out=leave_out)
    if more:
        click.echo(
            f"there are more than these {limit}: raise --limit, or narrow the list with --type, --id and other filters",
            err=True,
        )


def _show_one(settings: Settings, message_id: int, *, as_json: bool, only_dead: bool) -> None:
    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.Message:
        request = pb.GetMessageRequest(message_id=message_id)
        return await pb_grpc.AdminStub(channel).GetMessage(request, timeout=ANSWER_SECONDS, metadata=metadata)

    message = ask(settings, question)
    if only_dead and message.state != pb.MESSAGE_STATE_DEAD:
        state = message_row(message)["state"]
        raise CommandFailed(
            f"message {message_id} is not a dead letter: it is {state}: see `actorhub messages {message_id}`"
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(message_record(message)), indent=2))
    else:
        click.echo(message_text(message))
