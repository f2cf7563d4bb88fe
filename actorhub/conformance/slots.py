"""The promises of `LockSession.heartbeat` about slots and slices, as tests that every storage must pass."""

import asyncio

import msgspec

from actorhub.conformance.storage import StorageWorld, lock_session
from actorhub.core.address import RunnerAddress, RunnerInfo
from actorhub.storage.ports import LockSession, Storage, TableSlice


def at_address(incarnation: str, address: str) -> RunnerInfo:
    """Return a runner that listens at an address of its own."""
    return RunnerInfo(runner=RunnerAddress(f"{address}:7700", incarnation))


async def slots(storage: Storage) -> dict[str, int]:
    """Return the slot of each registered runner."""
    return {live.info.runner.incarnation: live.info.slot for live in await storage.runners()}


async def _read(session: LockSession, only: TableSlice | None) -> list[str]:
    found = await session.heartbeat(at_address("me", "me"), only)
    return [live.info.runner.incarnation for live in found]


class SliceSuite:
    """Which rows of the runner table a heartbeat returns."""

    async def test_slices_follow_each_other_through_the_whole_table(self, world: StorageWorld) -> None:
        """Each row comes once in a round, in the order of the store, besides the caller's own."""
        storage = await world.storage()
        names = [f"r{number}" for number in range(10)]
        for name in names:
            async with lock_session(storage, name) as session:
                await session.heartbeat(at_address(name, name))
        async with lock_session(storage, "me") as session:
            assert sorted(await _read(session, None)) == sorted([*names, "me"])
            after, found = "", list[str]()
            for size in (4, 4, 2, 0):
                part = [name for name in await _read(session, TableSlice(after=after, most=4)) if name != "me"]
                assert len(part) == size
                found += part
                after = found[-1]
            assert sorted(found) == names
            only = TableSlice(after="", most=4, besides=("r0", "r7", "me", "gone"))
            found = await _read(session, only)
            assert len(found) == len(set(found)) == 4 + 3
            assert {"r0", "r7", "me"} < set(found)

    async def test_a_slice_tells_how_long_its_runners_were_silent(self, world: StorageWorld) -> None:
        """A row in a slice says what it says in the whole table."""
        storage = await world.storage()
        async with lock_session(storage, "a") as session:
            await session.heartbeat(at_address("a", "a"))
        async with lock_session(storage, "me") as session:
            await session.heartbeat(at_address("me", "me"))
            [one] = [
                live
                for live in await session.heartbeat(at_address("me", "me"), TableSlice(after="", most=4))
                if live.info.runner.incarnation == "a"
            ]
            [other] = [live for live in await storage.runners() if live.info.runner.incarnation == "a"]
        assert (one.info, one.started_at) == (other.info, other.started_at)
        assert 0 <= one.silent_for <= other.silent_for


class SlotSuite:
    """Who gets which slot."""

    async def test_a_runner_keeps_the_lowest_slot_that_was_free(self, world: StorageWorld) -> None:
        """Slots are given in order, kept, reused when freed, and inherited by a restart at the same address."""
        storage = await world.storage()
        names = ("a", "b", "c", "d")
        for name in names:
            async with lock_session(storage, name) as session:
                await session.heartbeat(at_address(name, name))
                await session.heartbeat(at_address(name, name))
        assert await slots(storage) == {"a": 0, "b": 1, "c": 2, "d": 3}
        await storage.remove_runner("b")
        async with lock_session(storage, "e") as session:
            await session.heartbeat(at_address("e", "e"))
        async with lock_session(storage, "f") as session:
            await session.heartbeat(at_address("f", "c"))
        assert await slots(storage) == {"a": 0, "c": 2, "d": 3, "e": 1, "f": 2}

    async def test_runners_of_other_groups_do_not_count_for_slots(self, world: StorageWorld) -> None:
        """Slots are dense among the runners that share a group."""
        storage = await world.storage()
        for name, groups in (("a", ("default",)), ("b", ("eu",)), ("c", ("default", "eu"))):
            async with lock_session(storage, name) as session:
                await session.heartbeat(msgspec.structs.replace(at_address(name, name), groups=groups))
        assert await slots(storage) == {"a": 0, "b": 0, "c": 1}

    async def test_runners_that_register_at_once_get_different_slots(self, world: StorageWorld) -> None:
        """Two runners that start together do not sit in the same slot."""
        names = [f"r{number}" for number in range(8)]
        storages = [await world.storage() for _ in names]

        async def register(storage: Storage, name: str) -> None:
            async with lock_session(storage, name) as session:
                await session.heartbeat(at_address(name, name))

        async with asyncio.TaskGroup() as tasks:
            for storage, name in zip(storages, names, strict=True):
                tasks.create_task(register(storage, name))
        assert sorted((await slots(storages[0])).values()) == list(range(8))
