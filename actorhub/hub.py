"""The hub: what a program declares, and the ways to join a cluster with it."""

import inspect
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

from actorhub.cluster import Cluster, cluster_here, leave
from actorhub.core.address import HASH_VERSION, RunnerAddress, RunnerInfo
from actorhub.core.clock import Clock, SystemClock
from actorhub.core.config import Settings, load_settings
from actorhub.core.envelope import PROTOCOL_VERSION, Hello
from actorhub.core.errors import ConfigurationError
from actorhub.engine.client_node import ClientNode
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import HostedType
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.ownership.placement import PLACEMENT_VERSION
from actorhub.engine.runner import LinkAcceptor, Runner
from actorhub.entity import Declared
from actorhub.storage.ports import ClusterValues, Storage
from actorhub.transport.ports import Transport

E = TypeVar("E", bound=Declared[Any])

VERSION: Final = "0.1.0"

_CONNECT_DEADLINE: Final = 10.0
"""Seconds that `connect` waits for a first runner."""


class Hub:
    """What a program declares. Import it by reference (`shop:hub`) to run it with `actorhub serve`."""

    def __init__(self) -> None:
        self._types: dict[str, HostedType] = {}

    def register(self, entity: type[E], factory: Callable[[], E] | None = None) -> None:
        """Declare the class of an entity or of a singleton.

        Args:
            entity: The class.
            factory: Makes an instance, once per activation; by default the class itself, without arguments.

        Raises:
            ConfigurationError: another class has the same name.
            TypeError: an annotation of the class cannot be resolved, or is of a type that cannot be sent; or its
                constructor takes arguments and there is no factory.
        """
        spec = entity.__declaration__.spec
        if spec.name in self._types:
            raise ConfigurationError(
                f"two entity classes are called {spec.name!r}: give one of them another name: "
                f"class {entity.__name__}(Entity, name=...)"
            )
        if factory is None:
            _check_constructor(entity)
        self._types[spec.name] = HostedType(spec, factory or entity)

    @property
    def specs(self) -> Mapping[str, EntitySpec]:
        """The declared entity types by name."""
        return {name: hosted.spec for name, hosted in self._types.items()}

    @asynccontextmanager
    async def connect(self, **settings: Any) -> AsyncGenerator[Cluster, None]:
        """Join as a client that only calls.

        Args:
            settings: The settings of `actorhub serve` by keyword; those not given come from the environment, then from
                `actorhub.toml`. With `gateway` (one or more HOST:PORT of runners) no database is needed; with
                `database_url` the runners are found there; with neither, a runner at 127.0.0.1:7700 is asked.

        Raises:
            ConfigurationError: a setting is wrong.
            RunnerUnavailable: no runner answered within 10 s. With `database_url`, a cluster that had runners before is
                joined without one after 2 s: durable tells are stored, the rest waits.
        """
        loaded = load_settings(settings, os.environ, origin="hub.connect")
        async with self.connect_with(loaded) as cluster:
            yield cluster

    @asynccontextmanager
    async def runner(self, **settings: Any) -> AsyncGenerator[Cluster, None]:
        """Join as a runner that hosts shards in this very process, until the block ends; then hand them over.

        Args:
            settings: As for `connect`. Without `database_url`, an embedded Postgres under `./.actorhub` is used.

        Raises:
            ConfigurationError: a setting is wrong, the database cannot be used, the port is taken, or the cluster has
                other values.
        """
        loaded = load_settings(settings, os.environ, origin="hub.runner")
        async with self.run_with(loaded) as cluster:
            yield cluster

    @asynccontextmanager
    async def connect_with(self, settings: Settings) -> AsyncGenerator[Cluster, None]:
        """Join as a client, with settings that are loaded already."""
        from actorhub import _network  # noqa: PLC0415 - gRPC and asyncpg load when first used: declaring stays fast
        from actorhub.ops import telemetry  # noqa: PLC0415 - as above

        async with AsyncExitStack() as stack:
            clock = SystemClock()
            find, storage = await _network.runner_finder(settings, clock, stack)
            hello = Hello(PROTOCOL_VERSION, settings.namespace, "", clock.token(), machine_id_wanted=storage is None)
            client = ClientNode(
                find_runners=find,
                specs=self.specs,
                transport=_network.grpc_transport(settings, hello),
                clock=clock,
                incarnation=hello.incarnation,
                limits=_limits(settings),
                storage=storage,
            )
            telemetry.observe_client(client, VERSION)
            cluster = Cluster(client, self.specs)
            stack.push_async_callback(leave, cluster, settings.grace.total_seconds())
            await client.start(_CONNECT_DEADLINE)
            yield cluster

    @asynccontextmanager
    async def run_with(self, settings: Settings) -> AsyncGenerator[Cluster, None]:
        """Join as a runner, with settings that are loaded already."""
        from actorhub import _network  # noqa: PLC0415 - as in `connect_with`
        from actorhub.ops import http_server  # noqa: PLC0415 - as above

        async with AsyncExitStack() as stack:
            clock = SystemClock()
            acceptor = LinkAcceptor()
            # First in and last out: it says that the runner is starting, and that it is leaving.
            await stack.enter_async_context(http_server(settings, acceptor, clock))
            storage = await _network.postgres_storage(settings, clock, stack)
            # A port that is picked at the bind is filled in then.
            hello = Hello(
                PROTOCOL_VERSION, settings.namespace, str(settings.advertise or settings.listen), clock.token()
            )
            transport = _network.runner_transport(settings, hello, acceptor, self.specs)
            yield await self.assemble(
                settings, stack, clock=clock, storage=storage, transport=transport, acceptor=acceptor
            )

    async def assemble(
        self,
        settings: Settings,
        stack: AsyncExitStack,
        *,
        clock: Clock,
        storage: Storage,
        transport: Transport,
        acceptor: LinkAcceptor,
    ) -> Cluster:
        """Make a runner of its parts and start it; `stack` ends it again."""
        from actorhub.ops import telemetry  # noqa: PLC0415 - as in `connect_with`

        stack.push_async_callback(storage.aclose)
        await storage.open()
        await storage.agree(
            ClusterValues(
                shards_per_group=settings.shards_per_group, hash_version=f"{HASH_VERSION},{PLACEMENT_VERSION}"
            ),
            groups=len(settings.groups or self._groups()),
        )
        stack.push_async_callback(transport.aclose, 1.0)
        await transport.listen(acceptor)
        hello = transport.hello
        runner = Runner(
            info=RunnerInfo(
                runner=RunnerAddress(hello.address, hello.incarnation),
                weight=settings.weight,
                groups=settings.groups or self._groups(),
                entity_types=tuple(sorted(self._types)),
                version=VERSION,
            ),
            types={name: HostedType(hosted.spec, hosted.factory) for name, hosted in self._types.items()},
            specs=self.specs,
            storage=storage,
            transport=transport,
            clock=clock,
            limits=_limits(settings),
            shards_per_group=settings.shards_per_group,
        )
        telemetry.observe_runner(runner, settings)
        cluster = Cluster(runner, self.specs)
        runner.host.scheduler.context.run(cluster_here.set, cluster)
        acceptor.runner = runner
        stack.push_async_callback(leave, cluster, settings.grace.total_seconds())
        await runner.start()
        return cluster

    def _groups(self) -> tuple[str, ...]:
        """Return every shard group that a declared entity lives in."""
        return tuple(sorted({"default", *(hosted.spec.shard_group for hosted in self._types.values())}))


def _check_constructor(entity: type[Declared[Any]]) -> None:
    try:
        inspect.signature(entity).bind()
    except TypeError as exc:
        name = entity.__name__
        raise TypeError(
            f"{name}() fails: {exc}: register it with a factory: hub.register({name}, lambda: {name}(...))"
        ) from exc


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_message_bytes=settings.max_message_bytes,
        max_entity_id_bytes=settings.max_entity_id_bytes,
        max_call_depth=settings.max_call_depth,
        max_resident=settings.max_resident,
        retention=settings.retention.total_seconds(),
    )
