"""A program that forks before or after it has used gRPC, and prints whether the child can."""

import asyncio
import multiprocessing
import signal
import sys

from actorhub import ConfigurationError, NotConnected
from actorhub.conformance.transport_pair import hello
from actorhub.transport.grpc import GrpcTransport
from tests.support.shop import hub
from tests.transport.grpc_peer import EchoAcceptor, _Silent

_PATIENCE = 20


async def link() -> None:
    listening = GrpcTransport(hello("a"), listen="127.0.0.1:0")
    address = await listening.listen(EchoAcceptor())
    dialling = GrpcTransport(hello("b"))
    await dialling.connect(address, _Silent(), deadline=5)
    await dialling.aclose(1)
    await listening.aclose(1)


async def connect() -> None:
    async with hub.connect(gateway="127.0.0.1:1"):
        pass


def child() -> None:
    signal.alarm(_PATIENCE)  # What hangs ends the child.
    try:
        asyncio.run(link())
    except ConfigurationError as error:
        print("link:", error)
    else:
        print("link: works")
    sys.stdout.flush()


def connecting_child() -> None:
    signal.alarm(_PATIENCE)
    try:
        asyncio.run(connect())
    except (ConfigurationError, NotConnected) as error:
        print("connect:", type(error).__name__, error, flush=True)


def main(when: str) -> None:
    fork = multiprocessing.get_context("fork")
    if when == "after":
        asyncio.run(link())
    for work in (child, connecting_child) if when == "after" else (child,):
        process = fork.Process(target=work)
        process.start()
        process.join()


if __name__ == "__main__":
    main(sys.argv[1])
