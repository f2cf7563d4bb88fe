"""Singletons: one is alive somewhere without being asked, and everybody reaches it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest

from actorhub import Cluster, ConfigurationError, Entity, HandlerFailed, Hub, MailboxFull, Singleton, current
from actorhub.core.config import Settings
from actorhub.testing import MemoryCluster, until
from tests.singletons.diary import Diary, at_gate, for_ever, is_leading, leaders, leads, story
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.parts import host_of

made: list[str] = []


class Plain(Singleton):
    """Neither state, hooks nor `run`."""

    async def where(self) -> str:
        return str(current().shard_id)


class Made(Singleton, name="made-by-hand"):
    """Its constructor takes something."""

    def __init__(self, text: str) -> None:
        self._text = text
        made.append(text)

    async def text(self) -> str:
        return self._text


class Entry(Entity):
    """Calls singletons, and keeps places in memory."""

    async def ask(self) -> str:
        return await current().singleton(Plain).where()

    async def hold(self) -> None:
        await gates[current().entity_id].pass_through()


class Stranger(Singleton):
    """Nobody registered it."""

    async def call(self) -> None:
        """Do nothing."""


hub = Hub()
hub.register(Diary)
hub.register(Plain)
hub.register(Made, lambda: Made("hand"))
hub.register(Entry)


@pytest.fixture(autouse=True)
def new_story() -> None:
    """Begin a story per test."""
    story.clear()
    made.clear()


async def test_it_starts_without_any_message(memory: MemoryCluster) -> None:
    """As soon as a runner owns its shard it leads, its `run` runs, and its row says who."""
    story.act["run"] = for_ever
    runner = await memory.start_runner()
    assert await leads(memory) is runner
    await until(lambda: "run" in story.log)
    assert story.log == ["on_activate", "on_become_leader", "run"]
    assert is_leading(runner, "plain")
    assert made == ["hand"]


async def test_exactly_one_of_several_runners_has_it(memory: MemoryCluster) -> None:
    """However many runners there are, each singleton is alive once, where its shard is owned."""
    for _ in range(4):
        await memory.start_runner()
    await memory.settled()
    for name, cls in (("diary", Diary), ("plain", Plain), ("made-by-hand", Made)):
        leader = await leads(memory, name)
        assert leaders(memory, name) == [leader]
        assert leader.is_local(cls, name)
    assert story.most_alive == 1
    assert story.alive == 1


async def test_everybody_reaches_it(cluster: Cluster) -> None:
    """From a client, from its runner, and from another entity's handler."""
    shard = str(cluster.shard_of(Plain, "plain"))
    assert await cluster.singleton(Plain).where() == shard
    assert await cluster.client(Entry)("e").ask() == shard
    assert await cluster.singleton(Made).text() == "hand"


async def test_a_client_of_a_singleton_is_a_type_error(cluster: Cluster) -> None:
    """It has one id, so it is not addressed by id; and an entity is not a singleton."""
    with pytest.raises(TypeError, match=r"Plain is a singleton: use cluster\.singleton\(Plain\)"):
        cluster.client(Plain)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"Entry is not a singleton: use cluster\.client\(Entry\)"):
        cluster.singleton(Entry)  # type: ignore[type-var]
    with pytest.raises(ConfigurationError, match=r"hub\.register\(Stranger\)"):
        cluster.singleton(Stranger)


async def test_hooks_are_no_handlers(cluster: Cluster) -> None:
    """Nobody can call them from outside."""
    for name in ("run", "on_become_leader", "on_lose_leadership", "on_activate", "save"):
        assert not hasattr(cluster.singleton(Diary), name)


def test_names_and_constructors_are_checked() -> None:
    """The name is that of the class in snake case; two of one name, or arguments without a factory, are refused."""
    other = Hub()
    other.register(Plain)
    assert other.specs["plain"].singleton_id == "plain"
    with pytest.raises(ConfigurationError, match="Plain is registered twice"):
        other.register(Plain)
    with pytest.raises(TypeError, match=r"hub\.register\(Made, lambda: Made\(\.\.\.\)\)"):
        other.register(Made)


async def test_a_state_and_tells_and_streams_work_as_in_an_entity(cluster: Cluster) -> None:
    """Handlers run one at a time, commit what they change, and may be streams; one that raises changes nothing."""
    diary = cluster.singleton(Diary)
    assert await outcomes(*(diary.add(str(n)) for n in range(4))) == [1, 2, 3, 4]
    await cluster.tell(diary.add("told"))
    assert [number async for number in diary.count_up(3)] == [0, 1, 2]

    async def fail(me: Diary) -> None:
        me.state.lines.clear()
        raise ValueError("no")

    story.act["fail"] = fail
    assert isinstance(await failure(diary.do("fail")), HandlerFailed)
    assert (await diary.read()).lines == ["0", "1", "2", "3", "told"]


async def test_a_full_mailbox_refuses(cluster: Cluster) -> None:
    """`mailbox_capacity` holds for a singleton too."""
    story.act["hold"] = at_gate("diary")
    diary = cluster.singleton(Diary)
    await until(lambda: "run" in story.log)  # it has a turn, too
    held = soon(diary.do("hold"))
    await gates["diary"].came()
    waiting = soon(outcomes(*(diary.add(str(n)) for n in range(8))))
    await asyncio.sleep(0.02)
    gates["diary"].open()
    assert await held
    refused = [found for found in await waiting if isinstance(found, MailboxFull)]
    assert len(refused) == 3
    assert not refused[0].possibly_executed


async def test_it_has_a_place_when_memory_is_full(memory: MemoryCluster) -> None:
    """Singletons start, and answer, though as many entities are resident as may be, all busy."""
    memory.settings = Settings(shards_per_group=16, max_resident=2)
    first = await memory.start_runner(groups=("default",))
    held = soon(outcomes(*(first.client(Entry)(f"h{n}").hold() for n in range(2))))
    await leads(memory)
    for name in ("diary", "plain", "made-by-hand"):
        assert is_leading(first, name)
    assert await first.singleton(Plain).where()
    for gate in ("h0", "h1"):
        gates[gate].open()
    await held


async def test_a_message_makes_it_when_memory_is_full(memory: MemoryCluster) -> None:
    """One that rests after a failed start gets a place when somebody calls it, though all entities are busy."""

    async def fail(me: Diary) -> None:
        if story.ran["on_become_leader"] <= 4:
            raise ConnectionError("not yet")

    story.act["on_become_leader"] = fail
    memory.settings = Settings(shards_per_group=16, max_resident=3)
    runner = await memory.start_runner()
    held = soon(outcomes(*(runner.client(Entry)(f"h{n}").hold() for n in range(3))))
    await until(lambda: story.ran["on_become_leader"] == 4)
    (first,) = await outcomes(runner.singleton(Diary).add("a"))
    assert not isinstance(first, MailboxFull)
    assert await runner.singleton(Diary).add("b")
    for gate in ("h0", "h1", "h2"):
        gates[gate].open()
    await held


async def test_a_singleton_does_not_leave_for_being_idle(memory: MemoryCluster) -> None:
    """Neither room for others, nor `keep_alive(False)`, ends it."""
    memory.settings = Settings(shards_per_group=16, max_resident=4)
    runner = await memory.start_runner()
    await leads(memory)

    async def let_go(me: Diary) -> None:
        current().keep_alive(False)

    story.act["let go"] = let_go
    await runner.singleton(Diary).do("let go")
    for n in range(20):
        assert await runner.client(Entry)(f"e{n}").ask()
    assert "on_lose_leadership" not in story.log
    assert is_leading(runner)


async def test_a_message_that_comes_first_does_not_make_a_second_one(memory: MemoryCluster) -> None:
    """A call while the singleton starts waits for that activation."""
    story.act["on_become_leader"] = at_gate("start")
    runner = await memory.start_runner()
    await gates["start"].came()
    call = soon(runner.singleton(Diary).add("a"))
    await asyncio.sleep(0.02)
    gates["start"].open()
    assert await call == 1
    assert story.ran["on_activate"] == 1


async def test_the_same_program_without_singletons_leads_none(memory: MemoryCluster) -> None:
    """A runner whose hub does not declare it never leads it."""
    bare = Hub()
    bare.register(Entry)
    runner = await memory.start_runner(hub=bare)
    assert not host_of(runner).singletons.has_any
    assert (await runner.health())[0].singletons == []


async def test_contexts_do_not_leak(memory: MemoryCluster) -> None:
    """What a hook, `run` or a handler sets in a context variable, or a caller has set, no other run sees."""
    mark: ContextVar[str] = ContextVar("mark", default="clean")

    def marking(name: str) -> Callable[[Diary], Awaitable[None]]:
        async def act(me: Diary) -> None:
            story.seen[name].append(mark.get())
            mark.set(name)
            if name == "run":
                await asyncio.Event().wait()

        return act

    for name in ("on_become_leader", "run", "call", "on_lose_leadership"):
        story.act[name] = marking(name)
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    mark.set("caller")
    await runner.singleton(Diary).do("call")
    await runner.singleton(Diary).do("call")
    await memory.stop(runner)
    assert story.seen == {
        "on_become_leader": ["clean"],
        "run": ["clean"],
        "call": ["clean", "clean"],
        "on_lose_leadership": ["clean"],
    }
