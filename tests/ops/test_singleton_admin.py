"""Singletons, schedules and deferred values through a runner's port: seen and changed by any runner for all."""

import asyncio
import logging
from collections.abc import AsyncIterator

import asyncpg
import grpc
import grpc.aio
import msgspec
import pytest

from actorhub.core.cron import CronExpression
from actorhub.engine.runner import Runner
from actorhub.storage.singleton_ports import Leadership
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from actorhub.transport.grpc._pb import client_v1_pb2 as client_pb
from tests.ops import clerks
from tests.ops.clerks import Clerk, Requests
from tests.ops.conftest import Port, Ports
from tests.support.parts import runner_of

UNLED, LEADING, STALE = pb.SINGLETON_STATE_UNLED, pb.SINGLETON_STATE_LEADING, pb.SINGLETON_STATE_STALE
NEW_YEAR, JULY = "tick", "tick-2"


@pytest.fixture
async def clerk_ports(postgres_url: str) -> AsyncIterator[Ports]:
    """Runners that host a singleton with two schedules, closed after the test."""
    made = Ports(postgres_url, clerks.hub)
    async with made.stack:
        yield made


async def _singletons(port: Port) -> dict[str, pb.Singleton]:
    reply = await port.admin.ListSingletons(pb.ListSingletonsRequest())
    return {singleton.singleton: singleton for singleton in reply.singletons}


async def _clerk(port: Port) -> pb.Singleton:
    """Return the clerk, once it is led and its schedules are planned."""
    async with asyncio.timeout(20):
        while True:
            clerk = (await _singletons(port))["clerk"]
            if clerk.state == LEADING and len(clerk.schedules) == 2 and all(s.next_at for s in clerk.schedules):
                return clerk
            await asyncio.sleep(0.02)


async def _schedule(port: Port, name: str) -> pb.Schedule:
    reply = await port.admin.ListSchedules(pb.ListSchedulesRequest(singleton="clerk"))
    return next(schedule for schedule in reply.schedules if schedule.name == name)


async def _planned(port: Port, name: str) -> pb.Schedule:
    """Return the schedule, once its leader has planned its next fire time."""
    async with asyncio.timeout(20):
        while not (schedule := await _schedule(port, name)).HasField("next_at"):
            await asyncio.sleep(0.02)
    return schedule


def _edit(name: str, **change: object) -> pb.EditScheduleRequest:
    return pb.EditScheduleRequest(singleton="clerk", name=name, **change)  # type: ignore[arg-type]


async def _ended(port: Port, message_id: int) -> pb.Message:
    async with asyncio.timeout(20):
        while not (message := await port.admin.GetMessage(pb.GetMessageRequest(message_id=message_id))).finished_at:
            await asyncio.sleep(0.02)
    return message


async def _refused(question: object, status: grpc.StatusCode, text: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await question  # type: ignore[misc]
    assert refused.value.code() is status
    assert text in (refused.value.details() or "")


def _runner(port: Port) -> Runner:
    return runner_of(port.cluster)


async def test_a_singleton_is_shown_with_its_leader_and_schedules_by_every_runner(clerk_ports: Ports) -> None:
    """Leader, incarnation, epoch and times are those of the owner of its shard, whoever is asked."""
    first, second = await clerk_ports.open_two()
    await _clerk(first)
    shown = {port.address: await _clerk(port) for port in (first, second)}
    leader = next(port for port in (first, second) if shown[first.address].leader == port.address)
    owned = _runner(leader).ownership.owned
    for clerk in shown.values():
        assert str(clerk.shard) in {str(shard) for shard in owned}
        (epoch,) = (epoch for shard, epoch in owned.items() if str(shard) == clerk.shard)
        assert (clerk.leader, clerk.epoch) == (leader.address, epoch)
        assert clerk.incarnation == _runner(leader).info.runner.incarnation
        assert clerk.entity_id
        assert (clerk.executions, clerk.last_execution, clerk.last_error, clerk.main_loop) == (0, "", "", "")
        assert not clerk.HasField("last_execution_at")
        assert [schedule.name for schedule in clerk.schedules] == [NEW_YEAR, JULY]
    reply = await second.admin.ListSingletons(pb.ListSingletonsRequest())
    assert reply.now - 60 < shown[first.address].since <= reply.now


async def test_a_schedule_tells_its_expression_and_its_next_fire_time(clerk_ports: Ports) -> None:
    """Next fire times are computed in the schedule's time zone, and nothing has run yet."""
    port = await clerk_ports.open()
    await _clerk(port)
    reply = await port.admin.ListSchedules(pb.ListSchedulesRequest())
    expected = {NEW_YEAR: ("0 0 1 1 *", "Europe/Berlin"), JULY: ("0 12 1 7 *", "UTC")}
    assert {each.name: (each.expression, each.timezone) for each in reply.schedules} == expected
    for schedule in reply.schedules:
        assert schedule.singleton == "clerk"
        assert schedule.next_at == CronExpression(schedule.expression, schedule.timezone).after(reply.now)
        assert (schedule.paused, schedule.edited, schedule.runs, schedule.skipped) == (False, False, 0, 0)
        assert not schedule.HasField("last_at")


async def test_a_singleton_that_nobody_leads_and_a_stale_one_are_told_apart(
    clerk_ports: Ports, postgres_url: str
) -> None:
    """Declared but never led, left, led at another epoch, and led without a sign of life for a minute."""
    port = await clerk_ports.open()
    await _clerk(port)
    runner = _runner(port)
    shard, epoch = next(iter(runner.ownership.owned.items()))
    incarnation, store = runner.info.runner.incarnation, runner.storage.singletons
    for name in ("left", "lost", "stale", "well"):
        ours = Leadership(singleton=name, entity_id=name, shard=shard, epoch=epoch, incarnation=incarnation)
        row, _ = await store.lead(ours, port.address, None)
        await store.record(ours, row.execution, heartbeat=True, leaves=name == "left")
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("update actorhub.singleton set epoch = epoch - 1 where singleton = 'lost'")
        await connection.execute(
            "update actorhub.singleton set heartbeat_at = now() - interval '61 s' where singleton = 'stale'"
        )
        await connection.execute("delete from actorhub.singleton where singleton = 'clerk'")
    finally:
        await connection.close()
    shown = await _singletons(port)
    states = {"clerk": UNLED, "left": UNLED, "lost": UNLED, "stale": STALE, "well": LEADING}
    assert {name: singleton.state for name, singleton in shown.items()} == states
    assert {name for name, singleton in shown.items() if singleton.leader} == {"stale", "well"}
    assert (shown["clerk"].epoch, shown["clerk"].HasField("since")) == (0, False)
    assert shown["left"].epoch == epoch


async def test_a_schedule_is_paused_and_resumed(clerk_ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    """Paused it has no next fire time; resumed it has the one it had; both are logged."""
    caplog.set_level(logging.INFO, "actorhub.ops")
    first, second = await clerk_ports.open_two()
    await _clerk(first)
    before = await _schedule(first, NEW_YEAR)
    paused = await second.admin.EditSchedule(_edit(NEW_YEAR, paused=True))
    assert (paused.paused, paused.edited, paused.HasField("next_at")) == (True, False, False)
    assert paused.revision > before.revision
    assert (await _schedule(first, NEW_YEAR)).paused
    resumed = await first.admin.EditSchedule(_edit(NEW_YEAR, paused=False))
    assert not resumed.paused
    assert (await _planned(second, NEW_YEAR)).next_at == before.next_at
    assert "schedule clerk.tick: paused" in caplog.messages
    assert "schedule clerk.tick: resumed" in caplog.messages


async def test_a_schedule_is_set_and_reset(clerk_ports: Ports) -> None:
    """What is left out stays, the next fire time is planned again, and a reset goes back to the code."""
    port = await clerk_ports.open()
    await _clerk(port)
    before = await _schedule(port, JULY)
    moved = await port.admin.EditSchedule(_edit(JULY, set=pb.ScheduleTimes(timezone="Asia/Tokyo")))
    assert (moved.expression, moved.timezone, moved.edited) == (before.expression, "Asia/Tokyo", True)
    planned = await _planned(port, JULY)
    now = (await port.admin.ListSchedules(pb.ListSchedulesRequest())).now
    assert planned.next_at == CronExpression(before.expression, "Asia/Tokyo").after(now)
    await port.admin.EditSchedule(_edit(JULY, set=pb.ScheduleTimes(expression="0 0 29 2 *")))
    planned = await _planned(port, JULY)
    assert (planned.expression, planned.timezone, planned.declared) == ("0 0 29 2 *", "Asia/Tokyo", before.declared)
    await port.admin.EditSchedule(_edit(JULY, reset=pb.ScheduleReset()))
    after = await _planned(port, JULY)
    assert (after.expression, after.timezone, after.edited) == (before.expression, before.timezone, False)
    assert after.next_at == before.next_at


async def test_a_schedule_runs_now_and_its_plan_stays(clerk_ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    """Each request is one durable message whose argument is this moment, also while the schedule is paused."""
    caplog.set_level(logging.INFO, "actorhub.ops")
    first, second = await clerk_ports.open_two()
    await _clerk(first)
    await first.admin.EditSchedule(_edit(NEW_YEAR, paused=True))
    before = (await first.admin.ListSchedules(pb.ListSchedulesRequest())).now
    ids = [
        (await second.admin.RunScheduleNow(pb.RunScheduleNowRequest(singleton="clerk", name=name))).message_id
        for name in (NEW_YEAR, JULY)
    ]
    for number, message_id in enumerate(ids, start=1):
        message = await _ended(first, message_id)
        assert (message.entity_type, message.handler, message.reply.value_json) == ("clerk", "tick", str(number))
        assert message.key.startswith("now:")
        assert f"runs now, as message {message_id}" in caplog.text
    after = (await first.admin.ListSchedules(pb.ListSchedulesRequest())).now
    ticks = await first.cluster.singleton(Clerk).ticks()
    assert [at.tzname() for at in ticks] == ["UTC", "UTC"]
    assert before <= ticks[0].timestamp() <= ticks[1].timestamp() <= after
    assert not (await _schedule(first, NEW_YEAR)).HasField("next_at")
    async with asyncio.timeout(20):
        while [(await _schedule(first, name)).runs for name in (NEW_YEAR, JULY)] != [1, 1]:
            await asyncio.sleep(0.05)


async def test_what_a_schedule_did_is_shown_with_it_and_with_its_singleton(clerk_ports: Ports) -> None:
    """Set to every second it runs; counts, fire times, durations and the error of the last failure are there."""
    port = await clerk_ports.open()
    await _clerk(port)
    await port.admin.EditSchedule(_edit(NEW_YEAR, set=pb.ScheduleTimes(expression="* * * * * *")))
    async with asyncio.timeout(20):
        while (ran := await _schedule(port, NEW_YEAR)).runs < 2:
            await asyncio.sleep(0.05)
    assert ran.last_at == int(ran.last_at) <= ran.last_started_at
    assert (ran.last_duration >= 0, ran.last_error, ran.failures) == (True, "", 0)
    clerk = await _clerk(port)
    assert (clerk.executions >= 2, clerk.last_execution, clerk.last_error) == (True, NEW_YEAR, "")
    assert clerk.last_duration >= 0
    await port.cluster.singleton(Clerk).spoil()
    async with asyncio.timeout(20):
        while not (ran := await _schedule(port, NEW_YEAR)).failures:
            await asyncio.sleep(0.05)
    assert "KeyError: 'spring'" in ran.last_error
    async with asyncio.timeout(20):
        while "KeyError: 'spring'" not in (clerk := (await _singletons(port))["clerk"]).last_error:
            await asyncio.sleep(0.05)
    assert clerk.last_error_at >= clerk.since
    await port.admin.EditSchedule(_edit(NEW_YEAR, paused=True))


async def test_health_tells_of_the_singletons_that_a_runner_leads(clerk_ports: Ports) -> None:
    """The leader's answer names it with its schedules, the other's does not."""
    first, second = await clerk_ports.open_two()
    clerk = await _clerk(first)
    leader, other = (first, second) if clerk.leader == first.address else (second, first)
    async with asyncio.timeout(20):
        # A leader that has just begun reads its schedules first.
        while not (led := (await leader.admin.Health(pb.HealthRequest())).singletons)[0].schedules:
            await asyncio.sleep(0.02)
    assert [(one.singleton, one.status, one.is_stale) for one in led] == [("clerk", "never executed", False)]
    assert {each.name: each.status for each in led[0].schedules} == dict.fromkeys((NEW_YEAR, JULY), "never executed")
    assert not (await other.admin.Health(pb.HealthRequest())).singletons


async def test_wrong_questions_about_singletons_are_answered_with_a_status_that_says_why(clerk_ports: Ports) -> None:
    """Unknown names are NOT_FOUND and list what there is; impossible changes are INVALID_ARGUMENT."""
    port = await clerk_ports.open()
    await _clerk(port)
    admin, invalid, missing = port.admin, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    now, times = pb.RunScheduleNowRequest, pb.ScheduleTimes
    nobody = pb.EditScheduleRequest(singleton="nobody", name=NEW_YEAR, paused=True)
    questions = (
        (admin.ListSchedules(pb.ListSchedulesRequest(singleton="x")), missing, "no singleton 'x': these exist: clerk"),
        (admin.EditSchedule(nobody), missing, "no singleton 'nobody': these exist: clerk"),
        (admin.EditSchedule(_edit("tock", paused=True)), missing, "clerk has no schedule 'tock': it has tick, tick-2"),
        (admin.RunScheduleNow(now(singleton="clerk", name="ticks")), missing, "it has tick, tick-2"),
        (admin.RunScheduleNow(now(singleton="requests", name=NEW_YEAR)), missing, "no singleton 'requests'"),
        (admin.EditSchedule(_edit(NEW_YEAR)), invalid, "say what to change"),
        (admin.EditSchedule(_edit(NEW_YEAR, set=times())), invalid, "say what to change"),
        (admin.EditSchedule(_edit(NEW_YEAR, set=times(expression="61 * * * *"))), invalid, "schedule clerk.tick: "),
        (admin.EditSchedule(_edit(NEW_YEAR, set=times(expression="1," * 600 + "1 * * * *"))), invalid, "the limit is"),
        (admin.EditSchedule(_edit(NEW_YEAR, set=times(timezone="Europe/Atlantis"))), invalid, "Europe/Atlantis"),
    )
    for question, status, text in questions:
        await _refused(question, status, text)
    assert (await _schedule(port, NEW_YEAR)).revision == 0


async def _token(port: Port, name: str) -> str:
    async with asyncio.timeout(20):
        while not (token := await port.cluster.client(Requests)(name).token()):
            await asyncio.sleep(0.02)
    return token


async def test_a_deferred_value_is_completed_through_any_gateway_once(clerk_ports: Ports) -> None:
    """The first outcome counts, in either encoding; empty means null; a failure reaches who waits."""
    first, second = await clerk_ports.open_two()
    requests, complete = first.cluster.client(Requests), client_pb.CompleteRequest
    json, msgpack = client_pb.ENCODING_JSON, client_pb.ENCODING_MSGPACK
    outcomes = {
        "ada": (complete(value=b"[1,2]", encoding=json), "[1,2]"),
        "bob": (complete(value=msgspec.msgpack.encode([3]), encoding=msgpack), "[3]"),
        "eve": (complete(value=b"", encoding=json), "null"),
        "dan": (complete(failure="denied by the board"), None),
    }
    for name, (request, expected) in outcomes.items():
        message_id = await first.cluster.tell(requests(name).approved())
        request.token = await _token(first, name)
        assert (await second.gateway.Complete(request)).completed
        again = complete(token=request.token, value=b"[9]", encoding=json)
        late = await first.gateway.Complete(again)
        assert (late.WhichOneof("outcome"), late.completed) == ("completed", False)
        assert (await first.gateway.Complete(request)).completed
        await requests(name).finish()
        reply = (await _ended(first, message_id)).reply
        if expected is not None:
            assert reply.value_json == expected
        else:
            assert "denied by the board" in reply.error.message


async def test_a_wrong_completion_is_a_failure_that_says_why(clerk_ports: Ports) -> None:
    """A token that the cluster did not make, no outcome, and a value that is none in its encoding."""
    port = await clerk_ports.open()
    json = client_pb.ENCODING_JSON
    for request in (
        client_pb.CompleteRequest(token="x", value=b"1", encoding=json),
        client_pb.CompleteRequest(token="x", failure="why"),
        client_pb.CompleteRequest(token="x"),
        client_pb.CompleteRequest(token="x", value=b"[1", encoding=json),
        client_pb.CompleteRequest(token="x", value=b"\xc1"),
    ):
        failure = (await port.gateway.Complete(request)).failure
        assert (failure.kind, failure.possibly_executed) == ("MalformedMessage", False)
        assert failure.message
