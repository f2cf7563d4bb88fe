"""current(): what a handler knows of itself, and that nobody else's context leaks in."""

import asyncio
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from actorhub import Cluster, Entity, Hub, NotConnected, current
from tests.support.gates import gates
from tests.support.parts import runner_of

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Facts(msgspec.Struct):
    entity_type: str
    entity_id: str
    shard: str
    runner: str
    incarnation: str
    epoch: int
    is_leader: bool
    message_id: int
    deadline: datetime | None
    headers: dict[str, str]
    trace: str | None
    chain: list[str]


def _facts() -> Facts:
    here = current()
    return Facts(
        here.entity_type,
        here.entity_id,
        str(here.shard_id),
        here.runner.address,
        here.incarnation,
        here.epoch,
        here.is_leader,
        here.message_id,
        here.deadline,
        dict(here.headers),
        here.trace,
        list(here.chain),
    )


class Mirror(Entity):
    def __init__(self) -> None:
        self._made_for = tenant.get()

    async def facts(self) -> Facts:
        await asyncio.sleep(0)
        return _facts()

    async def facts_of_a_task(self) -> Facts:
        async def inside() -> Facts:
            await asyncio.sleep(0)
            return _facts()

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(inside())
        return task.result()

    async def facts_of_another(self, other: str) -> Facts:
        return await current().client(Mirror)(other).facts()

    async def keep_facts(self) -> None:
        gates["facts"].log.append(msgspec.json.encode(_facts()).decode())

    async def tenants(self) -> tuple[str, str]:
        await asyncio.sleep(0)
        return self._made_for, tenant.get()

    async def become(self, name: str) -> str:
        before = tenant.get()
        tenant.set(name)
        await asyncio.sleep(0)
        return before + " " + tenant.get()


hub = Hub()
hub.register(Mirror)


async def test_a_handler_knows_where_it_runs(runner: Cluster, cluster: Cluster) -> None:
    """Type, id, shard, runner, incarnation, epoch and deadline are those of the run."""
    facts = await cluster.client(Mirror).options(timeout=timedelta(seconds=9))("a").facts()
    assert runner.runner is not None
    shard = cluster.shard_of(Mirror, "a")
    assert (facts.entity_type, facts.entity_id, facts.shard) == ("mirror", "a", str(shard))
    assert (facts.runner, facts.incarnation) == (runner.runner.address, runner.runner.incarnation)
    assert facts.epoch == runner_of(runner).ownership.owned[shard]
    assert facts.is_leader
    assert facts.message_id == 0
    assert facts.deadline is not None
    assert timedelta(seconds=8) < facts.deadline - datetime.now(UTC) <= timedelta(seconds=9)
    assert facts.headers == {}
    assert facts.chain == []


async def test_headers_travel_to_the_handler(cluster: Cluster) -> None:
    """What the caller sends along is there, for this call only."""
    mirror = cluster.client(Mirror)
    assert (await mirror.options(headers={"tenant": "acme"})("a").facts()).headers == {"tenant": "acme"}
    assert (await mirror("a").facts()).headers == {}


async def test_the_callers_trace_reaches_the_handler(cluster: Cluster) -> None:
    """A W3C traceparent that was sent along is the trace; without one there is none."""
    mirror = cluster.client(Mirror)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (await mirror.options(headers={"traceparent": parent})("a").facts()).trace == parent
    assert (await mirror("a").facts()).trace is None


async def test_the_context_reaches_the_tasks_of_a_handler(cluster: Cluster) -> None:
    """A child task sees the same run."""
    facts = await cluster.client(Mirror)("a").facts_of_a_task()
    assert (facts.entity_id, facts.is_leader) == ("a", True)


async def test_a_called_entity_sees_who_waits(cluster: Cluster) -> None:
    """The chain names the callers, outermost first, and the id is the called one's."""
    facts = await cluster.client(Mirror)("a").facts_of_another("b")
    assert (facts.entity_id, facts.chain) == ("b", ["mirror/a"])


async def test_a_tell_has_an_id_and_no_deadline(cluster: Cluster) -> None:
    """The handler of a tell sees the id that the teller got."""
    message_id = await cluster.tell(cluster.client(Mirror)("a").keep_facts())
    await cluster.client(Mirror)("a").facts()
    facts = msgspec.json.decode(gates["facts"].log[0], type=Facts)
    assert facts.message_id == message_id
    assert facts.deadline is None
    assert facts.chain == []


async def test_outside_of_handlers_there_is_no_current(client: Cluster) -> None:
    """current() says where it works."""
    with pytest.raises(NotConnected, match="only inside a handler"):
        current()


async def test_a_callers_context_does_not_leak_into_an_entity(cluster: Cluster) -> None:
    """Neither the first caller's context variables nor later ones' are seen by constructor or handler."""
    tenant.set("first caller")
    mirror = cluster.client(Mirror)("a")
    assert await mirror.tenants() == ("nobody", "nobody")
    tenant.set("second caller")
    assert await mirror.tenants() == ("nobody", "nobody")
    assert tenant.get() == "second caller"


async def test_one_runs_context_does_not_leak_into_the_next(cluster: Cluster) -> None:
    """What a handler sets is gone for the next run, of the same entity and of others."""
    mirror = cluster.client(Mirror)
    assert await mirror("a").become("acme") == "nobody acme"
    assert await mirror("a").become("other") == "nobody other"
    assert await mirror("b").tenants() == ("nobody", "nobody")
    assert tenant.get() == "nobody"
