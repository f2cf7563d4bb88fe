"""The hub: what a program declares, and how it joins a cluster."""

import inspect
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar, Unpack, cast, get_type_hints

from actorhub._declaration import spec_of
from actorhub.cluster import Cluster, cluster_here, leave, part_of
from actorhub.core.address import HASH_VERSION, RunnerAddress, RunnerInfo
from actorhub.core.clock import Clock, SystemClock
from actorhub.core.config import SettingKeywords, Settings, load_settings
from actorhub.core.envelope import PROTOCOL_VERSION, Hello
from actorhub.core.errors import ConfigurationError, check_errors
from actorhub.core.texts import shown
from actorhub.engine.client_node import ClientNode
from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import HostedType
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.ownership.placement import PLACEMENT_VERSION
from actorhub.engine.runner import Runner
from actorhub.entity import Declared
from actorhub.storage.ports import ClusterValues, Storage
from actorhub.transport.ports import Transport

E = TypeVar("E", bound=Declared[Any])

VERSION: Final = "0.1.0"

_LAZY: Final = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
"""Which functions do not return what their body returns."""
_CONNECT_DEADLINE: Final = 10.0
"""Seconds that `connect` waits for a first runner."""


class Hub:
    """The entities and singletons that a program declares.

    Make one per program, at module level, and register the classes with it. `actorhub serve shop:hub` then runs the hub
    that is called `hub` in the module `shop`. Registering starts nothing; `connect` and `runner` join a cluster.
    """

    def __init__(self) -> None:
        self._types: dict[str, HostedType] = {}

    def register(self, entity: type[E], factory: Callable[[], E] | None = None) -> type[E]:
        """Register the class of an entity or of a singleton, and return it.

        Runners host the registered classes. A program that only calls them must register them, too. `@hub.register`
        above a class without constructor arguments does the same, if all that its annotations name is defined by then.

        Args:
            entity: The class.
            factory: Called without arguments for each activation. Returns a new instance of the class. By default the
                class itself.

        Raises:
            ConfigurationError: Another class is registered under the same name, or this one is registered already.
            TypeError: It is not the class of an entity or singleton. Or an annotation of it, or of an `EntityError` in
                its module, cannot be resolved, or names a type that cannot be sent. Or the class is abstract, or its
                constructor needs arguments and there is no factory, or the factory does not return an instance.
        """
        spec = spec_of(entity)
        check_errors(list(vars(sys.modules[entity.__module__]).values()))
        known = self._types.get(spec.name)
        if known is not None and known.entity is entity:
            raise ConfigurationError(f"{entity.__name__} is registered twice: remove one of the two hub.register(...)")
        if known is not None:
            raise ConfigurationError(
                f"two entity classes are called {spec.name!r}: give one of them another name, as in "
                f"class {entity.__name__}(Entity, name=...)"
            )
        made_by = entity if factory is None else factory
        _check_factory(entity, made_by)
        self._types[spec.name] = HostedType(spec, entity, made_by)
        return entity

    @property
    def specs(self) -> Mapping[str, EntitySpec]:
        """The registered classes, as the engine sees them, by name."""
        return {name: hosted.spec for name, hosted in self._types.items()}

    @asynccontextmanager
    async def connect(self, **settings: Unpack[SettingKeywords]) -> AsyncGenerator[Cluster, None]:
        """Join a cluster as a client, which calls entities and hosts none. Use it as an async context manager.

        With `gateway`, the addresses of one or more runners, no database is needed. With `database_url` the runners are
        found in the database, and durable messages are accepted even while there is none: a cluster that had runners
        before is joined after two seconds if no runner answers. Durable tells are stored then, and other calls wait for
        an owner until their timeouts. With neither setting, a runner at 127.0.0.1:7700 is tried.

        At the end of the block the links are closed. Calls that are still under way fail.

        Args:
            settings: The settings of `actorhub serve`, as keywords: typed, or as the text that the command line takes.
                Those that are not given, or `None`, come from the environment, then from `actorhub.toml`, then from the
                defaults.

        Raises:
            ShuttingDown: A task of the program cancelled those of actorhub, which ends the block.
            ConfigurationError: A setting is unknown or not valid. The text says what to write, or the near name.
            RunnerUnavailable: No runner answered within 10 seconds.
        """
        loaded = load_settings(settings, os.environ, origin="hub.connect")
        async with self.connect_with(loaded) as cluster:
            yield cluster

    @asynccontextmanager
    async def runner(self, **settings: Unpack[SettingKeywords]) -> AsyncGenerator[Cluster, None]:
        """Join a cluster as a runner, which hosts entities in this process. Use it as an async context manager.

        When the block is entered, this runner owns a first share of the shards and serves calls. At the end of the
        block it hands its shards over to other runners, and running handlers may finish. That takes at most about
        `grace`, a setting; what is left then is cancelled.

        Without `database_url`, an embedded Postgres in `./.actorhub` is used. Programs of the same directory share it.

        Args:
            settings: As for `connect`.

        Raises:
            ShuttingDown: As for `connect`.
            ConfigurationError: A setting is unknown or not valid, the database cannot be used, the port is taken, or
                the cluster has agreed on other values.
            PersistenceError: The database failed during the start.
        """
        loaded = load_settings(settings, os.environ, origin="hub.runner")
        async with self.run_with(loaded) as cluster:
            yield cluster

    @asynccontextmanager
    async def connect_with(self, settings: Settings) -> AsyncGenerator[Cluster, None]:
        """Join as a client, with settings that have been loaded."""
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
            await stack.enter_async_context(client.node.within_block())
            await client.start(_CONNECT_DEADLINE)
            yield cluster

    @asynccontextmanager
    async def run_with(self, settings: Settings) -> AsyncGenerator[Cluster, None]:
        """Join as a runner, with settings that have been loaded."""
        from actorhub import _network  # noqa: PLC0415 - as in `connect_with`
        from actorhub.ops import http_server  # noqa: PLC0415 - as above

        async with AsyncExitStack() as stack:
            clock = SystemClock()
            acceptor = LinkAcceptor()
            # Started first and ended last, so that probes learn that the runner is starting, and that it is leaving.
            await stack.enter_async_context(http_server(settings, acceptor, clock))
            storage = await _network.postgres_storage(settings, clock, stack)
            # If the port is 0, the transport replaces it by the one that was bound.
            address = str(settings.advertise or settings.listen)
            hello = Hello(PROTOCOL_VERSION, settings.namespace, address, clock.token(), relays=True)
            transport = _network.runner_transport(settings, hello, acceptor, self.specs)
            cluster = await self.assemble(
                settings, stack, clock=clock, storage=storage, transport=transport, acceptor=acceptor
            )
            await stack.enter_async_context(part_of(cluster).node.within_block())
            yield cluster

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
        """Make a runner from its parts, and start it. `stack` ends it.

        The callbacks run in reverse order: the runner leaves first, over links and a store that still work.
        """
        from actorhub.ops import telemetry  # noqa: PLC0415 - as in `connect_with`

        stack.push_async_callback(storage.aclose)
        await storage.open()
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
            types={
                name: HostedType(hosted.spec, hosted.entity, hosted.factory) for name, hosted in self._types.items()
            },
            specs=self.specs,
            storage=storage,
            transport=transport,
            clock=clock,
            limits=_limits(settings),
            values=ClusterValues(
                shards_per_group=settings.shards_per_group, hash_version=f"{HASH_VERSION},{PLACEMENT_VERSION}"
            ),
        )
        telemetry.observe_runner(runner, settings)
        cluster = Cluster(runner, self.specs)
        runner.host.scheduler.context.run(cluster_here.set, cluster)
        acceptor.runner = runner
        stack.push_async_callback(leave, cluster, settings.grace.total_seconds())
        await runner.start()
        return cluster

    def _groups(self) -> tuple[str, ...]:
        """Return the shard groups of the registered classes, and `default`.

        A runner that is given no groups hosts these. One that is given groups hosts exactly those.
        """
        return tuple(sorted({"default", *(hosted.spec.shard_group for hosted in self._types.values())}))


def _check_factory(entity: type[Declared[Any]], factory: Callable[[], Any]) -> None:
    """Refuse what cannot make instances of the class, as far as that shows without calling it."""
    name = entity.__name__
    instead = f"use a plain function without arguments, as in hub.register({name}, lambda: {name}(...))"
    if isinstance(factory, type):
        _check_made_class(entity, factory, instead)
    elif isinstance(factory, entity):
        raise TypeError(f"the factory of {name} is one {name}, but every id needs its own: {instead}")
    elif not callable(factory):
        raise TypeError(f"the factory of {name} cannot be called, it is {shown(factory)}: {instead}")
    elif any(is_lazy(one) for one in (factory, type(factory).__call__) for is_lazy in _LAZY):
        raise TypeError(
            f"the factory of {name} must return a new {name}, and not a coroutine or a generator: {instead}; "
            "what must be awaited belongs into on_activate"
        )
    elif (made := _promised_class(factory)) and not (issubclass(made, entity) or issubclass(entity, made)):
        raise TypeError(f"the factory of {name} returns a {made.__name__}, as its annotation says: {instead}")
    try:
        inspect.signature(cast("Callable[..., object]", factory)).bind()
    except ValueError:
        pass  # A built-in without a signature: what it makes is seen when it is called.
    except TypeError as exc:
        called = f"{factory.__name__}()" if isinstance(factory, type) else f"the factory of {name}"
        raise TypeError(f"{called} fails: {exc}: {instead}") from exc


def _check_made_class(entity: type[Declared[Any]], made: type[Any], instead: str) -> None:
    if entity not in made.__mro__:
        raise TypeError(f"{made.__name__} is not a {entity.__name__}: {instead}")
    if inspect.isabstract(made):
        missing = ", ".join(sorted(made.__abstractmethods__))
        raise TypeError(f"{made.__name__} is abstract, it lacks {missing}: register a subclass that has these methods")


def _promised_class(factory: Callable[[], Any]) -> type | None:
    """Return the class that a factory makes by its annotation, if it has one that is a class."""
    try:
        made: object = get_type_hints(factory).get("return")
    except (NameError, TypeError):
        return (
            None  # an annotation that cannot be resolved, or a callable object: what it makes is seen when it is called
        )
    return made if isinstance(made, type) else None


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_message_bytes=settings.max_message_bytes,
        max_entity_id_bytes=settings.max_entity_id_bytes,
        max_call_depth=settings.max_call_depth,
        max_resident=settings.max_resident,
        retention=settings.retention.total_seconds(),
    )
