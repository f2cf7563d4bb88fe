"""A process that listens and echoes, to be killed or stopped: prints its address, and ends with its standard input."""

import asyncio
import sys
from collections.abc import Sequence

from actorhub.conformance.transport_pair import hello
from actorhub.core.envelope import Envelope
from actorhub.transport.grpc import GrpcTransport
from actorhub.transport.ports import Link, LinkEvents


class Echo:
    """Sends everything back."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def received(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            self._link.send(envelope)

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        print(f"closed {len(unsent)} {reason}", flush=True)


class EchoAcceptor:
    """Gives each link an echo."""

    def accept(self, link: Link) -> LinkEvents:
        return Echo(link)


async def main(dial: str | None) -> None:
    transport = GrpcTransport(hello("peer-process"), listen=None if dial else "127.0.0.1:0")
    if dial:
        waiting = asyncio.get_running_loop().create_future()
        link = await transport.connect(dial, _Silent(), deadline=10)
        print(link.peer.address, flush=True)
        await waiting
    print(await transport.listen(EchoAcceptor()), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await transport.aclose(1)


class _Silent:
    def accept(self, link: Link) -> LinkEvents:
        return self

    def received(self, envelopes: Sequence[Envelope]) -> None:
        pass

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
