"""Programs that a process starts while gRPC runs in it."""

import asyncio
from collections import Counter
from pathlib import Path

from actorhub.conformance.transport_pair import hello
from actorhub.core.envelope import Cancel
from actorhub.storage.postgres.programs import run_as, server_account
from actorhub.transport.grpc import GrpcTransport
from tests.transport.grpc_peer import EchoAcceptor, _Silent


async def test_the_postgres_programs_run_while_grpc_does() -> None:
    """A program that runs as another user starts every time, however busy gRPC's threads are."""
    listening = GrpcTransport(hello("a"), listen="127.0.0.1:0")
    address = await listening.listen(EchoAcceptor())
    dialling = GrpcTransport(hello("b"))
    links = [await dialling.connect(address, _Silent(), deadline=5) for _ in range(4)]
    account = server_account(Path("/nonexistent"))
    codes: Counter[int] = Counter()

    async def talk() -> None:
        while codes.total() < 40:
            for link in links:
                link.send(Cancel(1, False))
            await asyncio.sleep(0.0005)

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(talk())
            for _ in range(40):
                done = await asyncio.to_thread(run_as, account, ["/bin/true"], timeout=10)
                codes[done.returncode] += 1
    finally:
        await dialling.aclose(1)
        await listening.aclose(1)
    assert codes == {0: 40}
