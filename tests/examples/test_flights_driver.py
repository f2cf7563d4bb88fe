"""The flights example's driver on a real runner in this process."""

from examples.flights.check import differences, expected_aircraft, expected_airports
from examples.flights.data import flights_of, load
from examples.flights.driver import Driver
from examples.flights.entities import hub

RECORDS = 400


async def test_a_second_driver_that_sends_everything_again_changes_nothing(postgres_url: str) -> None:
    """Entities recognise each record that they have applied, whoever sends it, and say how many there were."""
    frame = load(RECORDS)
    async with hub.runner(database_url=postgres_url, listen="127.0.0.1:0") as cluster:
        one = Driver(cluster, in_flight=32)
        await one.run(flights_of(frame))
        other = Driver(cluster, in_flight=7)
        await other.run(flights_of(frame))
        assert (one.repeated, other.repeated) == (0, one.done)
        assert differences(expected_aircraft(frame), await other.aircraft()) == []
        assert differences(expected_airports(frame), await other.airports()) == []


async def test_what_the_cluster_holds_differs_from_changed_records(postgres_url: str) -> None:
    """One minute of delay added to one record afterwards is found at its aircraft and its destination alone."""
    frame = load(RECORDS).copy()
    async with hub.runner(database_url=postgres_url, listen="127.0.0.1:0") as cluster:
        driver = Driver(cluster, in_flight=32)
        await driver.run(flights_of(frame))
        aircraft, airports = await driver.aircraft(), await driver.airports()
    flown = frame.index[frame["arr_delay"].notna()][0]
    frame.loc[flown, "arr_delay"] += 1
    (leg,) = differences(expected_aircraft(frame), aircraft)
    (arrival,) = differences(expected_airports(frame), airports)
    assert leg.startswith(f"{frame['tailnum'][flown]}.arrival_delay: pandas ")
    assert arrival.startswith(f"{frame['dest'][flown]}.delay: pandas ")


async def test_a_driver_announces_how_far_it_is(postgres_url: str) -> None:
    """`reached` returns once that many records are applied, also when they were before."""
    frame = load(20)
    async with hub.runner(database_url=postgres_url, listen="127.0.0.1:0") as cluster:
        driver = Driver(cluster, in_flight=2)
        await driver.reached(0)
        await driver.run(flights_of(frame))
        await driver.reached(driver.done)
        assert driver.done == 40
        assert sum(driver.by_runner.values()) == 40
        assert sum(driver.homes().values()) == len(await driver.aircraft()) + len(await driver.airports())
