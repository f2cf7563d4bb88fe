"""One worker process of `actorhub serve --workers N`: `python -m actorhub.cli.worker MODULE:HUB FD`.

FD is a socket to the parent: the worker writes one line to it when it is ready, and leaves when the parent is gone.
Its settings come from the environment, so that none shows in the list of processes.
"""

import asyncio
import contextlib
import socket
import sys
from typing import Final

import click
import msgspec

from actorhub.cli.commands import CommandFailed
from actorhub.cli.logs import set_up_logging
from actorhub.cli.options import load
from actorhub.cli.program import load_hub
from actorhub.cli.running import Ready, Stop, run_loop, serve
from actorhub.core.config import Settings
from actorhub.core.errors import ActorhubError
from actorhub.hub import Hub

_encode: Final = msgspec.json.Encoder().encode


def main(reference: str, parent: socket.socket) -> int:
    """Serve for the parent at the other end of the socket; return the exit code."""
    try:
        settings = load({})
        set_up_logging(settings)
        return run_loop(_serve(load_hub(reference), settings, parent))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ActorhubError as error:
        CommandFailed(str(error)).show()
        return 1


async def _serve(hub: Hub, settings: Settings, parent: socket.socket) -> int:
    stop = Stop()
    parent.setblocking(False)

    def parent_gone() -> None:
        """The parent never writes: the socket becomes readable when the parent has ended, however it ended."""
        asyncio.get_running_loop().remove_reader(parent)
        stop.ask()

    def say(ready: Ready) -> None:
        with contextlib.suppress(ConnectionError):  # `parent_gone` reports a parent that is gone
            parent.send(_encode(ready) + b"\n")

    asyncio.get_running_loop().add_reader(parent, parent_gone)
    return await serve(hub, settings, say, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], socket.socket(fileno=int(sys.argv[2]))))
