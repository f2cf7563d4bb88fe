"""The parts of the documents that are made from the code are what the code says now."""

from pathlib import Path

import pytest

from actorhub._call import MAX_CALLS, CallTarget
from actorhub._options import EntityOptions
from actorhub._stream_call import STREAM_WINDOW
from actorhub.core import key_value
from actorhub.core.config import Settings
from actorhub.core.errors import ActorhubError, EntityError
from actorhub.core.idempotency import MAX_KEY_BYTES
from actorhub.core.retry import DEFAULT_RETRY
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.routing.peers import MAX_IN_FLIGHT
from actorhub.engine.runs.checkpoints import MOST_STEPS
from actorhub.storage.postgres.connections import NEEDED
from tests.docs.documents import ROOT, made_parts, rows, section

MADE = list(made_parts())


@pytest.mark.parametrize(("document", "name", "made"), MADE, ids=[name for _, name, _ in MADE])
def test_a_made_part_is_current(document: Path, name: str, made: str) -> None:
    """What stands in the document is what the code says: run `python -m tests.docs.update` where it differs."""
    assert section(document, name).splitlines() == made.splitlines(), "run: python -m tests.docs.update"


def test_the_limits_in_the_readme_are_the_defaults() -> None:
    """Each number in the table of limits is what the code has."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Limits")[2].partition("## ")[0]
    settings = Settings()
    assert {what: float(default.replace(",", "")) for what, default in rows(table)} == {
        "shards per group": settings.shards_per_group,
        "entities in memory, per runner": settings.max_resident,
        "message and state, bytes": settings.max_message_bytes,
        "entity id, bytes of UTF-8": settings.max_entity_id_bytes,
        "chain of calls from entity to entity": settings.max_call_depth,
        "messages waiting in memory per entity": _default(EntitySpec, "mailbox_capacity"),
        "idempotency key, bytes of UTF-8": MAX_KEY_BYTES,
        "key of the key-value store, bytes of UTF-8": key_value.MAX_KEY_BYTES,
        "value of the key-value store, bytes": key_value.MAX_VALUE_BYTES,
        "runs of a durable message": DEFAULT_RETRY.attempts,
        "reply and key of a durable message kept, seconds": settings.retention.total_seconds(),
        "steps of a durable message, or of a singleton between two saves": MOST_STEPS,
        "transactions of handlers at a time, per process": settings.max_connections - 1 - NEEDED,
        "calls in flight to one peer": MAX_IN_FLIGHT,
        "calls that one process waits for": MAX_CALLS,
        "timeout of an ask, seconds": _default(CallTarget, "timeout"),
        "items of a stream in flight": STREAM_WINDOW,
        "time for handlers to finish at shutdown, seconds": settings.grace.total_seconds(),
    }


def _default(cls: type, field: str) -> object:
    return cls.__dataclass_fields__[field].default  # type: ignore[attr-defined]


def test_the_class_keywords_in_the_guide_are_those_of_an_entity() -> None:
    """The table of class keywords names each of them once."""
    text = (ROOT / "docs" / "entities.md").read_text(encoding="utf-8")
    table = text.partition("| class keyword |")[2].partition("\n\n")[0]
    named = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert named == list(EntityOptions.__dataclass_fields__)


def test_the_table_of_errors_has_every_error_with_its_default() -> None:
    """Each public error stands in the table once, with the `possibly_executed` of its class."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    table = rows(text.partition("## Each error")[2].partition("## ")[0])
    public = {cls for cls in ActorhubError.__subclasses__() if cls.__module__ == EntityError.__module__}
    assert {row[0]: row[1] for row in table} == {f"`{cls.__name__}`": f"`{cls.possibly_executed}`" for cls in public}
    assert len(table) == len(public)
