"""The Postgres store keeps the promises about durable messages."""

import pytest

from actorhub.conformance.message_care import CareSuite, InspectionSuite
from actorhub.conformance.message_keys import KeySuite
from actorhub.conformance.message_runs import CommitSuite, FailureSuite, StartSuite
from actorhub.conformance.messages import LoadSuite, StoreSuite
from actorhub.conformance.moved_entities import MovedEntitySuite
from actorhub.conformance.unreadable_messages import UnreadableSuite
from tests.storage.conftest import PostgresWorld


@pytest.fixture
def world(postgres_world: PostgresWorld) -> PostgresWorld:
    """The suite's world is an empty database."""
    return postgres_world


class TestPostgresStore(StoreSuite):
    """Storing in Postgres."""


class TestPostgresLoad(LoadSuite):
    """Loading from Postgres."""


class TestPostgresStart(StartSuite):
    """Starting runs in Postgres."""


class TestPostgresCommit(CommitSuite):
    """Committing runs in Postgres."""


class TestPostgresFailure(FailureSuite):
    """Failed runs in Postgres."""


class TestPostgresInspection(InspectionSuite):
    """Inspecting messages in Postgres."""


class TestPostgresUnreadable(UnreadableSuite):
    """Rows in Postgres that cannot be read."""


class TestPostgresMovedEntities(MovedEntitySuite):
    """Entities that move to other shards on Postgres."""


class TestPostgresCare(CareSuite):
    """Cancelling, retrying, purging and forgetting in Postgres."""


class TestPostgresKeys(KeySuite):
    """Freeing and keeping keys in Postgres."""
