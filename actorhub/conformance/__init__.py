"""The promises of the ports, as test suites that every implementation must pass.

A storage or a transport of your own is good once it passes all of them, as those in this package do. Subclass the
suites in a test module, under names that pytest collects, and provide the fixtures that they take. Run them with pytest
and pytest-asyncio in its auto mode (`asyncio_mode = "auto"`), each test in an event loop of its own.

Every suite but those of key values takes `world`, which makes the storages of one test: all on one empty store, each as
another process would have it. `actorhub.conformance.storage.StorageWorld` says what a world is, and
`actorhub.conformance.eras.EraWorld` what it must do besides for `EraSuite`. The key-value suites take `store` and
`other`: one key-value store, as two processes have it.

Example:
    # test_my_storage.py
    from collections.abc import AsyncIterator

    import pytest

    from actorhub.conformance import checkpoints, eras, key_values, message_care, message_keys, message_runs
    from actorhub.conformance import messages, moved_entities, singletons, slots, storage, takeovers
    from actorhub.conformance import unreadable_messages
    from my_storage import MyKeyValues, MyStorage, empty_store


    class MyWorld:
        def __init__(self) -> None:
            self._store = empty_store()
            self._made: list[MyStorage] = []

        async def storage(self) -> MyStorage:
            made = MyStorage(self._store)
            self._made.append(made)
            await made.open()
            return made

        async def restart(self) -> None:
            self._store.restart()

        async def back_up(self) -> None:
            self._backup = self._store.back_up()

        async def restore(self) -> None:
            self._store.restore(self._backup)

        async def aclose(self) -> None:
            for made in self._made:
                await made.aclose()


    @pytest.fixture
    async def world() -> AsyncIterator[MyWorld]:
        made = MyWorld()
        yield made
        await made.aclose()


    @pytest.fixture
    async def store(world: MyWorld) -> MyKeyValues:
        return (await world.storage()).key_values


    @pytest.fixture
    async def other(world: MyWorld) -> MyKeyValues:
        return (await world.storage()).key_values


    class TestOwnership(storage.OwnershipSuite, slots.SlotSuite, slots.SliceSuite, takeovers.TakeoverSuite): ...


    class TestState(storage.StateSuite): ...


    class TestEras(eras.EraSuite): ...


    class TestMessages(messages.StoreSuite, messages.LoadSuite): ...


    class TestRuns(message_runs.StartSuite, message_runs.CommitSuite, message_runs.FailureSuite): ...


    class TestCare(message_care.InspectionSuite, message_care.CareSuite, message_keys.KeySuite): ...


    class TestMovedEntities(moved_entities.MovedEntitySuite): ...


    class TestUnreadable(unreadable_messages.UnreadableSuite): ...


    class TestCheckpoints(checkpoints.CheckpointWriteSuite, checkpoints.CompletionSuite): ...


    class TestSingletons(singletons.LeaderSuite, singletons.ScheduleSuite): ...


    class TestKeyValues(key_values.KeyValueSuite, key_values.ExpirySuite): ...

A transport has two suites. Their `world` makes the transports of one test, which can reach each other.

Example:
    # test_my_transport.py
    from collections.abc import AsyncIterator

    import pytest

    from actorhub.conformance import malformed_envelopes, transport
    from actorhub.core.envelope import Hello
    from actorhub.transport.outbox import LinkLimits
    from my_transport import MyTransport


    class MyWorld:
        dead_address = "127.0.0.1:1"

        def __init__(self) -> None:
            self._made: list[MyTransport] = []

        def listener(self, hello: Hello, limits: LinkLimits | None = None, address: str | None = None) -> MyTransport:
            return self._keep(MyTransport(hello, limits=limits, listen=address or "127.0.0.1:0"))

        def client(self, hello: Hello, limits: LinkLimits | None = None) -> MyTransport:
            return self._keep(MyTransport(hello, limits=limits))

        def _keep(self, made: MyTransport) -> MyTransport:
            self._made.append(made)
            return made

        async def aclose(self) -> None:
            for made in self._made:
                await made.aclose(1)


    @pytest.fixture
    async def world() -> AsyncIterator[MyWorld]:
        made = MyWorld()
        yield made
        await made.aclose()


    class TestMyTransport(transport.TransportSuite, malformed_envelopes.MalformedEnvelopeSuite): ...
"""
