"""What does a link cost, compared with the bare gRPC stream under it?

`raw` is grpc.aio with coalescing and nothing else, `ping` is its bare round trip, and `link` is ours. All of them carry
the same envelopes between two processes. They run interleaved, each in fresh processes.

    python -m benchmarks.bench_stream [--rounds 3] [--asks 150000]
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc.aio

from actorhub.core.envelope import ASK, PROTOCOL_VERSION, Envelope, Hello, Reply, Request, decode_frame, encode_frame
from actorhub.transport.grpc import GrpcTransport
from actorhub.transport.grpc.streams import (
    ClientStream,
    ServerStream,
    add_stream_service,
    open_stream,
    pack_frame,
    read_message,
    unpack_frame,
)
from actorhub.transport.ports import Link, LinkEvents
from benchmarks._harness import LOOPS, latencies, medians, peer, report, result_of, rss_bytes, run

BODY = b"x" * 100
IN_FLIGHT = 256
ROUND_TRIPS = 3_000


def ask(number: int) -> Request:
    return Request(number, ASK, "orders", "ada", "process", BODY, 30_000)


class Coalescer:
    """The simplest thing that coalesces: a list, and a task that writes all of it."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._write = write
        self._queue: list[Envelope] = []
        self._wakeup: asyncio.Future[None] | None = None

    def send(self, envelope: Envelope) -> None:
        self._queue.append(envelope)
        if self._wakeup is not None:
            self._wakeup.set_result(None)
            self._wakeup = None

    async def run(self) -> None:
        while True:
            if not self._queue:
                self._wakeup = asyncio.get_running_loop().create_future()
                await self._wakeup
            batch, self._queue = self._queue, []
            await self._write(pack_frame(encode_frame(batch)))


class Caller:
    """Asks over any sender, and matches the replies."""

    def __init__(self) -> None:
        self.send: Callable[[Envelope], None]
        self._pending: dict[int, asyncio.Future[Reply]] = {}
        self._number = 0
        self._loop = asyncio.get_running_loop()

    async def ask(self) -> Reply:
        self._number = number = self._number + 1
        reply: asyncio.Future[Reply] = self._loop.create_future()
        self._pending[number] = reply
        self.send(ask(number))
        return await reply

    def accept(self, link: Link) -> LinkEvents:
        self.send = link.send
        return self

    def received(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            assert isinstance(envelope, Reply)
            self._pending.pop(envelope.id).set_result(envelope)

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        pass


class Echo:
    """Replies to every request immediately."""

    def __init__(self, send: Callable[[Envelope], None]) -> None:
        self._send = send

    def received(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            assert isinstance(envelope, Request)
            self._send(Reply(envelope.id, 1, envelope.body))

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        pass


class EchoAcceptor:
    def accept(self, link: Link) -> LinkEvents:
        return Echo(link.send)


async def serve_raw(_: object, context: ServerStream) -> None:
    async with asyncio.TaskGroup() as tasks:
        out = Coalescer(context.write)
        writing = tasks.create_task(out.run())
        echo = Echo(out.send)
        while (message := await read_message(context)) is not None:
            echo.received(decode_frame(unpack_frame(message)))
        writing.cancel()


async def serve_ping(_: object, context: ServerStream) -> None:
    while (message := await read_message(context)) is not None:
        [request] = decode_frame(unpack_frame(message))
        assert isinstance(request, Request)
        await context.write(pack_frame(encode_frame([Reply(request.id, 1, request.body)])))


async def _identify(_request: bytes, _context: object) -> bytes:
    return b""


async def serve(mode: str) -> None:
    if mode == "link":
        transport = GrpcTransport(Hello(PROTOCOL_VERSION, "bench", "", "server"), listen="127.0.0.1:0")
        print(await transport.listen(EchoAcceptor()), flush=True)
        await asyncio.Event().wait()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_stream_service(server, serve_ping if mode == "ping" else serve_raw, _identify)
    print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    await server.wait_for_termination()


async def measure(caller: Caller, asks: int) -> dict[str, float]:
    async def work(count: int) -> None:
        for _ in range(count):
            await caller.ask()

    async def all_at_once(count: int) -> float:
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(work(count // IN_FLIGHT))
        return time.perf_counter() - begin

    await all_at_once(asks // 5)
    seconds = await all_at_once(asks)
    return {"asks_per_s": round(asks // IN_FLIGHT * IN_FLIGHT / seconds), **await round_trips(caller.ask)}


async def round_trips(once: Callable[[], Awaitable[object]]) -> dict[str, float]:
    taken: list[float] = []
    for _ in range(ROUND_TRIPS + 300):
        begin = time.perf_counter()
        await once()
        taken.append(time.perf_counter() - begin)
    return {**latencies(taken[300:]), "rss_mib": round(rss_bytes() / 2**20, 1)}


async def call_link(address: str, asks: int) -> dict[str, float]:
    transport = GrpcTransport(Hello(PROTOCOL_VERSION, "bench", "", "client"))
    caller = Caller()
    await transport.connect(address, caller, deadline=10)
    found = await measure(caller, asks)
    await transport.aclose(1)
    return found


async def call_raw(address: str, asks: int) -> dict[str, float]:
    caller = Caller()

    async def read(call: ClientStream) -> None:
        while (message := await read_message(call)) is not None:
            caller.received(decode_frame(unpack_frame(message)))

    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as tasks:
        call = open_stream(channel, None)
        out = Coalescer(call.write)
        caller.send = out.send
        moving = [tasks.create_task(read(call)), tasks.create_task(out.run())]
        found = await measure(caller, asks)
        for task in moving:
            task.cancel()
    return found


async def call_ping(address: str, _asks: int) -> dict[str, float]:
    async with grpc.aio.insecure_channel(address) as channel:
        call = open_stream(channel, None)

        async def once() -> None:
            await call.write(pack_frame(encode_frame([ask(1)])))
            decode_frame(unpack_frame(await read_message(call)))

        return await round_trips(once)


def compare(rounds: int, asks: int) -> dict[str, Any]:
    found: dict[str, dict[str, list[dict[str, float]]]] = {loop: {} for loop in LOOPS}
    for _ in range(rounds):
        for loop in LOOPS:
            for mode in ("raw", "link", "ping"):
                with peer(__file__, "--serve", mode, "--loop", loop) as (_process, address):
                    one = result_of(__file__, "--call", mode, "--at", address, "--loop", loop, "--asks", str(asks))
                found[loop].setdefault(mode, []).append(one)
                print(f"{loop} {mode}: {one}", file=sys.stderr)
    results: dict[str, Any] = {}
    for loop, modes in found.items():
        middle = {mode: medians(ones) for mode, ones in modes.items()}
        results[loop] = {
            **middle,
            "link_throughput_of_raw": round(middle["link"]["asks_per_s"] / middle["raw"]["asks_per_s"], 3),
            "link_round_trip_of_raw": round(middle["link"]["p50_us"] / middle["raw"]["p50_us"], 3),
            "link_round_trip_of_ping": round(middle["link"]["p50_us"] / middle["ping"]["p50_us"], 3),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--asks", type=int, default=150_000)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio", help=argparse.SUPPRESS)
    for name in ("--serve", "--call", "--at"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run(serve(options.serve), options.loop)
    elif options.call:
        call = {"raw": call_raw, "link": call_link, "ping": call_ping}[options.call]
        print(json.dumps(run(call(options.at, options.asks), options.loop)))
    else:
        results = compare(options.rounds, options.asks)
        report("stream", {"in_flight": IN_FLIGHT, **results}, ("grpcio", "protobuf", "msgspec", "uvloop"))


if __name__ == "__main__":
    main()
