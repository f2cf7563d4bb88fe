"""`actorhub shards`, `runners` and `entities`: what the cluster says about itself, as tables or as JSON."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import click
import grpc.aio

from actorhub.cli.options import load, setting_options
from actorhub.cli.output import Row, harmless, iso_time, json_option, show_rows
from actorhub.cli.remote import ANSWER_SECONDS, CONNECTION_SETTINGS, ask
from actorhub.ops.channels import Metadata
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from actorhub.transport.grpc._pb import admin_v1_pb2_grpc as pb_grpc

_PAGE: Final = 5_000


@click.command
@setting_options(*CONNECTION_SETTINGS)
@click.option("--group", default="", metavar="NAME", help="Only the shards of this group.")
@json_option
def shards(group: str, as_json: bool, **flags: object) -> None:
    """List the shards, their owners, and what is in them."""

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> tuple[list[Row], set[str]]:
        stub, token, silent = pb_grpc.AdminStub(channel), "", set[str]()
        found: list[Row] = []
        while True:
            request = pb.ListShardsRequest(group=group, page_size=_PAGE, page_token=token)
            reply = await stub.ListShards(request, timeout=ANSWER_SECONDS, metadata=metadata)
            found += map(_shard_row, reply.shards)
            silent |= set(reply.silent_runners)
            if not (token := reply.next_page_token):
                return found, silent

    rows, silent = ask(load(flags), question)
    show_rows(rows, as_json=as_json, leave_out=("incarnation",))
    _warn_of(silent, "the numbers of entities and messages in its shards are missing")


@click.command
@setting_options(*CONNECTION_SETTINGS)
@json_option
def runners(as_json: bool, **flags: object) -> None:
    """List the runners of the cluster."""

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> Sequence[pb.Runner]:
        stub = pb_grpc.AdminStub(channel)
        reply = await stub.ListRunners(pb.ListRunnersRequest(), timeout=ANSWER_SECONDS, metadata=metadata)
        return reply.runners

    found = ask(load(flags), question)
    leave_out = ("incarnation", "pid", "entity_types", "version", "unreached")
    show_rows([_runner_row(runner) for runner in found], as_json=as_json, leave_out=leave_out)
    for runner in found:
        for one in runner.numbers.unreached:
            calls = f"calls go through {one.via}" if one.via else "calls to it wait"
            click.echo(
                f"{runner.address} has not reached {one.address} since {iso_time(one.since)}, {calls}: "
                f"{harmless(one.reason)}",
                err=True,
            )


@click.command
@setting_options(*CONNECTION_SETTINGS)
@click.option("--type", "entity_type", default="", metavar="NAME", help="Only entities of this type.")
@click.option("--shard", default="", metavar="GROUP:N", help="Only entities of this shard.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1), help="At most this many.")
@json_option
def entities(entity_type: str, shard: str, limit: int, as_json: bool, **flags: object) -> None:
    """List the entities that are in memory, by type and id."""

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> tuple[list[Row], set[str], bool]:
        stub, token, silent = pb_grpc.AdminStub(channel), "", set[str]()
        found: list[Row] = []
        while True:
            request = pb.ListEntitiesRequest(
                entity_type=entity_type, shard=shard, page_size=min(limit - len(found), _PAGE), page_token=token
            )
            reply = await stub.ListEntities(request, timeout=ANSWER_SECONDS, metadata=metadata)
            found += map(_entity_row, reply.entities)
            silent |= set(reply.silent_runners)
            token = reply.next_page_token
            if not token or len(found) >= limit:
                return found, silent, bool(token)

    rows, silent, more = ask(load(flags), question)
    show_rows(rows, as_json=as_json, leave_out=("incarnation",))
    _warn_of(silent, "its entities are missing")
    if more:
        click.echo(
            f"there are more than these {limit}: raise --limit, or narrow the list with --type or --shard", err=True
        )


def _shard_row(shard: pb.Shard) -> Row:
    return {
        "shard": shard.shard,
        "state": _word(pb.ShardState.Name, shard.state, "SHARD_STATE_"),
        "runner": shard.runner or None,
        "incarnation": shard.incarnation or None,
        "epoch": shard.epoch,
        "resident_entities": _known(shard.HasField("resident_entities"), shard.resident_entities),
        "queued_messages": _known(shard.HasField("queued_messages"), shard.queued_messages),
    }


def _runner_row(runner: pb.Runner) -> Row:
    numbers = runner.numbers if runner.HasField("numbers") else None
    return {
        "address": runner.address,
        "incarnation": runner.incarnation,
        "state": _runner_state(runner, numbers),
        "weight": runner.weight,
        "groups": list(runner.groups),
        "entity_types": list(runner.entity_types),
        "shards_owned": numbers.shards_owned if numbers else None,
        "shards_acquiring": numbers.shards_acquiring if numbers else None,
        "shards_draining": numbers.shards_draining if numbers else None,
        "resident_entities": numbers.resident_entities if numbers else None,
        "queued_messages": numbers.queued_messages if numbers else None,
        "silent_seconds": round(runner.silent_seconds, 3),
        "pid": numbers.pid if numbers else None,
        "version": runner.version,
        "unreached": [_unreached_row(one) for one in numbers.unreached] if numbers else None,
    }


def _unreached_row(runner: pb.UnreachedRunner) -> Row:
    return {
        "address": runner.address,
        "incarnation": runner.incarnation,
        "since": iso_time(runner.since),
        "reason": runner.reason,
        "via": runner.via or None,
    }


def _runner_state(runner: pb.Runner, numbers: pb.RunnerNumbers | None) -> str:
    if numbers is None:
        return "silent"
    if runner.draining:
        return "draining"
    return "serving" if numbers.serving else "not serving"


def _entity_row(entity: pb.Entity) -> Row:
    return {
        "entity_type": entity.entity_type,
        "entity_id": entity.entity_id,
        "shard": entity.shard,
        "runner": entity.runner or None,
        "incarnation": entity.incarnation or None,
        "epoch": entity.epoch,
        "activity": _word(pb.Activity.Name, entity.activity, "ACTIVITY_") if entity.HasField("activity") else None,
        "queued_messages": _known(entity.HasField("queued_messages"), entity.queued_messages),
        "idle_seconds": round(entity.idle_seconds, 3) if entity.HasField("idle_seconds") else None,
        "state_version": entity.state_version,
        "state_bytes": entity.state_bytes,
    }


def _word(name_of: Callable[[Any], str], value: int, prefix: str) -> str:
    return name_of(value).removeprefix(prefix).lower().replace("_", " ")


def _known(is_known: bool, value: int) -> int | None:
    return value if is_known else None


def _warn_of(silent: set[str], missing: str) -> None:
    for address in sorted(silent):
        click.echo(f"the runner at {address} did not answer: {missing}", err=True)
