"""Numbers in the documents that follow from the code."""

import re

from actorhub.core.config import SETTINGS, Settings
from actorhub.storage.postgres.connections import NEEDED
from tests.docs.documents import ROOT

LOCK_SESSION = 1


def test_every_document_says_how_many_transactions_handlers_can_have() -> None:
    """The tables of limits, and the texts about connections."""
    most = Settings().max_connections - LOCK_SESSION - NEEDED
    assert SETTINGS["max_connections"].default == Settings().max_connections
    words = {"six": 6}
    found: dict[str, int] = {}
    for name in ("README.md", "docs/messages.md", "docs/steps.md", "docs/operating.md"):
        text = " ".join((ROOT / name).read_text().split())
        row = re.findall(r"transactions of (?:steps and )?handlers at a time, per process \| (\d+)", text)
        said = re.findall(r"A process has (\w+) such connections|up to (\w+) are for `transaction\(\)`", text)
        for number in [*row, *("".join(one) for one in said)]:
            found[f"{name}: {number}"] = words.get(number) or int(number)
        assert any(place.startswith(name) for place in found), name
    assert set(found.values()) == {most}, found
