"""Generated misbehaviour in every kind of handler: everybody is answered, and what was committed is what is there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from random import Random
from typing import Final, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actorhub import ActorhubError, CallTimeout, Cluster, HandlerFailed, RunnerUnavailable
from actorhub._stream_call import StreamCall
from actorhub.testing import MemoryCluster
from tests.calls.misbehaving import ACTS, ENDINGS, Actor, Loop, Records, Script, Trace, Waker, hub, shelf, tick
from tests.support.gates import outcomes
from tests.support.parts import host_of

CASES: Final = 100
"""Calls of one example; all at once, to a third as many entities."""
ANSWER: Final = timedelta(seconds=20)
KINDS: Final = ("plain", "plain", "from_elsewhere", "durable", "in_a_step", "stream", "stream", "loop", "loop plain",
                "cron")  # fmt: skip
_HARMLESS: Final = {"mark", "pause", "save", "save_twice", "keep_its_task", "keep_its_task_weakly", "cancel_kept_tasks",
                    "call_back", "call_back_in_vain", "tell", "leave_a_save", "leave_a_late_save",
                    "leave_a_late_change"}  # fmt: skip

_OF_NEIGHBOURS: Final = ("longer than its timeout", "its activation ended", "because its entity moved")

_SCRIPTS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.lists(st.sampled_from(ACTS), max_size=5).map(tuple),
        # What takes a second to be given up is rare, so that an example is soon over.
        st.integers(0, 400).map(
            lambda number: ENDINGS[number % (len(ENDINGS) if number % 25 == 0 else len(ENDINGS) - 2)]
        ),
    ),
    min_size=CASES,
    max_size=CASES,
)
Case = tuple[str, tuple[str, ...], str]


def random_cases(random: Random) -> list[Case]:
    """Return cases like hypothesis', but chosen by `random`."""

    def case() -> Case:
        acts = tuple(random.choice(ACTS) for _ in range(random.randrange(6)))
        return random.choice(KINDS), acts, random.choice((*ENDINGS[:-2] * 10, *ENDINGS[-2:]))

    return [case() for _ in range(CASES)]


def _call(cluster: Cluster, number: int, case: Case) -> Awaitable[object]:
    kind, acts, ending = case
    if kind == "cron":
        return tick(cluster, Script(number, acts, "return" if ending in ENDINGS[-2:] else ending), ANSWER)
    script = Script(number, acts, ending)
    if kind in ("loop", "loop plain"):
        loop = cluster.singleton(Loop, timeout=ANSWER)
        return loop.do(script) if kind == "loop" else loop.plain(script)
    actor = cluster.client(Actor).options(timeout=ANSWER)(f"e{number % (CASES // 3)}")
    if kind == "stream":
        return _consume(actor.stream(script), number)
    call: Awaitable[object] = getattr(actor, kind)(script)
    return call


async def _consume(stream: AsyncIterator[int], number: int) -> list[int]:
    """Consume a stream, and leave every third one early."""
    items: list[int] = []
    async for item in stream:
        items.append(item)
        if number % 3 == 0 and len(items) == 2:
            break
    await cast("StreamCall", stream).aclose()
    return items


async def _throw(cluster: Cluster, cases: Sequence[Case]) -> list[object]:
    """Make all calls at once, in the order of their numbers for each entity; return their outcomes."""
    answers = await outcomes(*(_call(cluster, number, case) for number, case in enumerate(cases)))
    for case, answer in zip(cases, answers, strict=True):
        assert not isinstance(answer, Exception) or isinstance(answer, ActorhubError), (case, answer)
        assert not (isinstance(answer, CallTimeout) and "deadline" in str(answer)), (case, answer)
        kind, acts, ending = case
        if isinstance(answer, Exception) and ending == "return" and _HARMLESS.issuperset(acts):
            # On a slow machine a handler may exceed its timeout, and one that is given up takes its neighbours along.
            assert isinstance(answer, CallTimeout | HandlerFailed | RunnerUnavailable), (kind, acts, answer)
            assert any(reason in str(answer) for reason in _OF_NEIGHBOURS), (kind, acts, answer)
    return answers


def _check_marks(
    name: str, marks: Sequence[str], records: Records, cases: Sequence[Case], answers: list[object]
) -> None:
    """Every mark that must be there is, once, with those of its run before it; and no other is."""
    assert len(set(marks)) == len(marks), (name, marks)
    left = list(marks)
    for (entity, number), traces in records.runs.items():
        if entity != name:
            continue
        kind, acts, ending = cases[number]
        is_done = not isinstance(answers[number], Exception)
        found = [mark for mark in left if mark.split(".")[0] == str(number)]
        allowed = _allowed(kind, traces, is_done)
        assert found in allowed, (name, number, kind, acts, ending, answers[number], found, allowed)
        left = [mark for mark in left if mark not in found]
    assert not left, (name, left)


def _allowed(kind: str, traces: Sequence[Trace], is_done: bool) -> list[list[str]]:
    """Return what may be there of one call: of the last of its runs all if it is done, of each other what was saved."""
    options: list[list[str]] = [[]]
    for place, trace in enumerate(traces):
        counts: Sequence[int]
        if is_done and place == len(traces) - 1 and kind != "stream":
            counts = [len(trace.marks)]
        elif trace.may_save_more or kind == "stream":
            counts = range(trace.saved, len(trace.marks) + 1)
        else:
            counts = [trace.saved]
        options = [[*before, *trace.marks[:count]] for before in options for count in counts]
    return options


async def _all_hold(cluster: Cluster, host: Cluster, cases: Sequence[Case]) -> None:
    records = shelf.clear()
    answers = await _throw(cluster, cases)
    actors = cluster.client(Actor).options(timeout=ANSWER)
    for name in {f"e{number % (CASES // 3)}" for number in range(len(cases))}:
        state = await actors(name).read()
        assert state.anything is None, name
        _check_marks(name, state.marks, records, cases, answers)
    assert (await cluster.singleton(Loop, timeout=ANSWER).read()).anything is None
    assert not records.overlaps
    for cell in host_of(host).cells():
        if not cell.is_singleton:
            assert cell.load == cell.nested == 0, cell.address
            assert cell.queue is None, cell.address


async def misbehave_in_memory(cases: Sequence[Case]) -> None:
    async with MemoryCluster(hub) as memory:
        host = await memory.start_runner()
        cluster = await memory.client() if len(cases[0][1]) % 2 else host
        await _all_hold(cluster, host, cases)
        async with asyncio.timeout(memory.settings.grace.total_seconds() + 2):
            await memory.stop(host)


_LOOSE: Final = settings(suppress_health_check=list(HealthCheck))


@settings(_LOOSE, max_examples=20)
@given(_SCRIPTS)
async def test_nothing_that_handlers_do_breaks_their_entities(cases: list[Case]) -> None:
    """Two thousand calls that misbehave."""
    await misbehave_in_memory(cases)


@pytest.mark.faults
@pytest.mark.slow
@settings(_LOOSE, max_examples=500)
@given(_SCRIPTS)
async def test_nothing_that_handlers_do_in_the_long_run_breaks_their_entities(cases: list[Case]) -> None:
    """Fifty thousand calls that misbehave."""
    await misbehave_in_memory(cases)


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_that_handlers_do_breaks_them_on_a_real_postgres(postgres_url: str, seed: int) -> None:
    """Nor over a real link."""
    grace = timedelta(seconds=3)
    async with AsyncExitStack() as stack:
        making = hub.runner(database_url=postgres_url, listen="127.0.0.1:0", shards_per_group=16, grace=grace)
        host = await stack.enter_async_context(making)
        assert host.runner is not None
        client = await stack.enter_async_context(hub.connect(gateway=host.runner.address))
        await _all_hold(client, host, random_cases(Random(seed)))
        left = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - left < grace.total_seconds() + 2


@pytest.mark.parametrize("ending", sorted(set(ENDINGS) - {"never end", "never give in"}))
async def test_nothing_that_hooks_do_breaks_their_entities(ending: str) -> None:
    """Activations fail, or not, and the next one serves; the entity leaves memory whatever its last hook does."""
    shelf.clear()
    async with MemoryCluster(hub) as memory:
        host = await memory.start_runner()
        waker = host.client(Waker).options(timeout=ANSWER)(ending)
        for _ in range(3):
            await outcomes(waker.read())
        assert (await waker.read()).anything is None
        async with asyncio.timeout(memory.settings.grace.total_seconds() + 2):
            await memory.stop(host)
