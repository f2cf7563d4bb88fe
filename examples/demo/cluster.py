"""The cluster of one run of a demo: it is started, damaged on purpose, and stopped."""

import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from examples.demo.postgres import OWN_DIRECTORY, Postgres, fresh_namespace, postgres
from examples.demo.runners import RunnerProcess, Runners, runner_processes
from examples.demo.screen import Screen

_SHARED_DIRECTORY: Final = Path(".actorhub")


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """The programs and the database that a demo runs on."""

    name: str
    """Name of the demo. The names of its namespace and of its log directory begin with it."""
    hub: str
    """The hub for `actorhub serve`, such as `examples.nightly.entities:hub`."""
    database_url: str | None = None
    """URL of the Postgres, or `None` for an embedded one."""
    crashes: bool = False
    """Whether the demo crashes Postgres. An embedded Postgres is then one that only demos use."""


class DemoCluster:
    """Runner processes in a namespace of their own. The screen shows what happens to them.

    Args:
        server: The Postgres server.
        namespace: Name of the cluster.
        runners: Processes of the cluster.
        screen: Where to report.
    """

    def __init__(self, *, server: Postgres, namespace: str, runners: Runners, screen: Screen) -> None:
        self.server = server
        self.namespace = namespace
        self._runners = runners
        self._screen = screen

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for runners that are started from now on."""
        return self._runners.environment

    @property
    def names(self) -> dict[str, str]:
        """Names of the runners by address, including those that have ended."""
        return {runner.address: runner.name for runner in self._runners.processes}

    @property
    def known(self) -> list[RunnerProcess]:
        """The runners in the order in which they were started, including those that have ended."""
        return self._runners.processes

    @property
    def serving(self) -> list[RunnerProcess]:
        """The runners that are ready and have not been told to leave."""
        return [runner for runner in self._runners.processes if runner.serving]

    async def add(self, count: int = 1) -> None:
        """Start several runners at the same time, and return when all of them are ready."""
        for runner in [await self._runners.start() for _ in range(count)]:
            await runner.ready()
            self._screen.say(f"{runner.name} is ready: pid {runner.pid}, {runner.address}", "green")

    def kill(self, victim: RunnerProcess, what: str = "") -> None:
        """End a runner with SIGKILL."""
        victim.kill()
        self._screen.say(f"killed {victim.name} (pid {victim.pid}, SIGKILL){what}", "red")

    async def crash_postgres(self) -> None:
        """Crash Postgres and start it again."""
        postmaster = await self.server.crash()
        self._screen.say(f"crashed Postgres (pid {postmaster}, SIGQUIT: -m immediate), and started it again", "red")

    async def leave(self, runner: RunnerProcess, what: str = "") -> None:
        """Stop a runner gracefully."""
        status = await runner.stop()
        self._screen.say(f"{runner.name} (pid {runner.pid}) left on SIGTERM with status {status}{what}", "yellow")

    async def stop(self) -> bool:
        """Stop all runners. Return whether all that were not killed left gracefully."""
        there = len(self.serving)
        statuses = {runner: status for runner, status in (await self._runners.stop()).items() if not runner.killed}
        wrong = [
            f"{runner.name} left with status {status}: see its log" for runner, status in statuses.items() if status
        ]
        for line in wrong:
            self._screen.say(line, "red")
        if not wrong:
            self._screen.say(f"{there} runners left on SIGTERM with status 0")
        return not wrong


@asynccontextmanager
async def demo_cluster(stage: Stage, screen: Screen, logs: Path) -> AsyncGenerator[DemoCluster, None]:
    """Provide a cluster, at first without runners. After the block its processes and its namespace are gone.

    Args:
        stage: What the demo runs on.
        screen: Where to report.
        logs: Directory for the output of the runners.
    """
    directory = OWN_DIRECTORY if stage.crashes else _SHARED_DIRECTORY
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(postgres(stage.database_url, directory))
        namespace = await stack.enter_async_context(fresh_namespace(server.url, stage.name))
        screen.say(
            f"Postgres: {'embedded' if server.embedded else 'given'}, namespace {namespace}; the runners' logs: {logs}"
        )
        arguments = (stage.hub, "--database", server.url, "--namespace", namespace)
        runners = await stack.enter_async_context(runner_processes(arguments, logs))
        yield DemoCluster(server=server, namespace=namespace, runners=runners, screen=screen)


class Logs:
    """A directory for the logs of runners. It is removed if the run succeeds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wanted = False
        """Whether to keep the logs, because something went wrong."""


@asynccontextmanager
async def runner_logs(name: str) -> AsyncGenerator[Logs, None]:
    """Provide a directory for the logs of runners. It is kept if the logs are wanted or the run failed."""
    logs = Logs(Path(tempfile.mkdtemp(prefix=f"{name}-")))
    try:
        yield logs
    except ExceptionGroup:
        logs.wanted = True
        raise
    finally:
        if not logs.wanted:
            shutil.rmtree(logs.path)
