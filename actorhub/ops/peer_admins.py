"""Asking the admin services of other runners: all at once, each within a short time; silence is an answer too."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

import grpc.aio

from actorhub.core.config import Settings
from actorhub.core.logger import get_logger
from actorhub.ops.channels import Metadata, call_metadata, open_channel, status_text
from actorhub.transport.grpc._pb import admin_v1_pb2_grpc as pb_grpc

T = TypeVar("T")

ANSWER_SECONDS: Final = 1.0
"""How long a runner may take to answer another one."""

_log: Final = get_logger("actorhub.ops")


class PeerAdmins:
    """The admin services of the other runners."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def ask(
        self, addresses: Collection[str], question: Callable[[pb_grpc.AdminStub, Metadata], Awaitable[T]]
    ) -> dict[str, T | None]:
        """Return each runner's answer by address; `None` where none came in time.

        Args:
            addresses: Of other runners.
            question: Calls one method of the stub that it is given, with the metadata that every call carries.
        """
        metadata = call_metadata(self._settings)
        async with asyncio.TaskGroup() as tasks:
            asked = {address: tasks.create_task(self._ask(address, question, metadata)) for address in addresses}
        return {address: task.result() for address, task in asked.items()}

    async def _ask(
        self, address: str, question: Callable[[pb_grpc.AdminStub, Metadata], Awaitable[T]], metadata: Metadata
    ) -> T | None:
        channel = open_channel(address, self._settings)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await question(pb_grpc.AdminStub(channel), metadata)
        except TimeoutError:
            _log.info("the runner at %s did not answer within %g s", address, ANSWER_SECONDS)
        except grpc.aio.AioRpcError as error:
            _log.info("the runner at %s did not answer: %s", address, status_text(error))
        finally:
            await channel.close(None)
        return None
