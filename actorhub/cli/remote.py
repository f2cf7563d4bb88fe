"""How commands ask a runner."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc
import grpc.aio

from actorhub.cli.commands import CommandFailed
from actorhub.core.config import Settings
from actorhub.ops.channels import Metadata, call_metadata, open_channel, status_text

T = TypeVar("T")

CONNECTION_SETTINGS: Final = ("admin", "token", "tls_cert", "tls_key", "tls_ca")
"""What it takes to reach a runner."""

ANSWER_SECONDS: Final = 10.0
"""How long a runner may take to answer an operator."""

_UNREACHABLE: Final = ("failed to connect", "errors resolving", "DNS resolution failed")
"""How gRPC's own texts begin; what a runner says with the same status begins otherwise."""


def ask(settings: Settings, question: Callable[[grpc.aio.Channel, Metadata], Awaitable[T]]) -> T:
    """Open a channel to the runner that the settings name, and return the result of `question`.

    Raises:
        CommandFailed: the runner cannot be reached, or refuses. The text names it, and says what to do.
    """
    # gRPC's C core would write its own lines about failed connections to standard error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return asyncio.run(_ask(settings, question))


async def _ask(settings: Settings, question: Callable[[grpc.aio.Channel, Metadata], Awaitable[T]]) -> T:
    metadata = call_metadata(settings)
    channel = open_channel(str(settings.admin), settings)
    try:
        return await question(channel, metadata)
    except grpc.aio.AioRpcError as error:
        raise _failed(settings, error) from error
    finally:
        await channel.close(None)


def _failed(settings: Settings, error: grpc.aio.AioRpcError) -> CommandFailed:
    where, said = f"the runner at {settings.admin}", status_text(error)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return CommandFailed(
            f"{where} is not an actorhub runner, or is of another release: {said}: name one with --admin HOST:PORT"
        )
    if error.code() is grpc.StatusCode.UNAVAILABLE and said.startswith(_UNREACHABLE):
        return CommandFailed(
            f"{where} cannot be reached: {said}: start one with `actorhub serve`, or name another with "
            "--admin HOST:PORT"
        )
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CommandFailed(f"{where} did not answer in time: name another with --admin HOST:PORT")
    return CommandFailed(f"{where}: {said}")
