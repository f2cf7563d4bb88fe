"""Log records that say which handler they come from."""

import json
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from actorhub import Cluster, Entity, Hub, current, handler
from actorhub.cli.logs import set_up_logging
from actorhub.core.config import Settings
from actorhub.log_context import FIELDS, HandlerFields
from actorhub.testing import MemoryCluster

_log = logging.getLogger("tests.talker")


class Talker(Entity, name="talker"):
    """Says something in the log."""

    @handler(durable=True)
    async def say(self) -> int:
        _log.warning("said something")
        return current().message_id


hub = Hub()
hub.register(Talker)


@pytest.fixture
async def runner() -> AsyncIterator[Cluster]:
    """A runner in memory."""
    async with MemoryCluster(hub) as memory:
        yield await memory.start_runner()


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the talker's logger says, with the fields."""
    found: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    keeping = Keeping()
    keeping.addFilter(HandlerFields())
    _log.addHandler(keeping)
    yield found
    _log.removeHandler(keeping)


@pytest.fixture
def root() -> Iterator[None]:
    """Restores the root logger's handlers and level."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
    logging.captureWarnings(capture=False)
    logger.handlers[:] = handlers
    logger.setLevel(level)


async def test_a_handlers_records_say_which_entity_runs(runner: Cluster, records: list[logging.LogRecord]) -> None:
    """Type, id, shard, runner and message of the run, and whether the runner still owns the shard."""
    message_id = await runner.client(Talker)("ada").say()
    (record,) = records
    assert {name: record.__dict__[name] for name in FIELDS} == {
        "entity_type": "talker",
        "entity_id": "ada",
        "shard": str(runner.shard_of(Talker, "ada")),
        "runner": "127.0.0.1:1",
        "message_id": str(message_id),
        "is_leader": True,
    }


async def test_other_records_have_the_fields_empty(records: list[logging.LogRecord]) -> None:
    """A format that names the fields works everywhere."""
    _log.warning("outside")
    (record,) = records
    assert {record.__dict__[name] for name in FIELDS} == {""}


@pytest.mark.usefixtures("root")
async def test_json_lines_have_the_fields_of_handlers_alone(
    runner: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler's line says where it comes from; another one is not longer than before."""
    set_up_logging(Settings(log_format="json"))
    await runner.client(Talker)("ada").say()
    _log.warning("outside")
    inside, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines() if "tests.talker" in line)
    assert (inside["message"], inside["entity_type"], inside["entity_id"]) == ("said something", "talker", "ada")
    assert inside.keys() >= set(FIELDS)
    assert not outside.keys() & set(FIELDS)


@pytest.mark.usefixtures("root")
async def test_text_lines_name_the_entity(runner: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Type and id stand behind the logger's name."""
    set_up_logging(Settings())
    await runner.client(Talker)("ada").say()
    _log.warning("outside")
    said = capsys.readouterr().err
    assert "WARNING tests.talker [talker/ada]: said something\n" in said
    assert "WARNING tests.talker: outside\n" in said
