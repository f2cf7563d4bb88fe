"""The parts of a real cluster, made from settings: Postgres and gRPC.

The hub imports this module when it connects, not when it is imported itself. So declaring entities, and printing help,
load neither gRPC nor asyncpg.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack

from actorhub.core.clock import Clock
from actorhub.core.config import Settings
from actorhub.core.envelope import Hello
from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.engine.model.spec import EntitySpec
from actorhub.ops import port_services
from actorhub.ops.channels import tls_files
from actorhub.storage.postgres import PostgresStorage
from actorhub.storage.postgres.embedded import EmbeddedPostgres
from actorhub.transport.grpc import AddService, GrpcTransport
from actorhub.transport.outbox import LinkLimits


async def postgres_storage(settings: Settings, clock: Clock, stack: AsyncExitStack) -> PostgresStorage:
    """Return the store in the given database or, without one, in an embedded Postgres that `stack` stops again."""
    url = settings.database_url
    if url is None:
        server = EmbeddedPostgres()
        url = await server.start()
        stack.push_async_callback(server.stop)
    return PostgresStorage(
        url,
        namespace=settings.namespace,
        clock=clock,
        max_connections=settings.max_connections,
        lock_url=settings.lock_database_url,
        locks=settings.locks,
    )


async def runner_finder(
    settings: Settings, clock: Clock, stack: AsyncExitStack
) -> tuple[Callable[[], Awaitable[Collection[str]]], PostgresStorage | None]:
    """Return how a client finds the addresses of runners, and the store if it can reach that.

    Given gateways are taken as they are. Otherwise the runner table of the store is read.
    """
    if settings.gateway or settings.database_url is None:
        gateways = [str(address) for address in settings.gateway or (settings.admin,)]

        async def given() -> Collection[str]:
            return gateways

        return given, None
    storage = PostgresStorage(
        settings.database_url,
        namespace=settings.namespace,
        clock=clock,
        max_connections=settings.max_connections,
        client=True,
    )
    stack.push_async_callback(storage.aclose)
    await storage.open()

    async def registered() -> Collection[str]:
        return [runner.info.runner.address for runner in await storage.runners()]

    return registered, storage


def runner_transport(
    settings: Settings, hello: Hello, acceptor: LinkAcceptor, specs: Mapping[str, EntitySpec]
) -> GrpcTransport:
    """Return a transport that listens, and that serves operators and gateway clients on the same port."""
    return grpc_transport(
        settings, hello, listen=str(settings.listen), services=port_services(acceptor, specs, settings)
    )


def grpc_transport(
    settings: Settings, hello: Hello, *, listen: str | None = None, services: Sequence[AddService] = ()
) -> GrpcTransport:
    """Return a transport. Without `listen`, it only connects."""
    return GrpcTransport(
        hello,
        listen=listen,
        tls=tls_files(settings),
        token=settings.token,
        insecure=settings.insecure,
        limits=LinkLimits(max_message_bytes=settings.max_message_bytes),
        services=services,
    )
