"""One runner in this process, from its start to its hand-over."""

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

import click
import msgspec

from actorhub.cli.commands import CommandFailed
from actorhub.cli.signals import on_stop_signals
from actorhub.cluster import Cluster
from actorhub.core.clock import SystemClock
from actorhub.core.config import Settings, mask_secrets
from actorhub.core.errors import ShuttingDown
from actorhub.core.texts import summary_of
from actorhub.hub import Hub

_log: Final = logging.getLogger("actorhub.serve")

_FIRST_SHARD: Final = 10.0
"""Seconds that a runner waits for its first shard before it says that it is ready without one."""
_POLL_SECONDS: Final = 0.02
_LAST_SECONDS: Final = 3.0
"""How long the tasks and threads of a program may outlive its runner."""


class Ready(msgspec.Struct, frozen=True):
    """What a runner says once it takes calls."""

    address: str
    shards: int


class Stop:
    """A request that the current task ends: it cancels a start that is under way, and is awaited afterwards.

    A start must be cancelled: it may be waiting for a database. A runner that has started must not be: it has shards to
    hand over. `is_started` tells which of the two it is.
    """

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._asked = asyncio.Event()
        self.is_started = False

    @property
    def is_asked(self) -> bool:
        """Whether it was made."""
        return self._asked.is_set()

    def ask(self) -> None:
        """Make it; the second time does nothing."""
        if not self._asked.is_set():
            self._asked.set()
            if not self.is_started and self._task is not None:
                self._task.cancel()

    async def wait(self) -> None:
        """Return once it was made."""
        await self._asked.wait()


def run_one(hub: Hub, settings: Settings) -> int:
    """Serve until a signal ends it; return the exit code."""

    def say(ready: Ready) -> None:
        shards = "1 shard" if ready.shards == 1 else f"{ready.shards} shards"
        click.echo(f"ready: runner {ready.address} owns {shards}, database {database_shown(settings)}")

    async def work() -> int:
        return await serve(hub, settings, say, Stop())

    return run_loop(work())


def run_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run `work` on uvloop where it is installed, else on asyncio's own loop; return its exit code.

    Tasks and threads that the program has left behind cannot keep the process: it ends a few seconds after `work`.
    """
    # gRPC's C core writes unstructured lines of its own to standard error; what they say arrives as an exception too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        main = _and_leave(work)
        try:
            return runner.run(main)
        except ShuttingDown as exc:
            # The runner gave up, because a task of the program cancelled those of actorhub, and probably those of the
            # gRPC server. Its C core does not survive that: it goes on writing to their memory.
            CommandFailed(str(exc)).show()
            _exit(1)
            raise
        except BaseException as exc:
            is_cancelled = isinstance(exc, asyncio.CancelledError)
            if inspect.getcoroutinestate(main) == inspect.CORO_CLOSED and not is_cancelled:
                raise
            # The program ended the event loop, or cancelled tasks that are not its own, and nothing that is left can be
            # run to its end: as after a crash, the locks of this process are freed by the end of its connections.
            done = "cancelled the main task" if is_cancelled else f"raised {summary_of(exc)}"
            _log.critical("a task of the program %s, which ends this process at once", done)
            _exit(1)
            raise


async def _and_leave(work: Coroutine[Any, Any, int]) -> int:
    code = 1
    try:
        code = await work
        return code
    finally:
        # The loop's own end, and the interpreter's, wait for tasks and threads without a limit.
        last = threading.Timer(_LAST_SECONDS, _leave_behind, [code])
        last.daemon = True
        last.start()
        await _end_tasks()


async def _end_tasks() -> None:
    """Cancel the tasks that are left, and name those that do not end."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        _, left = await asyncio.wait(left, timeout=_LAST_SECONDS / 2)
    for task in left:
        _log.warning("a task of the program swallows its cancellation, and is abandoned: %r", task)


def _leave_behind(code: int) -> None:
    """End the process from a thread, whatever its tasks and threads do."""
    try:
        _log.warning("something of the program does not end: leaving without it")
    finally:
        _exit(code)


def _exit(code: int) -> None:
    """End the process at once."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


async def serve(hub: Hub, settings: Settings, say: Callable[[Ready], None], stop: Stop) -> int:
    """Run until `stop` is asked for, by SIGTERM or SIGINT too; return the exit code.

    Args:
        hub: What to host.
        settings: How to host it.
        say: Called once the runner owns shards and takes calls.
        stop: Made in this task.

    Raises:
        ShuttingDown: the runner gave up.
        ActorhubError: the runner could not start.
    """
    from actorhub.storage.postgres.embedded import EmbeddedPostgres  # noqa: PLC0415 - asyncpg loads where it is used

    server = EmbeddedPostgres() if settings.database_url is None else None
    on_stop_signals(stop.ask, *(() if server is None else (server.leave_at_once,)))
    _log.info("starting, database %s", database_shown(settings))
    try:
        async with contextlib.AsyncExitStack() as stack:
            if server is not None:
                stack.push_async_callback(server.stop)
                settings = msgspec.structs.replace(settings, database_url=await server.start())
            cluster = await stack.enter_async_context(hub.run_with(settings))
            stop.is_started = True
            shards = await _first_shards(cluster, stop)
            if not stop.is_asked:
                assert cluster.runner is not None
                say(Ready(cluster.runner.address, shards))
            await stop.wait()
    except asyncio.CancelledError:
        if not stop.is_asked:
            raise
    return 0


def database_shown(settings: Settings) -> str:
    """Return where the data is, without secrets."""
    return mask_secrets(settings.database_url) if settings.database_url else "embedded Postgres in .actorhub"


async def _first_shards(cluster: Cluster, stop: Stop) -> int:
    """Wait until the other runners have handed over a first share. A runner of small weight may get none."""
    clock = SystemClock()
    deadline = clock.monotonic() + _FIRST_SHARD
    while True:
        (health,) = await cluster.health()
        if health.shards_owned or stop.is_asked or clock.monotonic() >= deadline:
            return health.shards_owned
        await asyncio.sleep(_POLL_SECONDS)
