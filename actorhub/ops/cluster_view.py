"""The whole cluster as one runner sees it: the store's rows joined with what each live owner says about itself."""

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec

from actorhub.core.address import ShardId, ShardOwner
from actorhub.core.errors import EntityNotAssigned
from actorhub.engine.model.spec import EntitySpec
from actorhub.ops.local import LocalRunner
from actorhub.ops.peer_admins import PeerAdmins
from actorhub.storage.ports import LiveRunner, ShardRow
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb

_ACTING: Final = frozenset({pb.SHARD_STATE_OWNED, pb.SHARD_STATE_DRAINING})


class ShardPage(msgspec.Struct, frozen=True):
    """Consecutive shards by group and number."""

    shards: list[pb.Shard]
    silent: list[str]
    is_last: bool


class EntityPage(msgspec.Struct, frozen=True):
    """Consecutive resident entities by type and id."""

    entities: list[pb.Entity]
    silent: list[str]
    is_last: bool


class ClusterView:
    """Answers of one runner for the whole cluster. Every method raises `PersistenceError` when the store fails."""

    def __init__(self, runner: LocalRunner, peers: PeerAdmins) -> None:
        self._runner = runner
        self._peers = peers

    async def runners(self) -> list[pb.Runner]:
        """Return every registered runner, with its numbers where it answered, by address."""
        live = await self._runner.storage.runners()
        request = pb.ListRunnersRequest(scope=pb.SCOPE_RUNNER)
        answers = await self._peers.ask(self._others(live), lambda stub, data: stub.ListRunners(request, metadata=data))
        numbers = {self._runner.incarnation: self._runner.numbers()}
        for reply in answers.values():
            if reply is not None:
                numbers |= {runner.incarnation: runner.numbers for runner in reply.runners}
        found = [_runner(runner, numbers.get(runner.info.runner.incarnation)) for runner in live]
        return sorted(found, key=lambda runner: (runner.address, runner.silent_seconds))

    async def shards(self, *, group: str, after: ShardId | None, limit: int) -> ShardPage:
        """Return the `limit` shards that follow `after`; an empty group means every one.

        The store is read before the owners are asked. A shard that changes hands meanwhile is shown as its new owner
        says, since what an owner says beats the store. The store's word counts only for owners that did not answer:
        an owner that did, and does not claim the shard, has let go of it.
        """
        storage = self._runner.storage
        live, rows = await storage.runners(), {row.shard: row for row in await storage.shards()}
        groups = {name for runner in live for name in runner.info.groups} | {shard.group for shard in rows}
        following = list(islice(self._following(groups, group, after), limit + 1))
        page = following[:limit]
        request = pb.ListShardsRequest(
            scope=pb.SCOPE_RUNNER, group=group, page_size=limit, page_token=str(after) if after else ""
        )
        answers = await self._peers.ask(self._others(live), lambda stub, data: stub.ListShards(request, metadata=data))
        silent = sorted(address for address, reply in answers.items() if reply is None)
        claims = [await self._runner.held_shards(page, limit)]
        claims += [list(reply.shards) for reply in answers.values() if reply is not None]
        best = _best(claims)
        unheard = {r.info.runner.incarnation for r in live if r.info.runner.address in silent}
        joined = [_joined(shard, best.get(str(shard)), rows.get(shard), unheard) for shard in page]
        return ShardPage(joined, silent, is_last=len(following) <= limit)

    async def shard(self, wanted: ShardId) -> pb.Shard:
        """Return one shard.

        Raises:
            EntityNotAssigned: the cluster has no such shard.
        """
        after = ShardId(wanted.group, wanted.number - 1) if wanted.number else None
        page = await self.shards(group=wanted.group, after=after, limit=1)
        if not page.shards or page.shards[0].shard != str(wanted):
            raise EntityNotAssigned(
                f"there is no shard {wanted}: groups have {self._runner.shards_per_group} shards, numbered from 0, "
                "and `actorhub shards` lists them"
            )
        return page.shards[0]

    async def entities(
        self, *, entity_type: str, shard: ShardId | None, after: tuple[str, str], limit: int
    ) -> EntityPage:
        """Return the `limit` resident entities that follow `after`."""
        live = await self._runner.storage.runners()
        request = pb.ListEntitiesRequest(
            scope=pb.SCOPE_RUNNER,
            entity_type=entity_type,
            shard=str(shard) if shard else "",
            page_size=limit,
            page_token="/".join(after) if after[0] else "",
        )
        others = self._others(live)
        answers = await self._peers.ask(others, lambda stub, data: stub.ListEntities(request, metadata=data))
        found = await self._runner.resident_entities(entity_type=entity_type, shard=shard, after=after, limit=limit + 1)
        found += [entity for reply in answers.values() if reply is not None for entity in reply.entities]
        more = any(reply is not None and reply.next_page_token for reply in answers.values())
        page = heapq.nsmallest(limit + 1, found, key=lambda entity: (entity.entity_type, entity.entity_id))
        silent = sorted(address for address, reply in answers.items() if reply is None)
        return EntityPage(page[:limit], silent, is_last=not more and len(page) <= limit)

    async def entity(self, entity_type: str, entity_id: str) -> pb.Entity:
        """Return one entity, resident or not, by asking its owner.

        Raises:
            UnknownEntityType: this runner does not know the type.
            MalformedMessage: no entity can have that id.
        """
        found = self._runner.resident_entity(entity_type, entity_id)
        if found is not None:
            return found
        self._runner.check_entity_id(entity_type, entity_id)
        spec = self._runner.spec(entity_type)
        shard = await self.shard(self._runner.shard_of(spec, entity_id))
        answered: pb.Entity | None = None
        if shard.runner and shard.incarnation != self._runner.incarnation:
            request = pb.GetEntityRequest(scope=pb.SCOPE_RUNNER, entity_type=entity_type, entity_id=entity_id)
            answers = await self._peers.ask([shard.runner], lambda stub, data: stub.GetEntity(request, metadata=data))
            answered = answers[shard.runner]
            if answered is not None and answered.activity != pb.ACTIVITY_NOT_RESIDENT:
                return answered
        is_known = answered is not None or shard.incarnation in ("", self._runner.incarnation)
        return await self._not_resident(spec, entity_id, shard, is_known=is_known)

    async def message_runs(self, ids: Collection[int], *, whole: bool) -> dict[int, pb.MessageRun]:
        """Return how far those of the durable messages are that run, by id: whole with tokens, else as in lists.

        What runs on a runner that does not answer, or is of a release that cannot, is missing.
        """
        live = await self._runner.storage.runners()
        request = pb.GetRunsRequest(message_ids=ids, whole=whole)
        answers = await self._peers.ask(self._others(live), lambda stub, data: stub.GetRuns(request, metadata=data))
        best = self._runner.message_runs(ids, whole=whole)
        for reply in answers.values():
            for message_id, run in reply.runs.items() if reply is not None else ():
                # A shard may move between two answers: then its next owner's counts.
                if message_id not in best or run.epoch > best[message_id].epoch:
                    best[message_id] = run
        return best

    async def shards_here(self, *, group: str, after: ShardId | None, limit: int) -> list[pb.Shard]:
        """Return the first `limit` shards after `after` that this very runner owns, acquires or drains."""
        return await self._runner.held_shards(self._following(self._runner.groups, group, after), limit)

    async def _not_resident(self, spec: EntitySpec, entity_id: str, shard: pb.Shard, *, is_known: bool) -> pb.Entity:
        stored = None
        if spec.state is not None:
            stored = await self._runner.storage.load_state(spec.name, entity_id)
        return pb.Entity(
            entity_type=spec.name,
            entity_id=entity_id,
            shard=shard.shard,
            runner=shard.runner,
            incarnation=shard.incarnation,
            epoch=shard.epoch,
            activity=pb.ACTIVITY_NOT_RESIDENT if is_known else None,
            queued_messages=0 if is_known else None,
            state_version=stored.version if stored is not None else 0,
            state_bytes=len(stored.data) if stored is not None else 0,
        )

    def _following(self, groups: Iterable[str], group: str, after: ShardId | None) -> Iterator[ShardId]:
        """Return the shards of `groups` that follow `after`, in order; of the one group where it is named."""
        for name in sorted(groups):
            if (group and name != group) or (after is not None and name < after.group):
                continue
            start = after.number + 1 if after is not None and name == after.group else 0
            yield from (ShardId(name, number) for number in range(start, self._runner.shards_per_group))

    def _others(self, live: Sequence[LiveRunner]) -> list[str]:
        own = self._runner.incarnation
        return [r.info.runner.address for r in live if r.info.runner.incarnation != own]


def _best(claims: Sequence[Sequence[pb.Shard]]) -> dict[str, pb.Shard]:
    """Return the claim that counts for each shard: an owner's before an acquirer's, then the highest epoch."""
    best: dict[str, pb.Shard] = {}
    for claim in (claim for each in claims for claim in each):
        known = best.get(claim.shard)
        if known is None or _rank(claim) > _rank(known):
            best[claim.shard] = claim
    return best


def _rank(claim: pb.Shard) -> tuple[bool, int]:
    return claim.state in _ACTING, claim.epoch


def _joined(shard: ShardId, claim: pb.Shard | None, row: ShardRow | None, unheard: set[str]) -> pb.Shard:
    """Return the claim, or what the store says if the owner is one of `unheard`, or that nobody acts for the shard."""
    owner: ShardOwner | None = row.owner if row is not None else None
    if owner is not None and owner.runner.incarnation in unheard:
        stored = pb.Shard(
            shard=str(shard),
            state=pb.SHARD_STATE_OWNED,
            runner=owner.runner.address,
            incarnation=owner.runner.incarnation,
            epoch=owner.epoch,
        )
        if claim is None or _rank(stored) > _rank(claim):
            return stored
    if claim is not None:
        claim.epoch = claim.epoch or (row.epoch if row is not None else 0)
        return claim
    return pb.Shard(shard=str(shard), epoch=row.epoch if row is not None else 0)


def _runner(live: LiveRunner, numbers: pb.RunnerNumbers | None) -> pb.Runner:
    info = live.info
    return pb.Runner(
        address=info.runner.address,
        incarnation=info.runner.incarnation,
        weight=info.weight,
        groups=info.groups,
        entity_types=info.entity_types,
        draining=info.draining,
        version=info.version,
        silent_seconds=live.silent_for,
        numbers=numbers,
    )
