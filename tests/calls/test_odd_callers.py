"""Generated callers, peers and rows with odd values: a wrong one fails its own call, and nobody else notices."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from random import Random
from typing import Final

import grpc.aio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actorhub import Cluster, current
from actorhub.cli.message_rows import message_line, message_record, message_text
from actorhub.cluster import part_of
from actorhub.core.errors import MalformedMessage, MessageCancelled, PersistenceError
from actorhub.ops.message_rows import listed_message, whole_message
from actorhub.storage.message_ports import MessageFilter, NewMessage
from actorhub.testing import MemoryCluster
from actorhub.transport.grpc._pb import client_v1_pb2 as pb
from actorhub.transport.grpc._pb.client_v1_pb2_grpc import GatewayStub
from tests.calls.odd_values import (
    CALLERS,
    HANDLERS,
    VALUES,
    is_hopeless,
    judge,
    outcome,
    raw_envelope,
    raw_row,
    transports,
)
from tests.calls.tills import Till, acts, hub
from tests.support.gates import outcomes
from tests.support.parts import runner_of

CASES: Final = 60
"""Odd values of one example, all at once."""
PATIENCE: Final = timedelta(seconds=15)
NEIGHBOURS: Final = 8
Case = tuple[int, int]
"""Which place, and which value."""

_CASES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, len(VALUES) - 1)), min_size=CASES, max_size=CASES)


def random_cases(random: Random) -> list[Case]:
    """Return cases like hypothesis', but chosen by `random`."""
    return [(random.randrange(10_000), random.randrange(len(VALUES))) for _ in range(CASES)]


class Neighbours:
    """Callers who do nothing wrong, on the same links and the same backlog."""

    def __init__(self, cluster: Cluster) -> None:
        self._tills = cluster.client(Till).options(timeout=PATIENCE)
        self._rounds = 0

    async def call(self) -> None:
        """Make calls of every kind at once, and check every answer."""
        self._rounds += 1
        names = [f"n{number}" for number in range(NEIGHBOURS)]
        calls: list[Awaitable[object]] = [self._tills(name).add(1) for name in names]
        calls += [self._tills(f"d{name}").book(1) for name in names]
        calls += [_counted(self._tills(name)) for name in names[:2]]
        found = await outcomes(*calls)
        assert found == [*[self._rounds] * (2 * NEIGHBOURS), 3, 3]

    async def beside(self, *odd: Awaitable[object]) -> list[object]:
        """Call while odd things happen, and afterwards; return what came of those."""
        found, _ = await asyncio.gather(outcomes(*odd), self.call())
        await self.call()
        return found


async def _counted(till: Till) -> int:
    return len([item async for item in till.watch(3)])


class Scene:
    """Two runners and a caller, and what they log."""

    def __init__(self, runners: Sequence[Cluster], client: Cluster, lines: "Lines") -> None:
        self.runner, self.other = runners
        self.client, self.lines = client, lines

    async def odd_calls(self, cases: Sequence[Case]) -> None:
        """Callers pass odd values: each is judged, and the peers could decode everything that was sent."""
        before = transports(self.runner, self.other, self.client)
        places = list(CALLERS)
        chosen = [(places[place % len(places)], VALUES[value]) for place, value in cases]
        caller = self.client if cases[0][0] % 3 else self.runner
        came = await Neighbours(caller).beside(*(outcome(CALLERS[place][0], caller, value) for place, value in chosen))
        for (place, value), result in zip(chosen, came, strict=True):
            judge(place, CALLERS[place][1], value, result)
        assert transports(self.runner, self.other, self.client) == before
        await self.people_can_look()

    async def odd_handlers(self, cases: Sequence[Case]) -> None:
        """Handlers pass odd values to `current()`: each is judged, and the handler goes on."""
        before = transports(self.runner, self.other, self.client)
        places = list(HANDLERS)
        chosen = [(places[place % len(places)], VALUES[value]) for place, value in cases]
        came: dict[int, object] = {}

        async def act(number: int) -> None:
            place, value = chosen[number]
            came[number] = await outcome(HANDLERS[place][0], current(), value)

        acts[:] = [partial(act, number) for number in range(len(chosen))]
        tills = self.client.client(Till).options(timeout=PATIENCE)
        ended = await Neighbours(self.client).beside(*(tills(f"odd {n}").act(n) for n in range(len(chosen))))
        for number, (place, value) in enumerate(chosen):
            judge(place, HANDLERS[place][1], value, came[number])
            assert ended[number] is None, (place, value, ended[number])
        assert transports(self.runner, self.other, self.client) == before
        await self.people_can_look()

    async def odd_envelopes(self, cases: Sequence[Case]) -> None:
        """A peer sends odd envelopes over the link of everybody else: none is closed."""
        before = transports(self.runner, self.other, self.client)
        links = [peer.link for peer in part_of(self.client).node.peers.runners()]

        async def send(number: int, case: Case) -> None:
            envelope = raw_envelope(self.client, (1 << 40) + number, case[0], VALUES[case[1]])
            if envelope is not None:
                links[number % len(links)].send(envelope)

        await Neighbours(self.client).beside(*(send(number, case) for number, case in enumerate(cases)))
        after = transports(self.runner, self.other, self.client)
        assert [closed for closed, _ in after] == [closed for closed, _ in before]
        for row in await runner_of(self.runner).storage.messages.messages(MessageFilter()):
            assert row.message_id != 0
            assert row.deliver_at is None or row.deliver_at < 1e13
        await self.people_can_look()

    async def odd_rows(self, cases: Sequence[Case]) -> None:
        """A hand writes odd rows into the store: what is behind them runs."""
        made = [raw_row(self.runner, place, VALUES[value]) for place, value in cases]
        good = [raw_row(self.runner, 8, number) for number in range(1000, 1003)]

        async def write(row: NewMessage | None) -> None:
            if row is not None:
                await runner_of(self.runner).storage.messages.deposit(row)

        came = await Neighbours(self.client).beside(*map(write, [*made, *good]), self.runner.poll_storage())
        assert all(result is None or isinstance(result, PersistenceError) for result in came), came
        await asyncio.gather(self.runner.poll_storage(), self.other.poll_storage())
        for row in good:
            assert row is not None
            assert isinstance(await self.client.reply(row.message_id, timeout=PATIENCE), int)
        for row, result in zip(made, came, strict=False):
            if row is not None and result is None and is_hopeless(row):
                refused = await outcome(lambda c, message_id: c.reply(message_id), self.client, row.message_id)
                assert isinstance(refused, MalformedMessage | MessageCancelled), (row, refused)
        await self.people_can_look()

    async def people_can_look(self) -> None:
        """Every message is listed, shown and printed, and can be cancelled; and the log is short."""
        store, specs = runner_of(self.runner).storage.messages, hub.specs
        for listed in await store.messages(MessageFilter()):
            row = await store.find(listed.message_id)
            if row is None:
                continue
            shown = whole_message(row, specs)
            assert message_text(shown)
            assert message_line(listed_message(row, specs), 0.0)
            assert msgspec.json.encode(message_record(shown))
            if row.reply is None and row.message_id % 3 == 0:
                assert await self.client.cancel(row.message_id) in (True, False)
        self.lines.check()


class Lines(logging.Handler):
    """Counts what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.counts[record.getMessage()] += 1

    def check(self) -> None:
        """Check that no line comes again and again."""
        assert all(count <= 3 for count in self.counts.values()), self.counts.most_common(3)


async def in_memory(act: str, cases: Sequence[Case]) -> None:
    """Let two runners in memory and a client go through one example."""
    lines = Lines()
    logging.getLogger("actorhub").addHandler(lines)
    try:
        async with MemoryCluster(hub) as memory:
            runners = [await memory.start_runner() for _ in range(2)]
            await memory.settled()
            scene = Scene(runners, await memory.client(), lines)
            await getattr(scene, act)(cases)
    finally:
        logging.getLogger("actorhub").removeHandler(lines)


ACTS: Final = ("odd_calls", "odd_handlers", "odd_envelopes", "odd_rows")
_LOOSE: Final = settings(suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("act", ACTS)
@settings(_LOOSE, max_examples=4)
@given(cases=_CASES)
async def test_odd_values_disturb_nobody(act: str, cases: list[Case]) -> None:
    """Of callers, in envelopes, and in rows."""
    await in_memory(act, cases)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("act", ACTS)
@settings(_LOOSE, max_examples=400)
@given(cases=_CASES)
async def test_odd_values_in_the_long_run_disturb_nobody(act: str, cases: list[Case]) -> None:
    """Twenty thousand of each kind."""
    await in_memory(act, cases)


async def _on_postgres(url: str, act: str, random: Random) -> None:
    lines, grace = Lines(), timedelta(seconds=2)
    logging.getLogger("actorhub").addHandler(lines)
    try:
        async with AsyncExitStack() as stack:
            runners = [
                await stack.enter_async_context(
                    hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16, grace=grace)
                )
                for _ in range(2)
            ]
            assert runners[0].runner is not None
            address = runners[0].runner.address
            scene = Scene(runners, await stack.enter_async_context(hub.connect(gateway=address)), lines)
            if act == "odd_requests":
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
                await _odd_requests(GatewayStub(channel), scene, random)
            else:
                await getattr(scene, act)(random_cases(random))
    finally:
        logging.getLogger("actorhub").removeHandler(lines)


async def _odd_requests(gateway: GatewayStub, scene: Scene, random: Random) -> None:
    """Another language sends the gateway odd requests, in JSON and in msgpack: each is answered within a reply."""

    async def send() -> str:
        request = pb.CallRequest(entity_type="till", entity_id="odd", handler=random.choice(("add", "book")))
        request.encoding = random.choice((pb.ENCODING_JSON, pb.ENCODING_MSGPACK))
        request.arguments = b"1" if request.encoding == pb.ENCODING_JSON else b"\x91\x01"
        request.timeout_ms = 5_000
        for _ in range(random.randrange(3)):
            name = random.choice(
                ("entity_type", "entity_id", "handler", "arguments", "key", "deliver_at_ms", "delay_ms")
            )
            value = random.choice(VALUES)
            try:
                setattr(request, name, value)
            except (TypeError, ValueError):
                request.headers["x"] = "x" * random.choice((0, 1, 70_000))
        reply = await random.choice((gateway.Call, gateway.Tell))(request)
        kind: str = reply.failure.kind
        return kind

    failures = await Neighbours(scene.client).beside(*(send() for _ in range(CASES)))
    assert {*failures} <= {"", "MalformedMessage", "UnknownEntityType", "UnknownHandler", "CallTimeout", "DuplicateKey"}
    await scene.people_can_look()


@pytest.mark.parametrize("act", [*ACTS, "odd_requests"])
async def test_odd_values_disturb_nobody_on_a_real_postgres(postgres_url: str, act: str) -> None:
    """Nor over real links, nor through the gateway."""
    await _on_postgres(postgres_url, act, Random(5))


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("act", [*ACTS, "odd_requests"])
async def test_odd_values_in_the_long_run_disturb_nobody_there(postgres_url: str, act: str, seed: int) -> None:
    """Whatever they are."""
    await _on_postgres(postgres_url, act, Random(seed))
