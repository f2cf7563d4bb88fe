"""actorhub without its fence, to measure the cost of the fence."""

import contextlib
from collections.abc import AsyncGenerator

from actorhub.cluster import Cluster
from actorhub.core.clock import SystemClock
from actorhub.core.config import load_settings
from actorhub.core.envelope import PROTOCOL_VERSION, Hello
from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.storage.postgres import PostgresStorage
from actorhub.transport.grpc import GrpcTransport
from benchmarks._workload import hub


@contextlib.asynccontextmanager
async def unfenced(url: str, namespace: str) -> AsyncGenerator[Cluster, None]:
    """Run a runner like `hub.runner`, on a storage that does not check the fence."""
    async with contextlib.AsyncExitStack() as stack:
        clock = SystemClock()
        settings = load_settings(
            {"database_url": url, "namespace": namespace, "listen": "127.0.0.1:0"}, {}, origin="hub.runner"
        )
        hello = Hello(PROTOCOL_VERSION, namespace, "127.0.0.1:0", clock.token())
        storage = PostgresStorage(url, namespace=namespace, clock=clock, fence=False)
        transport = GrpcTransport(hello, listen="127.0.0.1:0")
        yield await hub.assemble(
            settings, stack, clock=clock, storage=storage, transport=transport, acceptor=LinkAcceptor()
        )
