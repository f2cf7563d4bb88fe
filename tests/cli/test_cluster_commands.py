"""`actorhub runners`, `shards`, `entities`, `call`, `tell`: what they print of a cluster of two."""

import asyncio

from tests.support.processes import ActorhubProcess, Processes


async def _two(processes: Processes) -> tuple[ActorhubProcess, ActorhubProcess]:
    first = await processes.serve()
    second = await processes.serve()
    while {row["shards_owned"] for row in await _rows(processes, "runners", first)} != {150}:
        await asyncio.sleep(0.05)
    return first, second


async def _rows(processes: Processes, command: str, runner: ActorhubProcess, *flags: str) -> list[dict[str, object]]:
    found = await processes.run(command, "--json", "--admin", runner.address, *flags)
    assert found.code == 0, found.err
    rows: list[dict[str, object]] = found.json
    return rows


async def test_any_runner_answers_for_the_whole_cluster(processes: Processes) -> None:
    """Runners, shards and entities are the same whichever of two runners is asked."""
    first, second = await _two(processes)
    addresses = sorted([first.address, second.address])
    runners = await _rows(processes, "runners", second)
    assert [row["address"] for row in runners] == addresses
    assert {row["state"] for row in runners} == {"serving"}
    assert {row["pid"] for row in runners} == {first.pid, second.pid}
    shards = await _rows(processes, "shards", first)
    assert shards == await _rows(processes, "shards", second)
    assert [row["shard"] for row in shards] == [f"default:{number}" for number in range(300)]
    assert {row["state"] for row in shards} == {"owned"}
    for name in "abc":
        order = '{"sku":"tea","quantity":1}'
        told = await processes.run("tell", "orders", name, "process", order, "--admin", first.address)
        assert told.out.strip().isdigit()
    entities = await _rows(processes, "entities", second, "--type", "orders")
    assert [row["entity_id"] for row in entities] == list("abc")
    assert {row["runner"] for row in entities} == set(addresses)
    assert [row["entity_id"] for row in await _rows(processes, "entities", first, "--limit", "2")] == ["a", "b"]
    table = await processes.run("shards", "--admin", first.address)
    assert f"│ default:299 │ owned │ {shards[299]['runner']} " in table.out


async def test_a_frozen_runner_is_shown_as_silent(processes: Processes) -> None:
    """The answer comes nevertheless, with the frozen runner's numbers unknown."""
    first, second = await _two(processes)
    second.freeze()
    silent = next(row for row in await _rows(processes, "runners", first) if row["address"] == second.address)
    second.thaw()
    assert (silent["state"], silent["shards_owned"]) == ("silent", None)


async def test_a_failed_call_ends_in_one_typed_line_and_code_1(processes: Processes) -> None:
    """Domain errors, framework errors and exceptions of user code are told apart, and no handler's state changed."""
    runner = await processes.serve()
    admin = ("--admin", runner.address)
    expected = {
        ("orders", "a", "process", '{"sku":"tea","quantity":200}'): "Error: OutOfStock: sku='tea', left=3\n",
        ("orders", "a", "process", '{"sku":"x","quantity":1}'): (
            "Error: HandlerFailed: KeyError: 'x' (the handler may have run)\n"
        ),
        ("orders", "a", "process", '{"sku":"tea"}'): "missing required field `quantity`",
        ("order", "a", "count"): "UnknownEntityType: this runner knows no entity type 'order': it knows gate, orders\n",
        ("orders", "a", "cont"): "UnknownHandler: orders has no handler 'cont': it has add, count, headers, process",
        ("gate", "a", "sleep", "9", "--timeout", "0.2"): "CallTimeout",
    }
    for arguments, text in expected.items():
        failed = await processes.run("call", *arguments, *admin)
        assert (failed.code, failed.out) == (1, "")
        assert text in failed.err
        assert len(failed.err.splitlines()) == 1
    assert (await processes.run("call", "orders", "a", "count", *admin)).json == 0


async def test_a_stream_is_printed_line_by_line(processes: Processes) -> None:
    """Each item is one line of JSON."""
    runner = await processes.serve()
    arguments = ("orders", "a", "watch", '{"first":1,"last":600}', "--stream")
    found = await processes.run("call", *arguments, "--admin", runner.address)
    assert found.out.splitlines() == [str(number) for number in range(1, 600)]
