"""Durable messages as rows, as JSON objects, and as text about one of them."""

from collections.abc import Iterator
from typing import Final

import msgspec

from actorhub.cli.filters import STATES
from actorhub.cli.output import Row, harmless, iso_time
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb

_STATE_NAMES: Final = {number: name for name, number in STATES.items()}
_LABELS: Final = {"created_at": "created", "deliver_at": "due", "finished_at": "ended", "expires_at": "expires"}
_SHOWN_OTHERWISE: Final = ("message_id", "state", "entity_type", "entity_id", "error", "run")
_WAITS: Final = {pb.WAIT_KIND_DEFERRED: "deferred", pb.WAIT_KIND_SLEEP: "sleep"}
_LABEL: Final = 12
"""Width of the names in one message's text."""
_SHORT_JSON: Final = 100


def state_name(message: pb.Message) -> str:
    """Return a message's state in a word or two: what it is stored as, or else what it does just now."""
    if message.HasField("run"):
        return "waiting" if message.run.waits else "running"
    if message.state == pb.MESSAGE_STATE_SCHEDULED and message.attempts:
        return "backing off"
    return _STATE_NAMES.get(message.state, "unknown")


def state_detail(message: pb.Message) -> str | None:
    """Return what there is to say about the state of a message that has not ended, in one line."""
    if message.HasField("run"):
        run = message.run
        doing = [_wait_text(wait) for wait in run.waits] or [f"since {iso_time(run.since)}"]
        steps = [f"in step {step}" for step in run.steps]
        attempt = f"attempt {run.attempt}{_of_attempts(message)}"
        return ", ".join([*doing, *steps, attempt, f"on {run.runner}"])
    if message.state != pb.MESSAGE_STATE_SCHEDULED:
        return None
    due = iso_time(message.deliver_at)
    if not message.attempts:
        return f"due {due}"
    return f"until {due}, then attempt {message.attempts + 1}{_of_attempts(message)}"


def message_row(message: pb.Message) -> Row:
    """Return a message as lists show it. Ids are text: as JSON numbers they would lose digits in JavaScript."""
    return {
        "message_id": str(message.message_id),
        "state": state_name(message),
        "entity_type": message.entity_type,
        "entity_id": message.entity_id,
        "handler": message.handler,
        "shard": message.shard,
        "key": message.key if message.HasField("key") else None,
        "attempts": message.attempts,
        "max_attempts": message.max_attempts if message.HasField("max_attempts") else None,
        "created_at": iso_time(message.created_at) if message.created_at else None,
        "deliver_at": iso_time(message.deliver_at) if message.HasField("deliver_at") else None,
        "finished_at": iso_time(message.finished_at) if message.HasField("finished_at") else None,
        "expires_at": iso_time(message.expires_at) if message.HasField("expires_at") else None,
        "error": _last_error(message),
        "run": _run_record(message.run) if message.HasField("run") else None,
    }


def message_record(message: pb.Message) -> Row:
    """Return all that is known about a message as a JSON object; what JSON cannot hold is `null`."""
    arguments = message.arguments_json
    return {
        **message_row(message),
        "arguments": msgspec.Raw(arguments.encode()) if arguments else None,
        "headers": dict(message.headers),
        "unreadable": message.unreadable or None,
        "reply": _reply_record(message.reply) if message.HasField("reply") else None,
        "history": [
            {
                "attempt": run.attempt,
                "at": iso_time(run.at),
                "error_type": run.error_type,
                "error_text": run.error_text,
                "traceback": run.traceback or None,
            }
            for run in message.history
        ],
    }


def message_text(message: pb.Message) -> str:
    """Return all that is known about a message, for people."""
    row = message_row(message)
    shown = [name for name in row if name not in _SHOWN_OTHERWISE]
    if message.state == pb.MESSAGE_STATE_SCHEDULED:
        shown.remove("deliver_at")
    facts: dict[str, object] = {
        "message": row["message_id"],
        "state": row["state"],
        "detail": state_detail(message),
        "entity": f"{message.entity_type}/{message.entity_id}",
        **{_LABELS.get(name, name): row[name] for name in shown},
        **({"headers": ", ".join(f"{k}={v}" for k, v in message.headers.items())} if message.headers else {}),
    }
    if message.unreadable:
        facts["unreadable"] = message.unreadable
    lines = [f"{name:<{_LABEL}}{value}" for name, value in facts.items() if value is not None]
    lines += [f"{'token':<{_LABEL}}{wait.token} of {wait.name}" for wait in message.run.waits if wait.token]
    if message.HasField("arguments"):
        lines.append(f"{'arguments':<{_LABEL}}{_json_text(message.arguments_json, len(message.arguments))}")
    if message.HasField("reply"):
        lines.append(_reply_text(message.reply))
    return harmless("\n".join([*lines, *_history_text(message)]))


def message_line(message: pb.Message, now: float) -> str:
    """Return a message in one line, for a list that grows."""
    parts = [
        iso_time(now)[11:],
        str(message.message_id),
        f"{state_name(message):<11}",
        f"{message.entity_type}/{message.entity_id}.{message.handler}",
        f"attempts={message.attempts}",
    ]
    if message.HasField("key"):
        parts.append(f"key={message.key}")
    if message.HasField("deliver_at") and message.state == pb.MESSAGE_STATE_SCHEDULED:
        parts.append(f"due={iso_time(message.deliver_at)}")
    if message.HasField("run"):
        parts.append(f"runner={message.run.runner}")
        parts += [_wait_text(wait) for wait in message.run.waits]
    if error := _last_error(message):
        parts.append(error)
    return harmless(" ".join(" ".join(parts).split()))


def _of_attempts(message: pb.Message) -> str:
    return f" of {message.max_attempts}" if message.HasField("max_attempts") else ""


def _wait_kind(wait: pb.Wait) -> str:
    return _WAITS.get(wait.kind, "unknown")


def _wait_text(wait: pb.Wait) -> str:
    until = f" until {iso_time(wait.until)}" if wait.HasField("until") else ""
    return f"for {_wait_kind(wait)} {wait.name} since {iso_time(wait.since)}{until}"


def _run_record(run: pb.MessageRun) -> Row:
    return {
        "attempt": run.attempt,
        "since": iso_time(run.since),
        "runner": run.runner,
        "incarnation": run.incarnation,
        "steps": list(run.steps),
        "waits": [
            {
                "kind": _wait_kind(wait),
                "name": wait.name,
                "since": iso_time(wait.since),
                "until": iso_time(wait.until) if wait.HasField("until") else None,
                "token": wait.token or None,
            }
            for wait in run.waits
        ],
    }


def _last_error(message: pb.Message) -> str | None:
    if not message.history:
        return None
    last = message.history[-1]
    return f"{last.error_type}: {last.error_text}" if last.error_text else last.error_type


def _reply_record(reply: pb.MessageReply) -> Row:
    if reply.WhichOneof("outcome") == "error":
        error = reply.error
        fields = msgspec.Raw(error.fields_json.encode() or b"{}")
        return {"error": {"kind": error.kind, "message": error.message, "fields": fields}}
    return {"value": msgspec.Raw(reply.value_json.encode() or b"null")}


def _reply_text(reply: pb.MessageReply) -> str:
    if reply.WhichOneof("outcome") == "error":
        error = reply.error
        fields = f" {error.fields_json}" if error.fields_json else ""
        return f"{'error':<{_LABEL}}{error.kind}: {error.message}{fields}"
    return f"{'value':<{_LABEL}}{_json_text(reply.value_json, len(reply.value))}"


def _json_text(text: str, size: int) -> str:
    if not text:
        return f"{size} bytes, too many to show or not representable as JSON: the admin service has them"
    return text if len(text) <= _SHORT_JSON else msgspec.json.format(text, indent=2)


def _history_text(message: pb.Message) -> Iterator[str]:
    for run in message.history:
        yield f"\nattempt {run.attempt} failed at {iso_time(run.at)}: {run.error_type}: {run.error_text}"
        if run.traceback:
            yield run.traceback.rstrip()
