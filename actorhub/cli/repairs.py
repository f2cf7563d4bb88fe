"""`actorhub retry`, `purge` and `cancel`: what people do with messages that have failed or are no longer wanted."""

import sys
from typing import Any, Final

import click
import grpc.aio
import msgspec

from actorhub.cli.commands import CommandFailed
from actorhub.cli.filters import MessageId, filter_of, filter_options, is_empty
from actorhub.cli.options import load, setting_options
from actorhub.cli.remote import CONNECTION_SETTINGS, ask
from actorhub.core.config import Settings
from actorhub.ops.channels import Metadata
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from actorhub.transport.grpc._pb import admin_v1_pb2_grpc as pb_grpc

_ALL_SECONDS: Final = 3600.0
"""How long a change of all matching messages may take."""
_STEP: Final = 1000

_json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object.")


@click.command
@click.argument("message_ids", metavar="[ID]...", type=MessageId(), nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="All dead letters, or those that match the filters.")
@setting_options(*CONNECTION_SETTINGS)
@filter_options
@_json_option
def retry(message_ids: tuple[int, ...], is_all: bool, as_json: bool, **given: Any) -> None:
    """Retry dead letters, or messages that are waiting for their next attempt, at once.

    Their attempts are counted from 1 again. A message that was told for later also runs at once.

    The exit code is 1 if one of the IDs cannot be retried; the others are.
    """
    wanted = filter_of(given)
    if is_all == bool(message_ids):
        raise click.UsageError("say which messages: give either one or more IDs, or --all")
    if message_ids and not is_empty(wanted):
        raise click.UsageError("filters choose among all dead letters: say --all, or leave out the filters")
    settings = load(given)
    if is_all:
        reply = _retry(settings, [pb.RetryRequest(filter=wanted)])
    else:
        steps = [message_ids[start : start + _STEP] for start in range(0, len(message_ids), _STEP)]
        reply = _retry(settings, [pb.RetryRequest(message_ids=step) for step in steps])
    if as_json:
        refused = [{"message_id": str(each.message_id), "reason": each.reason} for each in reply.refused]
        click.echo(msgspec.json.encode({"retried": reply.retried, "refused": refused}))
    else:
        click.echo(f"{_count(reply.retried, 'message')} retried")
        for each in reply.refused:
            click.echo(f"message {each.message_id} is not retried: {each.reason}", err=True)
    if reply.refused:
        raise SystemExit(1)


@click.command
@setting_options(*CONNECTION_SETTINGS)
@filter_options
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_json_option
def purge(yes: bool, as_json: bool, **given: Any) -> None:
    """Delete dead letters for good: those that match the filters, or all.

    Says how many there are and asks first. Afterwards their keys are free: a message with the same key is a new one.
    """
    wanted = filter_of(given)
    settings = load(given)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask: say --yes to delete without confirmation")
        count = _purge(settings, pb.PurgeRequest(filter=wanted, only_count=True))
        if count:
            click.confirm(f"delete {_count(count, 'dead letter')} for good?", abort=True, err=True)
    purged = _purge(settings, pb.PurgeRequest(filter=wanted))
    if as_json:
        click.echo(msgspec.json.encode({"purged": purged}))
    else:
        click.echo(f"{_count(purged, 'dead letter')} deleted")


@click.command
@click.argument("message_id", metavar="ID", type=MessageId())
@click.option("--terminate", is_flag=True, help="End its run at once, without letting the handler clean up.")
@setting_options(*CONNECTION_SETTINGS)
@_json_option
def cancel(message_id: int, terminate: bool, as_json: bool, **flags: object) -> None:
    """Cancel a message: one that waits, that runs, or that is a dead letter.

    It will not run, or not to its end, and whoever is waiting for its reply learns that it was cancelled. A handler
    that runs can clean up first, for as long as its cancel_grace says.
    """

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.CancelMessageReply:
        request = pb.CancelMessageRequest(message_id=message_id, terminate=terminate)
        return await pb_grpc.AdminStub(channel).CancelMessage(request, timeout=_ALL_SECONDS, metadata=metadata)

    reply = ask(load(flags), question)
    if not reply.cancelled:
        state = pb.MessageState.Name(reply.state).removeprefix("MESSAGE_STATE_").lower()
        raise CommandFailed(f"message {message_id} cannot be cancelled: its state is {state}")
    if as_json:
        click.echo(msgspec.json.encode({"message_id": str(message_id), "cancelled": True}))
    else:
        click.echo(f"message {message_id} is cancelled")


def _retry(settings: Settings, requests: list[pb.RetryRequest]) -> pb.RetryReply:
    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.RetryReply:
        stub, total = pb_grpc.AdminStub(channel), pb.RetryReply()
        for request in requests:
            reply = await stub.Retry(request, timeout=_ALL_SECONDS, metadata=metadata)
            total.retried += reply.retried
            total.refused.extend(reply.refused)
        return total

    return ask(settings, question)


def _purge(settings: Settings, request: pb.PurgeRequest) -> int:
    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> pb.PurgeReply:
        return await pb_grpc.AdminStub(channel).Purge(request, timeout=_ALL_SECONDS, metadata=metadata)

    return ask(settings, question).purged


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
