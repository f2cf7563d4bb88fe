"""The cluster of one run: started, hurt on purpose, and ended."""

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
    """What a demo runs on."""

    name: str
    """The demo's; begins the names of its namespace and of its directory of logs."""
    hub: str
    """What `actorhub serve` serves."""
    database_url: str | None = None
    """`None`: an embedded Postgres."""
    crashes: bool = False
    """Whether the demo will crash Postgres; if it is embedded, it is one of the demos' own then."""


class DemoCluster:
    """Runner processes on a namespace of their own; what happens to them is said on the screen.

    Args:
        server: The Postgres.
        namespace: The name of the cluster.
        runners: Its processes.
        screen: Where to report.
    """

    def __init__(self, *, server: Postgres, namespace: str, runners: Runners, screen: Screen) -> None:
        self.server = server
        self.namespace = namespace
        self._runners = runners
        self._screen = screen

    @property
    def environment(self) -> dict[str, str]:
        """What is set for runners that are started from now on."""
        return self._runners.environment

    @property
    def names(self) -> dict[str, str]:
        """What the runners are called, by address, those that are gone included."""
        return {runner.address: runner.name for runner in self._runners.processes}

    @property
    def known(self) -> list[RunnerProcess]:
        """The runners, in the order of their starts, those that are gone included."""
        return self._runners.processes

    @property
    def serving(self) -> list[RunnerProcess]:
        """The runners that are there."""
        return [runner for runner in self._runners.processes if runner.serving]

    async def add(self, count: int = 1) -> None:
        """Start runners, at the same time, and return when all of them are ready."""
        for runner in [await self._runners.start() for _ in range(count)]:
            await runner.ready()
            self._screen.say(f"{runner.name} is ready: pid {runner.pid}, {runner.address}", "green")

    def kill(self, victim: RunnerProcess, what: str = "") -> None:
        """End a runner with SIGKILL."""
        victim.kill()
        self._screen.say(f"killed {victim.name} (pid {victim.pid}, SIGKILL){what}", "red")

    async def crash_postgres(self) -> None:
        """Crash the server and start it again."""
        postmaster = await self.server.crash()
        self._screen.say(f"crashed Postgres (pid {postmaster}, SIGQUIT: -m immediate), and started it again", "red")

    async def leave(self, runner: RunnerProcess, what: str = "") -> None:
        """Let a runner go gracefully."""
        status = await runner.stop()
        self._screen.say(f"{runner.name} (pid {runner.pid}) left on SIGTERM with status {status}{what}", "yellow")

    async def stop(self) -> bool:
        """End all runners; return whether every one that was not killed left gracefully."""
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
    """Hold a cluster without runners yet; processes and namespace are gone after the block.

    Args:
        stage: What to run on.
        screen: Where to report.
        logs: Directory for the runners' output.
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
    """A directory of runners' logs: removed after a run in which all was well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wanted = False
        """Whether somebody will want to read them."""


@asynccontextmanager
async def runner_logs(name: str) -> AsyncGenerator[Logs, None]:
    """Hold a directory for the runners' logs; it is kept if they are wanted, or a part of the run failed."""
    logs = Logs(Path(tempfile.mkdtemp(prefix=f"{name}-")))
    try:
        yield logs
    except ExceptionGroup:
        logs.wanted = True
        raise
    finally:
        if not logs.wanted:
            shutil.rmtree(logs.path)
