"""The judge of durable messages: a book in, every broken promise out. Pure."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from tests.faults.durable.history import Book, Commit, Sent, Terminal

_CLOCK_SLACK: Final = 0.002
"""Seconds that wall time may differ between the store and a handler on one machine."""
_TOLD: Final = 6
"""Violations that are told in detail."""
_ENDING_OF: Final = {"done": "value", "failed": "error", "cancelled": "cancelled", "dead": "dead"}


def durable_violations(book: Book) -> list[str]:
    """Return every way in which what was seen breaks a promise; each text begins with the letter of its invariant."""
    checks = (
        _kept,
        _settled_as_expected,
        _one_reply,
        _fenced,
        _one_order,
        _once,
        _one_message_per_key,
        _all_or_nothing,
        _outboxes,
        _failed_is_not_done,
        _sender_order,
        _outbox_order,
        _on_time,
        _cancelled,
        _counted,
        _calm,
    )
    return [f"{check.__doc__[:1] if check.__doc__ else '?'}: {text}" for check in checks for text in check(book)]


def _kept(book: Book) -> Iterator[str]:
    """A: what was acknowledged is settled, once."""
    states: dict[int, list[str]] = {}
    for row in book.rows:
        states.setdefault(row.message_id, []).append(row.state)
    for message_id, found in states.items():
        if len(found) > 1:
            yield f"message {message_id} is stored {len(found)} times: {found}"
        if found[0] not in _ENDING_OF:
            yield f"message {message_id} is still {found[0]}"
    for call in book.sent:
        if call.outcome == "ok" and call.kind == "tell":
            if call.message_id not in states:
                yield f"tell {call.content} to {call.entity} was acknowledged and is lost"
            if not call.replies:
                yield f"tell {call.content} to {call.entity} was acknowledged and has no terminal reply"


def _settled_as_expected(book: Book) -> Iterator[str]:
    """A: a message ends as its handler ends it, and values are in the state."""
    commits = book.commits()
    for content, calls in book.by_content().items():
        for ending in {reply.ending for call in calls for reply in call.replies}:
            if ending != calls[0].expected and ending != "cancelled":
                yield f"{content} ended as {ending}, its handler says {calls[0].expected}"
            if ending == "value" and content not in commits:
                yield f"{content} was acknowledged with a value and is not in the state"
            if ending != "value" and content in commits:
                yield f"{content} ended as {ending} and is in the state"
    by_message = {commit.message_id for found in commits.values() for _, _, commit in found}
    for row in book.rows:
        if row.state in _ENDING_OF and (row.state == "done") != (row.message_id in by_message):
            yield f"message {row.message_id} of {row.entity} is stored as {row.state}, the state says otherwise"


def _one_reply(book: Book) -> Iterator[str]:
    """D: every caller of one message gets the one reply, which is what was committed."""
    commits = book.commits()
    for content, calls in book.by_content().items():
        replies = {reply for call in calls for reply in call.replies}
        if len(replies) > 1:
            yield f"{content} has {len(replies)} different replies: {sorted(map(str, replies))}"
        for entity, position, commit in commits.get(content, ()):
            said = Terminal("value", position, commit.epoch, commit.attempt)
            for reply in replies:
                if reply.ending == "value" and reply != said:
                    yield f"{content} was replied {reply}, {entity} has committed {said}"


def _fenced(book: Book) -> Iterator[str]:
    """B: once a handler started at an epoch, no commit of an earlier epoch follows."""
    newest: dict[str, list[tuple[int, int]]] = {}
    for run in book.runs:
        newest.setdefault(run.entity, []).append((run.seen, run.epoch))
    for entity, ledger in book.ledgers.items():
        starts = sorted(set(newest.get(entity, ())))
        for position, commit in enumerate(ledger.commits, 1):
            later = max((epoch for seen, epoch in starts if seen < position), default=0)
            if commit.epoch < later:
                yield (
                    f"{entity}: {commit.content} was committed at epoch {commit.epoch} as number {position}, "
                    f"after a run at epoch {later} had begun"
                )


def _one_order(book: Book) -> Iterator[str]:
    """C: versions are contiguous, epochs never fall, and the order agrees with what callers saw."""
    commits = book.commits()
    for entity, ledger in book.ledgers.items():
        epochs = [commit.epoch for commit in ledger.commits]
        if ledger.version != len(epochs):
            yield f"{entity}: version {ledger.version} after {len(epochs)} commits"
        falls = [(before, after) for before, after in itertools.pairwise(epochs) if after < before]
        if falls:
            yield f"{entity}: epochs fall along its commits: {falls}"
        if epochs and ledger.epoch != epochs[-1]:
            yield f"{entity}: stored at epoch {ledger.epoch}, last committed by a handler at epoch {epochs[-1]}"
    yield from _against_time(book, {content: found[0][1] for content, found in commits.items()})


def _against_time(book: Book, positions: dict[int, int]) -> Iterator[str]:
    by_entity: dict[str, list[Sent]] = {}
    for call in book.sent:
        if not call.key and call.content in positions:
            by_entity.setdefault(call.entity, []).append(call)
    for entity, calls in by_entity.items():
        done = sorted(
            (call.completed, positions[call.content]) for call in calls if call.kind == "ask" and call.outcome == "ok"
        )
        highest, index = 0, 0
        for call in sorted(calls, key=lambda call: call.invoked):
            while index < len(done) and done[index][0] < call.invoked:
                highest = max(highest, done[index][1])
                index += 1
            if positions[call.content] < highest:
                yield f"{entity}: {call.content} is before what was acknowledged before it was sent"


def _once(book: Book) -> Iterator[str]:
    """D: a message commits at most once."""
    commits = book.commits()
    for content, found in commits.items():
        if len(found) > 1:
            where = [(entity, position, commit.epoch, commit.attempt) for entity, position, commit in found]
            yield f"{content} was committed {len(found)} times: {where}"
    known = {call.content for call in book.sent}
    for content, found in commits.items():
        if content not in known and -content not in known:
            yield f"{content} is in the state of {found[0][0]} and nobody sent it"


def _one_message_per_key(book: Book) -> Iterator[str]:
    """D: a key stands for one message, until that is cancelled."""
    commits = book.commits()
    by_key: dict[tuple[str, str], set[int]] = {}
    cancelled: dict[tuple[str, str], float] = {}
    for call in book.sent:
        if call.key and call.cancelled:
            cancelled[call.entity, call.key] = call.cancelled
        elif call.key and (call.outcome == "ok" or call.content in commits):
            by_key.setdefault((call.entity, call.key), set()).add(call.content)
    for (entity, key), contents in by_key.items():
        if len(contents) > 1:
            yield f"{entity}: key {key} stands for {len(contents)} messages: {sorted(contents)}"
    for call in book.sent:
        freed = cancelled.get((call.entity, call.key)) if call.key else None
        if freed and call.outcome == "clash" and call.invoked > freed and (call.entity, call.key) not in by_key:
            yield f"{call.entity}: {call.content} was refused for key {call.key}, whose only message was cancelled"


def _all_or_nothing(book: Book) -> Iterator[str]:
    """E: state and the handler's own SQL are committed together."""
    stated = Counter(
        (entity, commit.content, commit.message_id, commit.epoch, commit.attempt, position)
        for entity, ledger in book.ledgers.items()
        for position, commit in enumerate(ledger.commits, 1)
        if commit.is_witnessed
    )
    written = Counter((w.entity, w.content, w.message_id, w.epoch, w.attempt, w.position) for w in book.witnesses)
    for entity, content, *_ in (written - stated).elements():
        yield f"{entity}: {content} has a row that its state does not know"
    for entity, content, *_ in (stated - written).elements():
        yield f"{entity}: {content} is in the state and its row is not there"


def _outboxes(book: Book) -> Iterator[str]:
    """E: what a handler told is there if and only if the handler's run was committed."""
    commits = book.commits()
    known = {row.message_id: row.state for row in book.rows}
    for content, found in commits.items():
        if content < 0 and -content not in commits:
            yield f"{found[0][0]}: {content} was told by a run that was not committed"
        for _, _, commit in found:
            if commit.target and all(entity != commit.target for entity, _, _ in commits.get(-content, ())):
                yield f"{commit.target}: {-content} was told by a committed run and did not arrive"
    for run in book.runs:
        if run.content < 0 and -run.content not in commits:
            yield f"{run.entity}: {run.content} ran, told by a run that was not committed"
        if known and run.message_id not in known:
            yield f"{run.entity}: {run.content} ran as message {run.message_id}, which is not stored"


def _failed_is_not_done(book: Book) -> Iterator[str]:
    """F: an error that promised that no handler ran told the truth."""
    commits = book.commits()
    ran = {run.content for run in book.runs}
    for content, calls in book.by_content().items():
        if all(call.outcome in ("failed", "clash") for call in calls):
            if content in commits:
                yield f"{content} failed as never executed ({calls[0].error}), and is in the state"
            elif content in ran:
                yield f"{content} failed as never executed ({calls[0].error}), and its handler ran"


def _sender_order(book: Book) -> Iterator[str]:
    """G: what one sender sent to one entity, each accepted before the next was sent, starts in that order."""
    first = book.first_runs()
    overtaken: set[int] = set()
    chains: dict[tuple[str, str], list[Sent]] = {}
    for call in book.sent:
        if call.outcome == "ok" and not call.due and not call.key and call.content in first:
            chains.setdefault((call.sender, call.entity), []).append(call)
    for (sender, entity), calls in chains.items():
        latest: Sent | None = None
        for call in calls:
            began = first[call.content].time
            is_later = latest is not None and latest.completed <= call.invoked
            if latest is not None and is_later and began < first[latest.content].time:
                if latest.content not in overtaken:
                    yield f"{entity}: {call.content} of {sender} started before {latest.content}, accepted earlier"
                overtaken.add(latest.content)
            if latest is None or began > first[latest.content].time:
                latest = call


def _outbox_order(book: Book) -> Iterator[str]:
    """G: what the runs of one entity told another one starts in the order of their commits."""
    first = book.first_runs()
    for entity, ledger in book.ledgers.items():
        latest: dict[str, Commit] = {}
        for commit in ledger.commits:
            child = first.get(-commit.content)
            if not commit.target or child is None:
                continue
            before = latest.get(commit.target)
            if before is not None and child.time < first[-before.content].time:
                yield f"{commit.target}: {-commit.content} of {entity} started before {-before.content}, told earlier"
            else:
                latest[commit.target] = commit


def _on_time(book: Book) -> Iterator[str]:
    """T: nothing starts before it is due."""
    due = {call.content: call.due for call in book.sent if call.due}
    for run in book.runs:
        if run.wall < due.get(run.content, 0.0) - _CLOCK_SLACK:
            yield f"{run.entity}: {run.content} started {due[run.content] - run.wall:.3f} s early"


def _cancelled(book: Book) -> Iterator[str]:
    """A: what was cancelled does not run from then on."""
    since = {call.content: call.cancelled for call in book.sent if call.cancelled}
    commits = book.commits()
    for content in since:
        if content in commits:
            yield f"{content} was cancelled and is in the state"
    for run in book.runs:
        if run.time > since.get(run.content, float("inf")):
            yield f"{run.entity}: {run.content} was cancelled and started {run.time - since[run.content]:.3f} s later"


def _counted(book: Book) -> Iterator[str]:
    """P: runs are counted before they start, and there are no more than the sender's limit."""
    limits = {call.content: call.attempts for call in book.sent}
    runs: dict[tuple[int, int], list[int]] = {}
    for run in book.runs:
        runs.setdefault((run.content, run.message_id), []).append(run.attempt)
    for (content, message_id), attempts in runs.items():
        if len(set(attempts)) < len(attempts):
            yield f"{content} (message {message_id}) ran twice as the same attempt: {attempts}"
        limit = limits.get(content, max(attempts))
        if len(attempts) > limit or max(attempts) > limit:
            yield f"{content} (message {message_id}) ran more than {limit} times: {attempts}"


def _calm(book: Book) -> Iterator[str]:
    """B: where nothing failed, a message that needs one run gets one."""
    if not book.is_calm:
        return
    once = {call.content for call in book.sent if call.expected != "dead"}
    counts = Counter(run.content for run in book.runs)
    for content, count in counts.items():
        if count > 1 and (content in once or content < 0):
            yield f"{content} ran {count} times, though nothing failed"


def explained_violations(found: Sequence[str], book: Book | None = None, limit: int = 30) -> str:
    """Return violations as text, the first ones with what happened to the messages that they name."""
    lines = [f"{len(found)} violations:", *found[:limit]]
    if book is not None:
        known = {call.content for call in book.sent}
        named = [int(word) for text in found[:_TOLD] for word in re.findall(r"(?<![\w.])\d+", text)]
        for content in dict.fromkeys(number for number in named if number in known):
            lines += _story(book, content)
    return "\n".join(lines)


def _story(book: Book, content: int) -> list[str]:
    events = [
        (call.invoked, f"{call.kind} {content} of {call.sender}: {call}")
        for call in book.sent
        if call.content == content
    ]
    events += [
        (run.time, f"run {run.content} of message {run.message_id}: {run}")
        for run in book.runs
        if abs(run.content) == content
    ]
    return [f"{content}:", *(f"  {at:.3f} {text}" for at, text in sorted(events))]
