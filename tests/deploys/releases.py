"""Processes of two releases of the library, and of a program that is deployed with it.

The release before is `actorhub-d8431ec.tar.xz`: the package of that commit, without stubs and suites. It is kept here
because a checkout of CI is shallow and has no other commit, and an archive of the sources has none at all. Whoever
releases the library puts the new package in its place.
"""

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.processes import ActorhubProcess, Processes
from tests.support.starter import ROOT

ARCHIVE = Path(__file__).with_name("actorhub-d8431ec.tar.xz")
SHOP = "tests.deploys.shop:hub"


class Release(NamedTuple):
    """A release of the library, and of the program that is deployed with it."""

    path: str
    program: int
    placement: str = ""

    @property
    def env(self) -> dict[str, str]:
        """What makes a process one of this release."""
        return {
            "PYTHONPATH": f"{self.path}{os.pathsep}{ROOT}",
            "SHOP_RELEASE": str(self.program),
            "SHOP_PLACEMENT": self.placement,
            "SHOP_PATIENCE": "1",
        }


class Cluster:
    """Runners and callers of two releases."""

    def __init__(self, processes: Processes, url: str) -> None:
        self._processes = processes
        self._url = url
        self._callers: list[ActorhubProcess] = []

    async def start(self, release: Release, reference: str = SHOP) -> ActorhubProcess:
        """Start a runner, and wait until it serves."""
        self._processes.are_fresh = release.path != str(ROOT)
        flags = ("--database", self._url, "--grace", "3s")
        return await self._processes.serve(*flags, reference=reference, **release.env)

    async def migrate(self, release: Release, url: str) -> None:
        """Have a release bring the schema up to date."""
        self._processes.are_fresh = release.path != str(ROOT)
        migrate = self._processes.start("migrate", "--database", url, **release.env)
        assert await migrate.ended() == 0, migrate.err

    async def call(self, release: Release, gateways: Sequence[ActorhubProcess], name: str) -> None:
        """Start a caller, and wait for its first calls."""
        self._processes.are_fresh = release.path != str(ROOT)
        addresses = ",".join(runner.address for runner in gateways)
        caller = self._processes.start(addresses, name, module="tests.deploys.load", **release.env)
        self._callers.append(caller)
        async with asyncio.timeout(30):
            while caller.out.count("\n") < 20:
                assert caller.code is None, caller.err
                await asyncio.sleep(0.02)

    async def hush(self) -> list[dict[str, Any]]:
        """Stop the callers; return what they printed."""
        for caller in self._callers:
            assert await caller.terminate(60) == 0, caller.err
        return [json.loads(line) for caller in self._callers for line in caller.out.splitlines()]

    async def command(self, runner: ActorhubProcess, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Run a command against a runner; return what it printed as JSON."""
        self._processes.are_fresh = False
        finished = await self._processes.run(*arguments, "--admin", runner.address, "--json", PYTHONPATH=str(ROOT))
        assert finished.code == 0, finished.err
        return finished.json


async def leave(runner: ActorhubProcess) -> None:
    """Have a runner leave: it must not take long, whatever the other release sent it."""
    began = time.monotonic()
    assert await runner.terminate(10) == 0, runner.err
    assert time.monotonic() - began < 5
