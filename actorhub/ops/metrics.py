"""The table of metrics: name, kind, help, labels, and what each is read from. Prometheus and OpenTelemetry share it.

Labels are names that the program declares (entity types, handlers, singletons, schedules), names of this library's
loops and tasks, and classes of its errors. So the number of time series does not grow with the number of entities.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from actorhub.engine.singletons.health import ScheduleHealth, SingletonHealth
from actorhub.ops.observer import Tally
from actorhub.ops.reading import Reading

Labels = tuple[str, ...]


class Sample(msgspec.Struct, frozen=True):
    """One time series' value."""

    labels: Labels
    value: float
    """The value; of a histogram, the sum of everything observed."""
    counts: Sequence[int] = ()
    """Histogram: observations by bucket, not added up; the last has no upper end."""


class Family(msgspec.Struct, frozen=True):
    """The time series of one name."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: Labels
    samples: Callable[[Reading], Iterable[Sample]]


def _gauge(name: str, text: str, value: Callable[[Reading], float]) -> Family:
    return Family(f"actorhub_{name}", "gauge", text, (), lambda read: (Sample((), value(read)),))


def _counter(name: str, text: str, value: Callable[[Reading], float]) -> Family:
    return Family(f"actorhub_{name}_total", "counter", text, (), lambda read: (Sample((), value(read)),))


def _named(name: str, text: str, label: str, counts: Callable[[Reading], Iterable[tuple[str, int]]]) -> Family:
    return Family(
        f"actorhub_{name}_total",
        "counter",
        text,
        (label,),
        lambda read: (Sample((key,), count) for key, count in counts(read)),
    )


def _of_singletons(
    name: str, kind: Literal["gauge", "counter"], text: str, value: Callable[[SingletonHealth], float | None]
) -> Family:
    def samples(read: Reading) -> Iterator[Sample]:
        for one in read.singletons:
            if (found := value(one)) is not None:
                yield Sample((one.name,), found)

    return Family(f"actorhub_singleton_{name}", kind, text, ("singleton",), samples)


def _of_schedules(
    name: str, kind: Literal["gauge", "counter"], text: str, value: Callable[[ScheduleHealth], float | None]
) -> Family:
    def samples(read: Reading) -> Iterator[Sample]:
        for one in read.singletons:
            for schedule in one.schedules:
                if (found := value(schedule)) is not None:
                    yield Sample((one.name, schedule.name), found)

    return Family(f"actorhub_schedule_{name}", kind, text, ("singleton", "schedule"), samples)


def _shards(read: Reading) -> Iterator[Sample]:
    yield Sample(("owned",), read.ownership.shards_owned)
    yield Sample(("acquiring",), read.ownership.shards_acquiring)
    yield Sample(("draining",), read.ownership.shards_draining)


def _unreached(read: Reading) -> Iterator[Sample]:
    around = sum(bool(one.via) for one in read.unreached)
    yield Sample(("through others",), around)
    yield Sample(("not at all",), len(read.unreached) - around)


def _lock_age(read: Reading) -> Iterator[Sample]:
    if read.lock_age is not None:
        yield Sample((), read.lock_age)


def _handler(tally: Tally) -> Labels:
    return (tally.spec.entity_type, tally.spec.name)


_CLUSTER: Final = (
    _gauge("serving", "1 while this runner takes work, as /readyz says.", lambda read: read.is_serving),
    Family(
        "actorhub_entities",
        "gauge",
        "Entities in memory.",
        ("entity_type",),
        lambda read: (Sample((name,), found.resident) for name, found in read.types.items()),
    ),
    Family(
        "actorhub_singletons",
        "gauge",
        "Singletons that this runner leads.",
        ("singleton",),
        lambda read: (Sample((one.name,), one.state == "leading") for one in read.singletons),
    ),
    _gauge("runners", "Runners in the cluster's table, including silent ones.", lambda read: read.ownership.registered),
    _gauge(
        "runners_healthy", "Runners that sent a heartbeat recently and are not leaving.", lambda read: read.live_runners
    ),
    Family(
        "actorhub_unreached_runners",
        "gauge",
        "Live runners that this one cannot connect to, by how calls reach them; /healthz names them.",
        ("reached",),
        _unreached,
    ),
    _gauge(
        "unreached_seconds",
        "How long this runner has not reached the one of them that it has not reached for longest.",
        lambda read: read.unreached_for,
    ),
    Family("actorhub_shards", "gauge", "Shards of this runner.", ("state",), _shards),
    Family(
        "actorhub_lock_age_seconds",
        "gauge",
        "Age of the last acknowledged heartbeat of the lock session; above 2.5 this runner may not act for any shard.",
        (),
        _lock_age,
    ),
    _gauge(
        "takeover_duration_seconds",
        "The last takeover: from the suspicion that led to it, or else its start, to the last shard granted.",
        lambda read: read.ownership.last_takeover_seconds,
    ),
    _counter("takeovers", "Shards taken over.", lambda read: read.ownership.takeovers),
    _counter("releases", "Shards handed over gracefully.", lambda read: read.ownership.releases),
    _counter("lock_sessions_opened", "Lock sessions opened.", lambda read: read.ownership.sessions_opened),
    _counter(
        "lock_sessions_lost", "Lock sessions lost, and all shards with them.", lambda read: read.ownership.sessions_lost
    ),
    _counter(
        "history_losses",
        "Times that the database came back without something that this runner had seen acknowledged.",
        lambda read: read.losses,
    ),
    _counter("lease_expirations", "Times that the lease ran out.", lambda read: read.ownership.self_fenced),
)

_MESSAGES: Final = (
    Family(
        "actorhub_message_latency_seconds",
        "histogram",
        "Duration of handler runs from the first step to the reply, including the commit, not the wait in the mailbox.",
        ("entity_type", "handler"),
        lambda read: (Sample(_handler(tally), tally.seconds, tuple(tally.counts)) for tally in read.tallies),
    ),
    Family(
        "actorhub_errors_total",
        "counter",
        "Messages that failed on this runner, by class of the error; domain errors count as EntityError.",
        ("entity_type", "handler", "error"),
        lambda read: (
            Sample((*_handler(tally), name), count)
            for tally in read.tallies
            for name, count in list(tally.errors.items())
        ),
    ),
    Family(
        "actorhub_mailbox_depth",
        "gauge",
        "Messages waiting in mailboxes, or for a place in memory.",
        ("entity_type",),
        lambda read: (Sample((name,), found.queued) for name, found in read.types.items()),
    ),
    _gauge(
        "queue_age_seconds",
        "How long the oldest due message has waited here: a durable one in memory, or a call that has no owner.",
        lambda read: read.queue_age,
    ),
    _gauge("parked_calls", "Calls of this process that are waiting for an owner.", lambda read: read.router.parked),
    _gauge("durable_messages", "Durable messages in memory.", lambda read: read.delivery.in_memory),
    _gauge(
        "scheduled_messages",
        "Durable messages in memory that are due within the next minute.",
        lambda read: read.delivery.scheduled,
    ),
    _counter("runs", "Handler runs started.", lambda read: read.runs_started),
    _counter(
        "redeliveries", "Runs of durable messages that were not the first.", lambda read: read.delivery.redelivered
    ),
    _counter("settled_messages", "Durable messages whose outcome was committed.", lambda read: read.delivery.settled),
    _counter("failed_runs", "Runs of durable messages that failed.", lambda read: read.delivery.failed_runs),
    _counter(
        "dead_letters", "Durable messages given up after their last attempt.", lambda read: read.delivery.dead_letters
    ),
    _counter(
        "undeliverable_messages",
        "Dead letters that do not fit this release: their arguments, or for want of a handler.",
        lambda read: read.delivery.undeliverable,
    ),
    _counter("dropped_tells", "Accepted tells that ended in an error.", lambda read: read.failed_tells),
    _counter("local_calls", "Calls to entities of this process.", lambda read: read.router.local),
    _counter("remote_calls", "Calls sent to other processes.", lambda read: read.router.remote),
    _counter(
        "misrouted_calls",
        "Calls that came back: their receiver did not own the shard.",
        lambda read: read.router.not_owner,
    ),
    _counter(
        "refused_replies", "Replies of former owners that were dropped.", lambda read: read.router.refused_replies
    ),
    _counter("activations", "Entities brought into memory.", lambda read: read.activated),
    _counter("passivations", "Entities that left memory.", lambda read: read.passivated),
    _counter("failed_activations", "Activations that failed.", lambda read: read.failed_activations),
)

_STORE: Final = (
    _counter("commits", "Runs whose changes were committed.", lambda read: read.results.commits),
    _counter(
        "refused_commits",
        "Commits refused: ownership or version did not hold.",
        lambda read: read.results.refused_commits,
    ),
    _gauge("storage_waiting", "Requests that the store has not answered yet.", lambda read: read.storage.waiting),
    _counter("storage_refused", "Writes that the store refused.", lambda read: read.storage.refused),
    _counter("storage_failures", "Requests that failed in the store.", lambda read: read.storage.failed),
    _counter("storage_reconnects", "Connections that were made again.", lambda read: read.storage.reconnects),
    _counter("storage_states", "Entity states written.", lambda read: read.storage.commits),
    _counter("storage_state_groups", "Round trips that wrote them.", lambda read: read.storage.commit_batches),
    _counter("storage_loads", "Entity states read.", lambda read: read.storage.loads),
    _counter("storage_messages", "Durable messages stored.", lambda read: read.storage.stored),
    _counter("storage_message_groups", "Round trips for durable messages.", lambda read: read.storage.message_batches),
)

_PROCESS: Final = (
    _named(
        "loop_restarts",
        "Loops that failed and were started again.",
        "loop",
        lambda read: read.supervisor.restarts.items(),
    ),
    _named("task_failures", "Tasks that failed.", "task", lambda read: read.supervisor.failures.items()),
    _named(
        "abandoned_waits",
        "Operations abandoned at their deadline.",
        "operation",
        lambda read: read.supervisor.abandoned.items(),
    ),
    _gauge("tasks", "Background tasks that are alive.", lambda read: read.supervisor.tasks),
    _counter(
        "standstills", "Times that the event loop was blocked for more than a second.", lambda read: read.standstills
    ),
    _counter("links_opened", "Links to other processes opened.", lambda read: read.transport.links_opened),
    _counter("links_closed", "Links closed.", lambda read: read.transport.links_closed),
    _counter("links_refused", "Incoming links refused.", lambda read: read.transport.links_refused),
    _gauge("relayed_links", "Links of this runner that go through another one.", lambda read: read.relays.links),
    _gauge("carried_links", "Links between others that go through this runner.", lambda read: read.relays.carried),
    _counter("carried_frames", "Frames of those that were passed on.", lambda read: read.relays.frames_carried),
    _counter("sent_envelopes", "Envelopes sent.", lambda read: read.transport.envelopes_sent),
    _counter("sent_frames", "Frames that held them.", lambda read: read.transport.frames_sent),
    _counter("sent_bytes", "Bytes in those frames.", lambda read: read.transport.bytes_sent),
    _counter("received_envelopes", "Envelopes received.", lambda read: read.transport.envelopes_received),
    _counter("received_frames", "Frames that held them.", lambda read: read.transport.frames_received),
    _counter("received_bytes", "Bytes in those frames.", lambda read: read.transport.bytes_received),
    _counter(
        "malformed_frames", "Frames that could not be decoded at all.", lambda read: read.transport.frames_malformed
    ),
    _counter(
        "malformed_envelopes",
        "Envelopes that could not be decoded, each refused alone.",
        lambda read: read.transport.envelopes_malformed,
    ),
    _counter(
        "dropped_envelopes", "Envelopes dropped without being sent.", lambda read: read.transport.envelopes_dropped
    ),
    _counter(
        "traces_not_begun",
        "Calls and runs for which no new trace was begun, because of the limit.",
        lambda read: read.traces_not_begun,
    ),
    _counter("failed_spans", "Spans that could not be made or ended.", lambda read: read.failed_spans),
)

_SINGLETONS: Final = (
    _of_singletons("stale", "gauge", "1 if it has shown no sign of life for 60 s.", lambda one: one.is_stale),
    _of_singletons("duration_seconds", "gauge", "Duration of its last execution.", lambda one: one.last_duration),
    _of_singletons("executions_total", "counter", "Executions, under all leaders.", lambda one: one.executions),
    _of_singletons(
        "last_execution_timestamp_seconds", "gauge", "When its last execution began.", lambda one: one.last_execution_at
    ),
    _of_singletons("heartbeat_timestamp_seconds", "gauge", "Its last sign of life.", lambda one: one.heartbeat_at),
    _of_singletons(
        "state_errors_total", "counter", "Times that its state could not be loaded, decoded or stored.",
        lambda one: one.state_errors,
    ),
    _of_schedules("runs_total", "counter", "Runs that succeeded.", lambda one: one.runs),
    _of_schedules("failures_total", "counter", "Fire times given up after the last attempt.", lambda one: one.failures),
    _of_schedules("skipped_total", "counter", "Fire times that were skipped.", lambda one: one.skipped),
    _of_schedules("overdue", "gauge", "1 if nothing ran for twice its interval.", lambda one: one.status == "overdue"),
    _of_schedules("next_timestamp_seconds", "gauge", "Its next fire time.", lambda one: one.next_at),
)  # fmt: skip

FAMILIES: Final = (*_CLUSTER, *_MESSAGES, *_STORE, *_PROCESS, *_SINGLETONS)
"""Everything that is measured. Dashboards and alerts depend on names and labels, so these stay as they are."""
