"""`actorhub.admin.v1`: requests in, answers out; what the answers say is `survey`'s."""

from collections.abc import Mapping
from typing import Final, cast

import grpc.aio

from actorhub.core.address import ShardId
from actorhub.core.errors import MalformedMessage
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.runner import LinkAcceptor
from actorhub.ops.colleagues import Colleagues
from actorhub.ops.health import health_report
from actorhub.ops.local import resident_entities, runner_numbers
from actorhub.ops.messages import Messages
from actorhub.ops.replies import Rpc, answered, runner_of
from actorhub.ops.singletons import Singletons, singleton_health
from actorhub.ops.survey import Survey
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from actorhub.transport.grpc._pb import admin_v1_pb2_grpc as pb_grpc

_PAGE: Final = 1000
_LONGEST_PAGE: Final = 5_000
"""Keeps a reply well within the smallest frame limit, however long the ids are."""


class Admin:
    """The service of the runner behind a door."""

    def __init__(self, door: LinkAcceptor, colleagues: Colleagues, specs: Mapping[str, EntitySpec]) -> None:
        self._door = door
        self._colleagues = colleagues
        self._specs = specs

    async def ListRunners(self, request: pb.ListRunnersRequest, context: Rpc) -> pb.ListRunnersReply:  # noqa: N802
        """Return every runner."""
        return await answered(context, self._list_runners(request))

    async def ListShards(self, request: pb.ListShardsRequest, context: Rpc) -> pb.ListShardsReply:  # noqa: N802
        """Return a page of shards."""
        return await answered(context, self._list_shards(request))

    async def GetShard(self, request: pb.GetShardRequest, context: Rpc) -> pb.Shard:  # noqa: N802
        """Return one shard."""
        return await answered(context, self._get_shard(request))

    async def ListEntities(self, request: pb.ListEntitiesRequest, context: Rpc) -> pb.ListEntitiesReply:  # noqa: N802
        """Return a page of resident entities."""
        return await answered(context, self._list_entities(request))

    async def GetEntity(self, request: pb.GetEntityRequest, context: Rpc) -> pb.Entity:  # noqa: N802
        """Return one entity."""
        return await answered(context, self._get_entity(request))

    async def Health(self, request: pb.HealthRequest, context: Rpc) -> pb.HealthReply:  # noqa: N802
        """Return whether this runner takes work."""
        return await answered(context, self._health())

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Rpc) -> pb.ListMessagesReply:  # noqa: N802
        """Return a page of durable messages."""
        return await answered(context, self._list_messages(request, only_dead=False))

    async def GetMessage(self, request: pb.GetMessageRequest, context: Rpc) -> pb.Message:  # noqa: N802
        """Return one durable message."""
        return await answered(context, self._get_message(request))

    async def ListDeadLetters(self, request: pb.ListMessagesRequest, context: Rpc) -> pb.ListMessagesReply:  # noqa: N802
        """Return a page of dead letters."""
        return await answered(context, self._list_messages(request, only_dead=True))

    async def Retry(self, request: pb.RetryRequest, context: Rpc) -> pb.RetryReply:  # noqa: N802
        """Make messages run again."""
        return await answered(context, self._retry(request))

    async def Purge(self, request: pb.PurgeRequest, context: Rpc) -> pb.PurgeReply:  # noqa: N802
        """Delete dead letters."""
        return await answered(context, self._purge(request))

    async def CancelMessage(self, request: pb.CancelMessageRequest, context: Rpc) -> pb.CancelMessageReply:  # noqa: N802
        """End a message that does not run."""
        return await answered(context, self._cancel_message(request))

    async def ListSingletons(  # noqa: N802
        self, request: pb.ListSingletonsRequest, context: Rpc
    ) -> pb.ListSingletonsReply:
        """Return every singleton."""
        return await answered(context, self._list_singletons())

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Rpc) -> pb.ListSchedulesReply:  # noqa: N802
        """Return the schedules of one singleton, or of all."""
        return await answered(context, self._list_schedules(request))

    async def EditSchedule(self, request: pb.EditScheduleRequest, context: Rpc) -> pb.Schedule:  # noqa: N802
        """Change a schedule."""
        return await answered(context, self._edit_schedule(request))

    async def RunScheduleNow(self, request: pb.RunScheduleNowRequest, context: Rpc) -> pb.RunScheduleNowReply:  # noqa: N802
        """Run a schedule's method once."""
        return await answered(context, self._run_schedule_now(request))

    async def _list_runners(self, request: pb.ListRunnersRequest) -> pb.ListRunnersReply:
        runner = runner_of(self._door)
        if request.scope == pb.SCOPE_RUNNER:
            own = runner.info.runner
            numbers = runner_numbers(runner)
            answer = pb.Runner(address=own.address, incarnation=own.incarnation, numbers=numbers)
            return pb.ListRunnersReply(runners=[answer])
        return pb.ListRunnersReply(runners=await self._survey().runners())

    async def _list_shards(self, request: pb.ListShardsRequest) -> pb.ListShardsReply:
        limit = _page_size(request.page_size)
        after = ShardId.parse(request.page_token) if request.page_token else None
        survey = self._survey()
        if request.scope == pb.SCOPE_RUNNER:
            held = await survey.shards_here(group=request.group, after=after, limit=limit + 1)
            return _shards_reply(held[:limit], [], is_last=len(held) <= limit)
        page = await survey.shards(group=request.group, after=after, limit=limit)
        return _shards_reply(page.shards, page.silent, is_last=page.is_last)

    async def _get_shard(self, request: pb.GetShardRequest) -> pb.Shard:
        return await self._survey().shard(ShardId.parse(request.shard))

    async def _list_entities(self, request: pb.ListEntitiesRequest) -> pb.ListEntitiesReply:
        limit = _page_size(request.page_size)
        entity_type, shard = request.entity_type, ShardId.parse(request.shard) if request.shard else None
        after = _entity_token(request.page_token)
        if request.scope == pb.SCOPE_RUNNER:
            found = await resident_entities(
                runner_of(self._door), entity_type=entity_type, shard=shard, after=after, limit=limit + 1
            )
            return _entities_reply(found[:limit], [], is_last=len(found) <= limit)
        page = await self._survey().entities(entity_type=entity_type, shard=shard, after=after, limit=limit)
        return _entities_reply(page.entities, page.silent, is_last=page.is_last)

    async def _get_entity(self, request: pb.GetEntityRequest) -> pb.Entity:
        survey = self._survey()
        if request.scope == pb.SCOPE_RUNNER:
            here = survey.entity_here(request.entity_type, request.entity_id)
            return here if here is not None else pb.Entity(activity=pb.ACTIVITY_NOT_RESIDENT)
        return await survey.entity(request.entity_type, request.entity_id)

    async def _health(self) -> pb.HealthReply:
        health = health_report(self._door)
        return pb.HealthReply(
            serving=health.serving,
            reason=health.reason,
            runner=health.runner,
            incarnation=health.incarnation,
            version=health.version,
            shards_owned=health.shards_owned,
            live_runners=health.live_runners,
            singletons=map(singleton_health, health.singletons),
        )

    async def _list_messages(self, request: pb.ListMessagesRequest, *, only_dead: bool) -> pb.ListMessagesReply:
        return await self._messages().listed(request, only_dead=only_dead)

    async def _get_message(self, request: pb.GetMessageRequest) -> pb.Message:
        return await self._messages().whole(request.message_id)

    async def _retry(self, request: pb.RetryRequest) -> pb.RetryReply:
        return await self._messages().retry(request)

    async def _purge(self, request: pb.PurgeRequest) -> pb.PurgeReply:
        return pb.PurgeReply(purged=await self._messages().purge(request))

    async def _cancel_message(self, request: pb.CancelMessageRequest) -> pb.CancelMessageReply:
        return await self._messages().cancel(request.message_id)

    async def _list_singletons(self) -> pb.ListSingletonsReply:
        return await self._singletons().listed()

    async def _list_schedules(self, request: pb.ListSchedulesRequest) -> pb.ListSchedulesReply:
        return await self._singletons().schedules(request.singleton)

    async def _edit_schedule(self, request: pb.EditScheduleRequest) -> pb.Schedule:
        return await self._singletons().edit(request)

    async def _run_schedule_now(self, request: pb.RunScheduleNowRequest) -> pb.RunScheduleNowReply:
        return pb.RunScheduleNowReply(message_id=await self._singletons().run_now(request.singleton, request.name))

    def _messages(self) -> Messages:
        return Messages(runner_of(self._door), self._specs)

    def _singletons(self) -> Singletons:
        return Singletons(runner_of(self._door), self._specs)

    def _survey(self) -> Survey:
        return Survey(runner_of(self._door), self._colleagues)


def _page_size(asked: int) -> int:
    return min(asked or _PAGE, _LONGEST_PAGE)


def _entity_token(token: str) -> tuple[str, str]:
    entity_type, separator, entity_id = token.partition("/")
    if token and not (separator and entity_type and entity_id):
        raise MalformedMessage(f"page_token {token[:100]!r} is not one that this service gave")
    return entity_type, entity_id


def _shards_reply(shards: list[pb.Shard], silent: list[str], *, is_last: bool) -> pb.ListShardsReply:
    token = "" if is_last or not shards else shards[-1].shard
    return pb.ListShardsReply(shards=shards, next_page_token=token, silent_runners=silent)


def _entities_reply(entities: list[pb.Entity], silent: list[str], *, is_last: bool) -> pb.ListEntitiesReply:
    token = "" if is_last or not entities else f"{entities[-1].entity_type}/{entities[-1].entity_id}"
    return pb.ListEntitiesReply(entities=entities, next_page_token=token, silent_runners=silent)


def add_admin(
    door: LinkAcceptor, colleagues: Colleagues, specs: Mapping[str, EntitySpec], server: grpc.aio.Server
) -> None:
    """Make `server` answer for the runner behind `door`."""
    pb_grpc.add_AdminServicer_to_server(cast("pb_grpc.AdminServicer", Admin(door, colleagues, specs)), server)
