"""`actorhub.admin.v1`: requests in, answers out; what the answers say is `cluster_view`'s."""

from collections.abc import Mapping
from typing import Final, cast

import grpc.aio

from actorhub.core.address import ShardId
from actorhub.core.errors import MalformedMessage
from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.engine.model.spec import EntitySpec
from actorhub.ops.cluster_view import ClusterView
from actorhub.ops.health import health_report
from actorhub.ops.local import LocalRunner, local_runner
from actorhub.ops.messages import MessageAdmin, check_ids
from actorhub.ops.peer_admins import PeerAdmins
from actorhub.ops.replies import rpc
from actorhub.ops.singletons import SingletonAdmin, singleton_health
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from actorhub.transport.grpc._pb import admin_v1_pb2_grpc as pb_grpc

_PAGE: Final = 1000
_LONGEST_PAGE: Final = 5_000
"""Keeps a reply well within the smallest frame limit, however long the ids are."""


class Admin:
    """The service of the runner behind an acceptor."""

    def __init__(self, acceptor: LinkAcceptor, peers: PeerAdmins, specs: Mapping[str, EntitySpec]) -> None:
        self._acceptor = acceptor
        self._peers = peers
        self._specs = specs

    @rpc
    async def ListRunners(self, request: pb.ListRunnersRequest) -> pb.ListRunnersReply:
        """Return every runner."""
        runner = self._runner()
        if request.scope == pb.SCOPE_RUNNER:
            own = pb.Runner(address=runner.address, incarnation=runner.incarnation, numbers=runner.numbers())
            return pb.ListRunnersReply(runners=[own])
        return pb.ListRunnersReply(runners=await self._view().runners())

    @rpc
    async def ListShards(self, request: pb.ListShardsRequest) -> pb.ListShardsReply:
        """Return a page of shards."""
        limit = _page_size(request.page_size)
        after = ShardId.parse(request.page_token) if request.page_token else None
        view = self._view()
        if request.scope == pb.SCOPE_RUNNER:
            held = await view.shards_here(group=request.group, after=after, limit=limit + 1)
            return _shards_reply(held[:limit], [], is_last=len(held) <= limit)
        page = await view.shards(group=request.group, after=after, limit=limit)
        return _shards_reply(page.shards, page.silent, is_last=page.is_last)

    @rpc
    async def GetShard(self, request: pb.GetShardRequest) -> pb.Shard:
        """Return one shard."""
        return await self._view().shard(ShardId.parse(request.shard))

    @rpc
    async def ListEntities(self, request: pb.ListEntitiesRequest) -> pb.ListEntitiesReply:
        """Return a page of resident entities."""
        limit = _page_size(request.page_size)
        entity_type, shard = request.entity_type, ShardId.parse(request.shard) if request.shard else None
        after = _entity_token(request.page_token)
        if request.scope == pb.SCOPE_RUNNER:
            found = await self._runner().resident_entities(
                entity_type=entity_type, shard=shard, after=after, limit=limit + 1
            )
            return _entities_reply(found[:limit], [], is_last=len(found) <= limit)
        page = await self._view().entities(entity_type=entity_type, shard=shard, after=after, limit=limit)
        return _entities_reply(page.entities, page.silent, is_last=page.is_last)

    @rpc
    async def GetEntity(self, request: pb.GetEntityRequest) -> pb.Entity:
        """Return one entity."""
        if request.scope == pb.SCOPE_RUNNER:
            here = self._runner().resident_entity(request.entity_type, request.entity_id)
            return here if here is not None else pb.Entity(activity=pb.ACTIVITY_NOT_RESIDENT)
        return await self._view().entity(request.entity_type, request.entity_id)

    @rpc
    async def Health(self, request: pb.HealthRequest) -> pb.HealthReply:
        """Return whether this runner takes work."""
        health = health_report(self._acceptor)
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

    @rpc
    async def ListMessages(self, request: pb.ListMessagesRequest) -> pb.ListMessagesReply:
        """Return a page of durable messages."""
        return await self._messages().page(request)

    @rpc
    async def GetMessage(self, request: pb.GetMessageRequest) -> pb.Message:
        """Return one durable message."""
        return await self._messages().message(request.message_id)

    @rpc
    async def GetRuns(self, request: pb.GetRunsRequest) -> pb.GetRunsReply:
        """Return which durable messages run here."""
        ids = check_ids(request.message_ids)
        return pb.GetRunsReply(runs=self._runner().message_runs(ids, whole=request.whole))

    @rpc
    async def ListDeadLetters(self, request: pb.ListMessagesRequest) -> pb.ListMessagesReply:
        """Return a page of dead letters."""
        return await self._messages().dead_letters(request)

    @rpc
    async def Retry(self, request: pb.RetryRequest) -> pb.RetryReply:
        """Make messages run again."""
        return await self._messages().retry(request)

    @rpc
    async def Purge(self, request: pb.PurgeRequest) -> pb.PurgeReply:
        """Delete dead letters."""
        return pb.PurgeReply(purged=await self._messages().purge(request))

    @rpc
    async def CancelMessage(self, request: pb.CancelMessageRequest) -> pb.CancelMessageReply:
        """Cancel a message, and end its run if one is under way."""
        return await self._messages().cancel(request.message_id, terminate=request.terminate)

    @rpc
    async def ListSingletons(self, request: pb.ListSingletonsRequest) -> pb.ListSingletonsReply:
        """Return every singleton."""
        return await self._singletons().singletons()

    @rpc
    async def ListSchedules(self, request: pb.ListSchedulesRequest) -> pb.ListSchedulesReply:
        """Return the schedules of one singleton, or of all."""
        return await self._singletons().schedules(request.singleton)

    @rpc
    async def EditSchedule(self, request: pb.EditScheduleRequest) -> pb.Schedule:
        """Change a schedule."""
        return await self._singletons().edit(request)

    @rpc
    async def RunScheduleNow(self, request: pb.RunScheduleNowRequest) -> pb.RunScheduleNowReply:
        """Run a schedule's method once."""
        return pb.RunScheduleNowReply(message_id=await self._singletons().run_now(request.singleton, request.name))

    def _runner(self) -> LocalRunner:
        return local_runner(self._acceptor, self._specs)

    def _view(self) -> ClusterView:
        return ClusterView(self._runner(), self._peers)

    def _messages(self) -> MessageAdmin:
        return MessageAdmin(self._runner(), self._view())

    def _singletons(self) -> SingletonAdmin:
        return SingletonAdmin(self._runner())


def _page_size(asked: int) -> int:
    return min(asked or _PAGE, _LONGEST_PAGE)


def _entity_token(token: str) -> tuple[str, str]:
    entity_type, separator, entity_id = token.partition("/")
    if token and not (separator and entity_type and entity_id):
        raise MalformedMessage(f"page_token {token[:100]!r} was not made by this service")
    return entity_type, entity_id


def _shards_reply(shards: list[pb.Shard], silent: list[str], *, is_last: bool) -> pb.ListShardsReply:
    token = "" if is_last or not shards else shards[-1].shard
    return pb.ListShardsReply(shards=shards, next_page_token=token, silent_runners=silent)


def _entities_reply(entities: list[pb.Entity], silent: list[str], *, is_last: bool) -> pb.ListEntitiesReply:
    token = "" if is_last or not entities else f"{entities[-1].entity_type}/{entities[-1].entity_id}"
    return pb.ListEntitiesReply(entities=entities, next_page_token=token, silent_runners=silent)


def add_admin(
    acceptor: LinkAcceptor, peers: PeerAdmins, specs: Mapping[str, EntitySpec], server: grpc.aio.Server
) -> None:
    """Make `server` answer for the runner behind `acceptor`."""
    pb_grpc.add_AdminServicer_to_server(cast("pb_grpc.AdminServicer", Admin(acceptor, peers, specs)), server)
