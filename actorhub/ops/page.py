"""The page at `/`: how this runner is, for people. It only shows, and loads nothing from elsewhere."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

from actorhub.engine.singletons.health import RunnerHealth
from actorhub.ops.reading import Reading

_LINKS: Final = ("livez", "readyz", "healthz", "metrics")
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}th,td{text-align:left;padding:.2rem 1rem .2rem 0}"
    "th{color:#666;font-weight:normal}.bad{color:#b00020}"
)
_HEAD: Final = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
    f"<title>actorhub</title><style>{_STYLE}</style></head><body><h1>actorhub</h1>"
)


def page(report: RunnerHealth, reading: Reading | None) -> str:
    """Return the page; `reading` is `None` until the runner has been made."""
    links = " · ".join(f'<a href="/{name}">/{name}</a>' for name in _LINKS)
    status = "<p>Serving.</p>" if report.serving else f'<p class="bad">Not serving: {escape(report.reason)}.</p>'
    parts = [_HEAD, status]
    if reading is not None:
        parts += [_unreached(report), _numbers(report, reading), _types(reading), _singletons(report)]
    return "".join((*parts, f"<p>{links}</p></body></html>"))


def _unreached(report: RunnerHealth) -> str:
    if not report.unreached:
        return ""
    rows = (
        (one.address, _time(one.since), one.reason, f"go through {one.via}" if one.via else "wait")
        for one in report.unreached
    )
    return _table(("runner not reached", "since", "reason", "calls to it"), rows)


def _numbers(report: RunnerHealth, reading: Reading) -> str:
    rows = {
        "runner": f"{report.runner} ({report.incarnation})",
        "version": report.version,
        "shards owned": report.shards_owned,
        "live runners": report.live_runners,
        "runs started": reading.runs_started,
        "refused commits": reading.results.refused_commits,
        "redeliveries": reading.delivery.redelivered,
        "dead letters": reading.delivery.dead_letters,
        "oldest due message": f"{reading.queue_age:.1f} s",
        "last takeover": f"{reading.ownership.last_takeover_seconds:.3f} s",
    }
    return _table((), rows.items())


def _types(reading: Reading) -> str:
    rows = ((name, found.resident, found.queued) for name, found in sorted(reading.types.items()))
    return _table(("entity type", "in memory", "messages waiting"), rows)


def _singletons(report: RunnerHealth) -> str:
    if not report.singletons:
        return ""
    rows = (
        (one.name, one.state, one.status, one.executions, _time(one.last_execution_at), one.last_error or "none")
        for one in report.singletons
    )
    return _table(("singleton led here", "state", "status", "executions", "last execution", "last error"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    heading = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{heading}</tr>{body}</table>" if head else f"<table>{body}</table>"


def _time(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")
