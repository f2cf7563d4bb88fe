"""The Postgres store keeps the promises."""

import pytest

from actorhub.conformance.slots import SliceSuite, SlotSuite
from actorhub.conformance.storage import OwnershipSuite, StateSuite
from actorhub.conformance.takeovers import TakeoverSuite
from tests.storage.conftest import PostgresWorld


@pytest.fixture
def world(postgres_world: PostgresWorld) -> PostgresWorld:
    """The suite's world is an empty database."""
    return postgres_world


class TestPostgresOwnership(OwnershipSuite):
    """Ownership on Postgres."""


class TestPostgresSlots(SlotSuite, SliceSuite):
    """Slots on Postgres."""


class TestPostgresTakeovers(TakeoverSuite):
    """Takeovers on Postgres."""


class TestPostgresState(StateSuite):
    """State on Postgres."""
