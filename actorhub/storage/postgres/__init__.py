"""The store on Postgres, and the embedded Postgres that serves where no database is given."""

from actorhub.storage.postgres.schema import migrate, migration_sql
from actorhub.storage.postgres.storage import PostgresStorage

__all__ = ["PostgresStorage", "migrate", "migration_sql"]
