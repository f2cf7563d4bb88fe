"""Ports for servers that must come back at the same address, or need the next port as well."""

import fcntl
import itertools
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

_FIRST: Final = 20_000
"""Below the ephemeral range, so that no outgoing connection takes a port while its server is down."""
_BLOCKS: Final = 60
_BLOCK: Final = 200


def claim_ports(count: int = 1) -> int:
    """Return the first of `count` ports in a row that are free, and that no test of any process was given lately."""
    while True:
        ports = [next(_own_block()) for _ in range(count)]
        if ports[-1] - ports[0] == count - 1 and all(map(_is_free, ports)):
            return ports[0]


@cache
def _own_block() -> Iterator[int]:
    # A probe cannot keep a port for a server that starts later, in another process. So each process of tests has a
    # block of ports to itself, and gives each of them once before it begins again.
    directory = Path(tempfile.gettempdir()) / f"actorhub-test-ports.{os.getuid()}"
    directory.mkdir(exist_ok=True)
    for number in random.SystemRandom().sample(range(_BLOCKS), _BLOCKS):
        lock = os.open(directory / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        first = _FIRST + number * _BLOCK  # The lock is held until the process ends.
        return itertools.cycle(range(first, first + _BLOCK))
    raise AssertionError(f"{_BLOCKS} processes of tests hold a block of ports each: {directory}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
