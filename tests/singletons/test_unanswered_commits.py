"""A store that does not answer does not hold up the end of a leader that was lost."""

import asyncio
from typing import Any

import pytest

from actorhub import Hub
from actorhub.cluster import part_of
from actorhub.engine.runner import Runner
from actorhub.engine.runs.commits import Commits
from actorhub.testing import MemoryCluster, until
from tests.singletons.diary import Diary, Notes, story

hub = Hub()
hub.register(Diary)
SOON = 0.5
"""Seconds. Handlers of a leader that was lost get ten times as long to end."""


async def save(me: Diary) -> None:
    await me.save(Notes(["saved"]))


async def test_a_run_that_waits_for_its_commit_ends_with_its_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hook runs at once, before another runner that waits for no more than the lease can lead."""
    story.clear()
    story.act["run"] = save
    asked: list[asyncio.Future[bool]] = []

    def unanswered(self: Commits, *what: Any) -> "asyncio.Future[bool]":
        asked.append(asyncio.get_running_loop().create_future())
        return asked[-1]

    async with MemoryCluster(hub) as memory:
        monkeypatch.setattr(Commits, "run_alone", unanswered)
        runner = part_of(await memory.start_runner())
        assert isinstance(runner, Runner)
        await until(lambda: bool(asked), "the commit is asked for")
        try:
            runner.ownership.let_everything_go("it is tested")
            await until(lambda: "on_lose_leadership" in story.log, "the leader is told", deadline=SOON)
        finally:
            monkeypatch.undo()
            for answer in asked:
                answer.set_result(True)
        assert story.log[:5] == ["on_activate", "on_become_leader", "run", "run cancelled", "on_lose_leadership"]
