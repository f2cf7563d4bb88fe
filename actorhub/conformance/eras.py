"""The promises about eras of `actorhub.storage.ports`, as tests that every storage must pass.

Subclass `EraSuite` in a test module and give it a fixture `world` that makes the storages of one test and can put an
older copy of their store in its place.
"""

import asyncio
from typing import Protocol

import pytest

from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, commit, lock_session, runner
from actorhub.core.errors import PersistenceError
from actorhub.storage.ports import EraChange, SessionLost, Storage, StoredState


class EraWorld(Protocol):
    """Makes the storages of one test, all on one empty store."""

    async def storage(self) -> Storage:
        """Return an open storage, as another process would have it."""
        ...

    async def restart(self) -> None:
        """Restart the store; nothing is lost."""
        ...

    async def back_up(self) -> None:
        """Keep a copy of what is stored; may restart the store."""
        ...

    async def restore(self) -> None:
        """Put the copy in the place of what is stored; the store restarts with it."""
        ...


class EraSuite:
    """Restarts, and stores that come back older."""

    async def test_all_storages_of_a_store_are_in_one_era(self, world: EraWorld) -> None:
        """It has a cluster and a token, and nobody is told of the one that a storage begins with."""
        first, second = await world.storage(), await world.storage()
        heard = _listen(second)
        await second.check_era()
        assert first.era == second.era
        assert first.era.cluster
        assert first.era.token
        assert heard == []

    async def test_a_restart_begins_a_later_era_of_the_same_cluster(self, world: EraWorld) -> None:
        """Each storage tells its listeners once; where nothing was lost, nothing is said to be."""
        storages = [await world.storage(), await world.storage()]
        heard = [_listen(storage) for storage in storages]
        await _write(storages[0], 1)
        before = storages[0].era
        await world.restart()
        for storage in storages:
            await _check(storage)
        assert storages[0].era == storages[1].era
        assert storages[0].era.cluster == before.cluster
        assert storages[0].era.token > before.token
        assert heard == [[EraChange(storages[0].era, "")]] * 2

    async def test_what_was_acknowledged_and_is_gone_is_reported_by_who_saw_it(self, world: EraWorld) -> None:
        """Who saw nothing acknowledged that is gone reports no loss, and all go on with what the store has."""
        seer, other = await world.storage(), await world.storage()
        heard = [_listen(seer), _listen(other)]
        await _write(seer, 1)
        await world.back_up()
        await _check(seer)
        await _write(seer, 2)
        await world.restore()
        for storage in (seer, other):
            await _check(storage)
            assert await storage.load_state("orders", "ada") == StoredState(1, b"v1")
        assert seer.era == other.era
        assert heard[0][-1].era == seer.era
        assert heard[0][-1].lost
        assert not any(change.lost for change in heard[1])
        await _write(seer, 2)
        await world.restart()
        await _check(seer)
        assert not heard[0][-1].lost

    async def test_what_was_acknowledged_before_the_copy_is_not_lost(self, world: EraWorld) -> None:
        """Only the time of the last acknowledged write counts, whatever happened to the store since."""
        storage = await world.storage()
        heard = _listen(storage)
        await _write(storage, 1)
        await world.back_up()
        await world.restore()
        await _check(storage)
        assert heard
        assert not any(change.lost for change in heard)

    async def test_nothing_is_done_in_an_era_before_its_listeners_were_told(self, world: EraWorld) -> None:
        """A commit of the owner that was is not written into the older store."""
        storage = await world.storage()
        await storage.take(SHARDS, runner("a"))
        await storage.commit_state(commit("ada", 1), "a")
        await world.back_up()
        await _check(storage)
        await storage.commit_state(commit("ada", 2), "a")
        happened: list[str] = []
        storage.on_era(lambda _: happened.append("told"))
        await world.restore()
        waiting = storage.commit_state(commit("eve", 1), "a")
        waiting.add_done_callback(lambda _: happened.append("failed"))
        with pytest.raises(PersistenceError) as raised:
            async with asyncio.timeout(2 * PATIENCE_SECONDS):
                await waiting
        assert raised.value.possibly_executed
        assert happened == ["told", "failed"]
        await _check(storage)
        assert await storage.load_state("orders", "eve") is None

    async def test_a_lock_session_ends_with_its_era(self, world: EraWorld) -> None:
        """Its locks are free, and its owner must open another one."""
        storage = await world.storage()
        async with lock_session(storage, "a") as session:
            assert await session.try_lock(SHARDS[:1]) == SHARDS[:1]
            await world.restart()
            with pytest.raises(SessionLost):
                await session.heartbeat(runner("a"))
        await _check(storage)
        async with lock_session(storage, "b") as session:
            assert await session.try_lock(SHARDS[:1]) == SHARDS[:1]


def _listen(storage: Storage) -> list[EraChange]:
    heard: list[EraChange] = []
    storage.on_era(heard.append)
    return heard


async def _check(storage: Storage) -> None:
    """Have the storage find the present era; its connections may have to be made again."""
    async with asyncio.timeout(2 * PATIENCE_SECONDS):
        while True:
            try:
                return await storage.check_era()
            except PersistenceError:
                await asyncio.sleep(0.02)


async def _write(storage: Storage, version: int) -> None:
    """Have a state acknowledged."""
    epochs = await storage.take(SHARDS, runner("a"))
    await storage.commit_state(commit("ada", version, epoch=epochs[SHARDS[0]]), "a")
