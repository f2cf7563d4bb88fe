"""Questions of one runner to the others: all at once, each with a short deadline; silence is an answer too."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

import grpc.aio

from actorhub.core.config import Settings
from actorhub.ops.channels import call_metadata, open_channel, status_text
from actorhub.transport.grpc._pb import admin_v1_pb2_grpc as pb_grpc

T = TypeVar("T")

ANSWER_SECONDS: Final = 1.0
"""How long a colleague may take."""

_log: Final = logging.getLogger("actorhub.ops")


class Colleagues:
    """Asks the admin services of other runners."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def ask(
        self, addresses: Collection[str], question: Callable[[pb_grpc.AdminStub], Awaitable[T]]
    ) -> dict[str, T | None]:
        """Return each runner's answer by address; `None` where none came in time.

        Args:
            addresses: Of other runners.
            question: Calls one method of the stub it is given.
        """
        async with asyncio.TaskGroup() as tasks:
            asked = {address: tasks.create_task(self._ask(address, question)) for address in addresses}
        return {address: task.result() for address, task in asked.items()}

    async def _ask(self, address: str, question: Callable[[pb_grpc.AdminStub], Awaitable[T]]) -> T | None:
        channel = open_channel(address, self._settings)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await question(pb_grpc.AdminStub(channel))
        except TimeoutError:
            _log.info("the runner at %s did not answer within %g s", address, ANSWER_SECONDS)
        except grpc.aio.AioRpcError as error:
            _log.info("the runner at %s did not answer: %s", address, status_text(error))
        finally:
            await channel.close(None)
        return None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every question carries."""
        return call_metadata(self._settings)
