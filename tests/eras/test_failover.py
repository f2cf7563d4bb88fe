"""A standby takes the primary's place."""

import asyncio

from tests.eras.books import enter_all, read_all, running
from tests.support.parts import runner_of
from tests.support.postgres_server import PostgresServer
from tests.support.standby import cut_off, promote, url_of


async def test_everything_answers_after_a_standby_that_lagged_is_promoted(
    own_postgres: PostgresServer, standby: PostgresServer
) -> None:
    """What the standby never received is gone, and reported; both runners go on with the rest."""
    url = url_of(own_postgres, standby)
    async with running(url) as first:
        kept = await enter_all(first)
        await asyncio.sleep(0.5)
        await cut_off(standby)
        async with running(url) as second:  # moves shards to higher epochs, of which the standby knows nothing
            lost = await enter_all(second)
            assert lost == dict.fromkeys(kept, 2)
            await own_postgres.stop("immediate")
            await promote(standby)
            for cluster in (first, second):
                assert await read_all(cluster) == kept
            assert await enter_all(first) == dict.fromkeys(kept, 2)
            assert [bool(runner_of(cluster).health().lost) for cluster in (first, second)]
