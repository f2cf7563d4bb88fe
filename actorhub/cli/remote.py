"""Asking a runner, for the commands that do."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc
import grpc.aio

from actorhub.cli.commands import Failed
from actorhub.core.config import Settings
from actorhub.ops.channels import Metadata, call_metadata, open_channel, status_text

T = TypeVar("T")

CONNECTION_SETTINGS: Final = ("admin", "token", "tls_cert", "tls_key", "tls_ca")
"""What it takes to reach a runner."""

ANSWER_SECONDS: Final = 10.0
"""How long a runner may take to answer a question of an operator."""

_UNREACHABLE: Final = ("failed to connect", "errors resolving", "DNS resolution failed")
"""How gRPC's own texts begin; what a runner says with the same status begins otherwise."""


def ask(settings: Settings, question: Callable[[grpc.aio.Channel, Metadata], Awaitable[T]]) -> T:
    """Return what `question` makes of a channel to the runner that the settings name.

    Raises:
        Failed: the runner cannot be reached, or refused; says which one and what to do.
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


def _failed(settings: Settings, error: grpc.aio.AioRpcError) -> Failed:
    where, said = f"the runner at {settings.admin}", status_text(error)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return Failed(f"{where} is no actorhub runner, or another release: {said}: name one by --admin HOST:PORT")
    if error.code() is grpc.StatusCode.UNAVAILABLE and said.startswith(_UNREACHABLE):
        return Failed(
            f"{where} cannot be reached: {said}: start one with `actorhub serve`, or name another by --admin HOST:PORT"
        )
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failed(f"{where} did not answer in time: name another by --admin HOST:PORT")
    return Failed(f"{where}: {said}")
