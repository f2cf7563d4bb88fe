"""Reentrant handlers: called back by whom their entity waits for, within the run that waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random

import msgspec
import pytest

from actorhub import ActorhubError, Cluster, Entity, HandlerFailed, Hub, current, handler
from actorhub.testing import MemoryCluster, state_of
from tests.support.gates import failure, gates, soon


class Plan(msgspec.Struct):
    """A tree of calls: what a handler marks, whom it asks, and whether it raises in the end."""

    mark: str
    asks: list[tuple[str, "Plan"]] = []
    raises: bool = False
    pauses: int = 0


class Node(Entity[list[str]]):
    """Does what a plan says."""

    async def work(self, plan: Plan) -> None:
        await self._do(plan)

    @handler(reentrant=True)
    async def work_within(self, plan: Plan) -> None:
        await self._do(plan)

    async def _do(self, plan: Plan) -> None:
        self.state.append(plan.mark)
        for _ in range(plan.pauses):
            await asyncio.sleep(0)
        for target, inner in plan.asks:
            node = current().client(Node)(target)
            waits = f"node/{target}" in (*current().chain, f"node/{current().entity_id}")
            with suppress(HandlerFailed):
                await (node.work_within(inner) if waits else node.work(inner))
        if plan.raises:
            raise ValueError(plan.mark)

    @handler(reentrant=True)
    async def add(self, mark: str) -> list[str]:
        self.state.append(mark)
        return self.state

    @handler(reentrant=True)
    async def add_slowly(self, mark: str, gate: str, raises: bool = False) -> None:
        self.state.append(f"{mark} begun")
        await gates[gate].pass_through()
        self.state.append(mark)
        if raises:
            raise ValueError(mark)

    @handler(reentrant=True)
    async def add_and_tell(self, mark: str, told: str) -> None:
        self.state.append(mark)
        await current().tell(current().client(Node)(told).add(mark))

    async def hold(self, gate: str, raises: bool = False) -> list[str]:
        self.state.append("hold")
        await gates[gate].pass_through()
        if raises:
            raise ValueError("hold")
        return self.state

    async def relay(self, target: str, mark: str, gate: str, raises: bool = False) -> None:
        await current().client(Node)(target).add_slowly(mark, gate, raises)

    async def relay_telling(self, target: str, mark: str, told: str) -> None:
        await current().client(Node)(target).add_and_tell(mark, told)

    async def have_told(self, told: str, raises: bool = False) -> None:
        await current().client(Node)("relay").relay_telling(current().entity_id, "nested", told)
        await gates[told].pass_through()
        if raises:
            raise ValueError("outer")

    async def leave_behind(self, gate: str, raises: bool = False) -> None:
        """Return while a call that comes back is under way."""
        self.state.append("outer")
        _ = soon(current().client(Node)("relay").relay(current().entity_id, "nested", gate, raises))
        await gates[gate].came()

    async def change_beside(self, gate: str) -> None:
        """Change the state while a call that comes back, and will fail, is in the middle of a change."""
        call = soon(failure(current().client(Node)("relay").relay(current().entity_id, "nested", gate, raises=True)))
        await gates[gate].came()
        self.state.append("beside")
        gates[gate].open()
        await call

    @handler(reentrant=True)
    async def fail_slowly(self, gate: str) -> None:
        """Change nothing, and raise."""
        await gates[gate].pass_through()
        raise ValueError(gate)

    async def relay_failing(self, target: str, gate: str) -> None:
        await current().client(Node)(target).fail_slowly(gate)

    async def go_on_after(self, gate: str, patience: float) -> list[str]:
        """Give a call up that comes back and changes nothing, and go on while it ends; or wait for it."""
        call = soon(failure(current().client(Node)("relay").relay_failing(current().entity_id, gate)))
        await gates[gate].came()
        self.state.append("beside")
        if patience:
            gates[gate].open()
            await call
        else:
            call.cancel()
        self.state.append("after")
        return self.state

    @handler(readonly=True)
    async def look(self, changes: bool) -> None:
        await current().client(Node)("relay").relay_adding(current().entity_id, changes)

    async def relay_adding(self, target: str, changes: bool) -> None:
        node = current().client(Node)(target)
        await (node.add("within a reader") if changes else node.nothing())

    async def stream(self, marks: list[str]) -> AsyncIterator[str]:
        """Have each mark added by a call that comes back, within a step of this stream."""
        for mark in marks:
            self.state.append(f"before {mark}")
            with suppress(HandlerFailed):
                await current().client(Node)("relay").relay(current().entity_id, mark, "open", mark.startswith("bad"))
            yield mark

    async def consume(self, count: int, fails_at: int) -> list[int]:
        """Consume a stream that runs within this handler's turn."""
        self.state.append("consumer")
        with suppress(HandlerFailed):
            return [number async for number in current().client(Node)(current().entity_id).inner(count, fails_at)]
        return []

    @handler(reentrant=True)
    async def inner(self, count: int, fails_at: int) -> AsyncIterator[int]:
        for number in range(count):
            self.state.append(str(number))
            await asyncio.sleep(0)
            if number == fails_at:
                raise ValueError("in the middle")
            yield number

    @handler(reentrant=True)
    async def nothing(self) -> None:
        pass


hub = Hub()
hub.register(Node)


async def test_a_call_from_elsewhere_waits_for_its_turn(cluster: Cluster) -> None:
    """Only those for whom the entity waits come in; others would be told of a change that may be undone."""
    node = cluster.client(Node)("a")
    held = soon(failure(node.hold("a", raises=True)))
    await gates["a"].came()
    added = soon(node.add("mine"))
    await asyncio.sleep(0.02)
    assert not added.done()
    gates["a"].open()
    assert isinstance(await held, HandlerFailed)
    assert await added == ["mine"]
    assert await node.add("next") == ["mine", "next"]


async def test_a_nested_run_that_raises_takes_its_own_changes_back(memory: MemoryCluster, cluster: Cluster) -> None:
    """The run around it goes on, and its own are committed."""
    inner = Plan("inner", raises=True, pauses=1)
    await cluster.client(Node)("a").work(Plan("outer", [("b", Plan("between", [("a", inner)])), ("a", Plan("second"))]))
    assert await state_of(memory, Node, "a") == ["outer", "second"]
    assert await state_of(memory, Node, "b") == ["between"]


@pytest.mark.parametrize("raises", [False, True])
async def test_what_a_nested_run_tells_leaves_with_the_run_around_it(
    memory: MemoryCluster, cluster: Cluster, raises: bool
) -> None:
    """Not before that is committed, and not at all if it raises."""
    node = cluster.client(Node)
    working = soon(failure(node("a").have_told("told", raises)) if raises else node("a").have_told("told"))
    await gates["told"].came()
    await asyncio.sleep(0.02)
    assert await state_of(memory, Node, "told") == []
    gates["told"].open()
    await working
    assert await node("told").add("last") == (["last"] if raises else ["nested", "last"])
    assert await state_of(memory, Node, "a") == ([] if raises else ["nested"])


@pytest.mark.parametrize("raises", [False, True])
async def test_a_run_ends_after_the_runs_within_it(memory: MemoryCluster, cluster: Cluster, raises: bool) -> None:
    """A handler that returns without waiting for them commits what they changed, or took back, in the end."""
    node = cluster.client(Node)
    leaving = soon(node("a").leave_behind("gate", raises))
    await gates["gate"].came()
    await asyncio.sleep(0.02)
    assert not leaving.done()
    assert await state_of(memory, Node, "a") == []
    gates["gate"].open()
    await leaving
    kept = ["outer"] if raises else ["outer", "nested begun", "nested"]
    assert await state_of(memory, Node, "a") == kept
    assert await node("a").add("next") == [*kept, "next"]


async def test_changes_of_a_failed_nested_run_among_others_undo_all(memory: MemoryCluster, cluster: Cluster) -> None:
    """Nobody can tell them apart, so nothing of the run around it is committed, and the next one finds what was."""
    node = cluster.client(Node)("a")
    await node.add("before")
    with pytest.raises(ActorhubError) as caught:
        await node.change_beside("gate")
    assert caught.value.possibly_executed
    assert await state_of(memory, Node, "a") == ["before"]
    assert await node.add("after") == ["before", "after"]


@pytest.mark.parametrize("patience", [0.0, 1.0], ids=["given up", "awaited"])
async def test_a_failed_nested_run_that_changed_nothing_costs_nothing(
    memory: MemoryCluster, cluster: Cluster, patience: float
) -> None:
    """The run around it has changed the state meanwhile, and keeps that."""
    node = cluster.client(Node)("a")
    assert await node.go_on_after("gate", patience) == ["beside", "after"]
    assert await state_of(memory, Node, "a") == ["beside", "after"]


async def test_within_a_readonly_handler_nothing_is_changed(memory: MemoryCluster, cluster: Cluster) -> None:
    """A call that comes back may run there, and fails if it changes the state."""
    node = cluster.client(Node)("a")
    await node.look(changes=False)
    with pytest.raises(HandlerFailed, match="changed the state within a readonly handler"):
        await node.look(changes=True)
    assert await node.add("after") == ["after"]


async def test_a_call_may_come_back_to_a_step_of_a_stream(memory: MemoryCluster, cluster: Cluster) -> None:
    """It runs within the step, and is committed with it."""
    gates["open"].open()
    stream = cluster.client(Node)("a").stream(["one", "bad", "two"])
    expected: list[str] = []
    async for mark in stream:
        expected += [f"before {mark}"] if mark == "bad" else [f"before {mark}", f"{mark} begun", mark]
        assert (await state_of(memory, Node, "a"))[: len(expected)] == expected
    assert await state_of(memory, Node, "a") == expected


async def test_a_stream_within_a_turn_is_committed_with_it(memory: MemoryCluster, cluster: Cluster) -> None:
    """A step that fails is taken back, and those before it are kept."""
    node = cluster.client(Node)("a")
    assert await node.consume(3, fails_at=-1) == [0, 1, 2]
    assert await state_of(memory, Node, "a") == ["consumer", "0", "1", "2"]
    assert await node.consume(3, fails_at=1) == []
    assert await node.add("last") == ["consumer", "0", "1", "2", "consumer", "0", "last"]


@pytest.mark.parametrize("seed", range(30))
async def test_trees_of_calls_leave_what_their_runs_committed(seed: int) -> None:
    """Whatever part of a tree raises, its marks are gone with those of what ran within it, and all others are there."""
    random = Random(seed)
    async with MemoryCluster(hub) as memory:
        first, second = await memory.start_runner(), await memory.start_runner()
        await memory.settled()
        expected: dict[str, list[str]] = {name: [] for name in "abc"}
        for number in range(15):
            root, plan = random.choice("abc"), _plan(random, f"{number}", depth=4)
            client = random.choice((first, second)).client(Node)
            await asyncio.gather(client(root).work(plan), return_exceptions=True)
            for name, marks in _committed(root, plan, {}).items():
                expected[name] += marks
            for name in "abc":
                assert await state_of(memory, Node, name) == expected[name]


def _plan(random: Random, mark: str, depth: int) -> Plan:
    count = random.randrange(3) if depth else 0
    asks = [(random.choice("abc"), _plan(random, f"{mark}.{number}", depth - 1)) for number in range(count)]
    return Plan(mark, asks, raises=random.random() < 0.3, pauses=random.randrange(2))


def _committed(name: str, plan: Plan, open_runs: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return what a run commits at other entities, and at its own if it is not within another run of that."""
    is_nested = name in open_runs
    marks = open_runs.setdefault(name, [])
    length = len(marks)
    marks.append(plan.mark)
    committed: dict[str, list[str]] = {}
    for target, inner in plan.asks:
        for where, found in _committed(target, inner, open_runs).items():
            committed.setdefault(where, []).extend(found)
    if plan.raises:
        del marks[length:]
    if not is_nested:
        committed.setdefault(name, []).extend(open_runs.pop(name))
    return committed
