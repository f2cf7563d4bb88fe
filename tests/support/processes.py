"""Real `actorhub` processes: started, waited for with a deadline, signalled by their own pid, gone after the test."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from actorhub.core.clock import SystemClock
from tests.support.starter import ROOT, Command, Starter

SHOP = "tests.support.shop:hub"

# Makes Linux kill the process when its starter dies, frozen or not, and becomes `python -m`: no run of tests that ends,
# however it does, leaves a runner behind.
TIED = (
    "import ctypes, os, sys\n"
    "prctl = getattr(ctypes.CDLL(None), 'prctl', None)\n"
    "prctl and prctl(1, 9)\n"
    "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])\n"
)
_READY = re.compile(r"^ready: .*$", re.MULTILINE)
_ADDRESS = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\]):\d+")
_LOOK = 0.02
_clock = SystemClock()

starter = Starter()
"""Starts the commands of this process's tests; the end of pytest closes it."""


class Finished(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - the test knows
        """Standard output, decoded."""
        return msgspec.json.decode(self.out)


class ForkedProcess:
    """A process of the starter, as `subprocess.Popen` would show it."""

    def __init__(self, command: Command) -> None:
        self.pid = starter.start(command)

    def poll(self) -> int | None:
        """Return the exit code; `None`: it runs."""
        return starter.poll(self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def wait(self) -> None:
        """Block until it has ended."""
        starter.wait(self.pid)


def launch(command: Command, *, is_fresh: bool = False) -> "ForkedProcess | subprocess.Popen[bytes]":
    """Start a process; one that is fresh imports the package itself."""
    if sys.platform == "linux" and not is_fresh:
        return ForkedProcess(command)
    with (
        Path(command.stdin).open("rb") as stdin,
        Path(command.out).open("wb") as out,
        Path(command.err).open("wb") as err,
    ):
        return subprocess.Popen(
            [sys.executable, "-S", "-c", TIED, command.module, *command.arguments],
            stdin=stdin,
            stdout=out,
            stderr=err,
            cwd=command.directory,
            env=command.env,
        )


class ActorhubProcess:
    """One `actorhub` command that runs until it is ended; its output lies in files and can be read at any time."""

    def __init__(
        self, arguments: tuple[str, ...], directory: Path, env: Mapping[str, str], name: str, *, is_fresh: bool
    ) -> None:
        self._out, self._err = directory / f"{name}.out", directory / f"{name}.err"
        for path in (self._out, self._err):
            path.touch()  # They are read before the process has opened them.
        module, *others = arguments
        command = Command(module, tuple(others), str(directory), dict(env), out=str(self._out), err=str(self._err))
        self._process = launch(command, is_fresh=is_fresh)

    @property
    def pid(self) -> int:
        """Of the process; signals go there and nowhere else."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; `None` while it runs."""
        return self._process.poll()

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._err.read_text(encoding="utf-8")

    @property
    def addresses(self) -> list[str]:
        """Addresses of its runners, from the ready line."""
        line = _READY.search(self.out)
        return _ADDRESS.findall(line[0].partition(", database")[0]) if line else []

    @property
    def address(self) -> str:
        """Address of its first runner."""
        return self.addresses[0]

    async def ready(self, deadline: float = 30.0) -> Self:
        """Wait for the ready line.

        Raises:
            AssertionError: it did not come within `deadline` seconds, or the process ended; shows its output.
        """
        until = _clock.monotonic() + deadline
        while not _READY.search(self.out):
            assert self.code is None, f"it ended with code {self.code} before it was ready:\n{self.out}{self.err}"
            assert _clock.monotonic() < until, f"not ready after {deadline} s:\n{self.out}{self.err}"
            await asyncio.sleep(_LOOK)
        return self

    async def says(self, text: str, deadline: float = 20.0) -> None:
        """Wait until standard error holds `text`."""
        until = _clock.monotonic() + deadline
        while text not in self.err:
            assert _clock.monotonic() < until, f"{text!r} did not come within {deadline} s:\n{self.err}"
            await asyncio.sleep(_LOOK)

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        self._process.send_signal(number)

    async def ended(self, deadline: float = 30.0) -> int:
        """Wait for its end and return the exit code; negative: the signal that ended it."""
        until = _clock.monotonic() + deadline
        while (code := self.code) is None:
            assert _clock.monotonic() < until, f"it has not ended after {deadline} s:\n{self.out}{self.err}"
            await asyncio.sleep(_LOOK)
        return code

    async def terminate(self, deadline: float = 30.0) -> int:
        """Ask it to leave by SIGTERM, wait, and return the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended(deadline)

    async def kill(self) -> None:
        """End it by SIGKILL and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self.ended()

    def freeze(self) -> None:
        """Stop it by SIGSTOP: its sockets stay open, and nothing answers."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        """End it now, whatever its state."""
        if self.code is None:
            self._process.kill()
        self._process.wait()


class Processes:
    """The `actorhub` commands of one test; a context manager that ends what still runs.

    They run in `directory`, with no ACTORHUB_ variable but those in `env`, and find the project's modules.
    """

    def __init__(self, directory: Path, **env: str) -> None:
        self.directory = directory
        self.are_fresh = False
        """Whether they are to import the package themselves, which takes half a second."""
        self._started: list[ActorhubProcess] = []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACTORHUB_")}
        self.env = {**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **env}

    def start(self, *arguments: str, module: str = "actorhub", **env: str) -> ActorhubProcess:
        """Start `actorhub ARGUMENTS`, or another module, and return at once."""
        name, environment = f"process-{len(self._started)}", {**self.env, **env}
        process = ActorhubProcess((module, *arguments), self.directory, environment, name, is_fresh=self.are_fresh)
        self._started.append(process)
        return process

    async def serve(self, *flags: str, reference: str = SHOP, **env: str) -> ActorhubProcess:
        """Start `actorhub serve` at a free port (unless `--listen` is among the flags) and wait until it is ready."""
        listen = () if any(flag.startswith("--listen") for flag in flags) else ("--listen", "127.0.0.1:0")
        return await self.start("serve", reference, *listen, *flags, **env).ready()

    async def run(self, *arguments: str, deadline: float = 30.0, **env: str) -> Finished:
        """Run `actorhub ARGUMENTS` to its end."""
        process = self.start(*arguments, **env)
        code = await process.ended(deadline)
        return Finished(code, process.out, process.err)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            process.close()
