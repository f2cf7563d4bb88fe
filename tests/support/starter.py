"""Real processes that begin with the package imported: for a short command, imports are nine tenths of its time.

`python -m tests.support.starter FD` imports what commands need, and forks a process for each request that comes over
the socket. That process has its own arguments, environment, directory, output files and exit code, and dies with us.
"""

import ctypes
import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from actorhub.cli import COMMANDS

ROOT: Final = Path(__file__).resolve().parents[2]
_PACKET: Final = 100_000
_IMPORTED: Final = ("grpc.aio", "actorhub.hub", "actorhub.storage.postgres", "actorhub.transport.grpc", "uvloop")
_DIE_WITH_PARENT: Final = 1


class Command(msgspec.Struct, frozen=True, tag=True):
    """Run a module as `python -m`; the reply is the process's id."""

    module: str
    arguments: tuple[str, ...]
    directory: str
    env: dict[str, str]
    out: str
    err: str
    stdin: str = os.devnull


class Poll(msgspec.Struct, frozen=True, tag=True):
    """Look whether a process has ended; until that is known here, no other has its id. The reply is its exit code."""

    pid: int
    blocks: bool = False
    """Until it has."""


class Starter:
    """Starts processes; it and they end with this process, or with `close`."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Command) -> int:
        """Return the process's id."""
        if self._socket is None:
            self._launch()
        pid = self._ask(command)
        assert pid is not None
        return pid

    def poll(self, pid: int) -> int | None:
        """Return the exit code, negative for a signal; `None`: it runs."""
        return self._ask(Poll(pid))

    def wait(self, pid: int) -> None:
        """Block until it has ended."""
        self._ask(Poll(pid, blocks=True))

    def close(self) -> None:
        """End it."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait(10)
            self._socket = self._process = None

    def _launch(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            fd = theirs.fileno()
            program = [sys.executable, "-m", __name__, str(fd)]
            # What Python and gRPC decide once and for all: that output is not a terminal, and that gRPC logs nothing,
            # as commands tell it before they import it.
            self._process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(fd,),
                cwd=ROOT,
                env={**os.environ, "GRPC_VERBOSITY": "NONE"},
            )

    def _ask(self, request: Command | Poll) -> int | None:
        assert self._socket is not None
        self._socket.send(msgspec.msgpack.encode(request))
        return msgspec.msgpack.decode(self._socket.recv(_PACKET), type=int | None)


def _serve(connection: socket.socket) -> Command | None:
    """Answer requests; return a command in the process that is to be it, and `None` in this process at the end."""
    ended: dict[int, int] = {}
    answer: int | None
    while packet := connection.recv(_PACKET):
        match msgspec.msgpack.decode(packet, type=Command | Poll):
            case Command() as command:
                if (pid := os.fork()) == 0:
                    connection.close()
                    return command
                ended.pop(pid, None)  # An earlier process may have had this id.
                answer = pid
            case Poll(pid=pid, blocks=blocks):
                if pid not in ended and (found := os.waitpid(pid, 0 if blocks else os.WNOHANG))[0]:
                    ended[pid] = os.waitstatus_to_exitcode(found[1])
                answer = ended.get(pid)
        connection.send(msgspec.msgpack.encode(answer))
    return None


def _become(command: Command) -> None:
    """Make this process what `python -m` would be for the request, but for the arguments, which `runpy` looks at."""
    os.chdir(command.directory)
    os.environ.clear()
    os.environ.update(command.env)
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for stream, path, flags in ((0, command.stdin, os.O_RDONLY), (1, command.out, write), (2, command.err, write)):
        fd = os.open(path, flags)
        os.dup2(fd, stream)
        os.close(fd)
    sys.path[0] = command.directory
    sys.argv = [command.module, *command.arguments]


def _tie() -> None:
    """Have Linux kill this process when the one that started it is gone."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, int(signal.SIGKILL))


def _main(fd: int) -> None:
    _tie()
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which ends what it started.
    for name in (*_IMPORTED, *(known.reference.partition(":")[0] for known in COMMANDS)):
        importlib.import_module(name)
    if (command := _serve(socket.socket(fileno=fd))) is not None:
        _tie()
        signal.signal(signal.SIGINT, interrupted)
        _become(command)
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
