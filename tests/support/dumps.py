"""`pg_dump` into `psql`, as operators do it."""

from tests.support.postgres_server import PostgresServer


def conninfo(server: PostgresServer, database: str) -> str:
    """Return how libpq's programs reach a database of the server."""
    return f"host={server.data} port=5432 user=postgres dbname={database}"


async def dump(server: PostgresServer, database: str) -> str:
    """Return the file that a dump of the database was written into."""
    file = str(server.data / f"{database}.sql")
    await server.run("pg_dump", f"--dbname={conninfo(server, database)}", f"--file={file}")
    return file


async def restore(file: str, server: PostgresServer, database: str) -> None:
    """Run a dump in a database."""
    await server.run(
        "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={file}", conninfo(server, database)
    )
