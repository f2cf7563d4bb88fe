"""The judge of durable messages finds each kind of broken promise, and none in a good history."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.faults.durable.checks import durable_violations, explained_violations
from tests.faults.durable.history import Book, Commit, Ledger, Row, Run, Sent, Terminal, Witness, read_runs


def tell(content: int, **other: object) -> Sent:
    made = Sent(content, "ann", "a", "tell", invoked=float(content), outcome="ok", completed=content + 0.5)
    made.message_id = 1000 + content
    for name, value in other.items():
        setattr(made, name, value)
    return made


def ask(content: int, position: int, **other: object) -> Sent:
    return tell(content, kind="ask", message_id=0, replies=[Terminal("value", position, 1, 1)], **other)


def run(content: int, time: float = 0.0, *, attempt: int = 1, epoch: int = 1, seen: int = 0) -> Run:
    began = time or abs(content) + 0.2
    return Run(began, began, content, "a", 1000 + content, attempt, epoch, seen, "r0.1")


def commit(content: int, *, epoch: int = 1, attempt: int = 1, target: str = "", is_witnessed: bool = False) -> Commit:
    return Commit(content, 1000 + content, epoch, attempt, target, is_witnessed)


def ledger(*commits: Commit) -> Ledger:
    return Ledger(len(commits), commits[-1].epoch if commits else 0, commits)


def rows(*contents: int) -> list[Row]:
    return [Row(1000 + content, "a", "done") for content in contents]


def good() -> Book:
    """Return two messages of one sender, acknowledged and done."""
    first = tell(1, replies=[Terminal("value", 1, 1, 1)])
    return Book(
        sent=[first, ask(2, 2)],
        runs=[run(1), run(2, seen=1)],
        ledgers={"a": ledger(commit(1), commit(2))},
        rows=rows(1, 2),
    )


def found_in(book: Book) -> str:
    return "\n".join(durable_violations(book))


def test_a_good_history_breaks_no_promise() -> None:
    """Messages that were done, told, refused, cancelled, dead and retried, each as it should be."""
    calls: Sequence[Sent] = [
        ask(1, 1),
        tell(2, expected="error", replies=[Terminal("error"), Terminal("error")]),
        tell(3, expected="dead", attempts=2, replies=[Terminal("dead")]),
        tell(4, due=100.0, cancelled=5.0, replies=[Terminal("cancelled")]),
        ask(5, 2, key="k"),
        ask(5, 2, key="k"),
        Sent(6, "ann", "a", "ask", 6.0, key="k", outcome="clash"),
        Sent(7, "ann", "a", "ask", 7.0, outcome="unknown"),
        Sent(8, "ann", "a", "ask", 8.0, outcome="failed"),
    ]
    entity = ledger(commit(1, target="b", is_witnessed=True), commit(5), commit(7, epoch=3, attempt=2))
    book = Book(
        sent=calls,
        runs=[
            run(1),
            run(2, seen=1),
            run(3, seen=1),
            run(3, 3.4, seen=1, attempt=2),
            run(5, seen=1),
            run(7, seen=2),
            run(7, 9.0, seen=2, attempt=2, epoch=3),
            replace(run(-1), entity="b"),
        ],
        ledgers={"a": entity, "b": ledger(commit(-1))},
        witnesses=[Witness(1, 1001, "a", 1, 1, 1)],
        rows=[
            *rows(1, 5, 7, -1),
            Row(1002, "a", "failed"),
            Row(1003, "a", "dead"),
            Row(1004, "a", "cancelled"),
        ],
    )
    assert found_in(book) == ""
    assert found_in(good()) == ""
    assert found_in(replace(good(), is_calm=True)) == ""


def test_an_acknowledged_tell_that_is_nowhere_is_found() -> None:
    """An acknowledged message has a row that says how it ended, and a reply."""
    lost = found_in(replace(good(), sent=[*good().sent, tell(3)]))
    assert "A: tell 3 to a was acknowledged and is lost" in lost
    assert "A: tell 3 to a was acknowledged and has no terminal reply" in lost


def test_a_message_that_is_never_settled_is_found() -> None:
    """No row is pending once everything had time to end."""
    assert "A: message 1009 is still pending" in found_in(
        replace(good(), rows=[*rows(1, 2), Row(1009, "a", "pending")])
    )


def test_a_message_with_two_endings_is_found() -> None:
    """Each message has one row."""
    assert "A: message 1002 is stored 2 times" in found_in(
        replace(good(), rows=[*rows(1, 2), Row(1002, "a", "cancelled")])
    )


def test_a_value_that_is_not_in_the_state_is_found() -> None:
    """What was answered with a value was committed."""
    assert "A: 2 was acknowledged with a value and is not in the state" in found_in(
        replace(good(), ledgers={"a": ledger(commit(1))})
    )


def test_a_row_that_contradicts_the_state_is_found() -> None:
    """A message is stored as done if and only if its commit is in the state."""
    assert "A: message 1002 of a is stored as dead" in found_in(
        replace(good(), rows=[*rows(1), Row(1002, "a", "dead")])
    )


def test_an_error_that_is_in_the_state_is_found() -> None:
    """A handler that raised left the state as it was."""
    failed = tell(2, expected="error", replies=[Terminal("error")])
    assert "A: 2 ended as error and is in the state" in found_in(replace(good(), sent=[good().sent[0], failed]))


def test_a_typed_error_that_became_a_dead_letter_is_found() -> None:
    """A domain error is a reply: it is not retried until nothing is left."""
    dead = tell(3, expected="error", replies=[Terminal("dead")])
    assert "A: 3 ended as dead, its handler says error" in found_in(replace(good(), sent=[*good().sent, dead]))


def test_two_replies_of_one_message_are_found() -> None:
    """Callers of one message are told the same."""
    twice = tell(1, replies=[Terminal("value", 1, 1, 1), Terminal("value", 1, 2, 2)])
    assert "D: 1 has 2 different replies" in found_in(replace(good(), sent=[twice, good().sent[1]]))


def test_a_reply_that_is_not_what_was_committed_is_found() -> None:
    """A value that was sent before a commit which then failed differs from what another run commits."""
    again = ledger(commit(1), commit(2, attempt=2))
    assert "D: 2 was replied" in found_in(replace(good(), ledgers={"a": again}))


def test_a_commit_of_a_former_owner_is_found() -> None:
    """After a handler began at a newer epoch nothing is committed at an older one."""
    book = replace(good(), runs=[run(1), run(2, seen=1, epoch=2), run(2, 2.4, seen=1)])
    assert "B: a: 2 was committed at epoch 1 as number 2" in found_in(book)


def test_falling_epochs_and_gaps_in_versions_are_found() -> None:
    """Versions count the commits, and epochs never fall along them."""
    book = replace(good(), ledgers={"a": Ledger(3, 2, [commit(1, epoch=2), commit(2)])})
    assert "C: a: version 3 after 2 commits" in found_in(book)
    assert "C: a: epochs fall" in found_in(book)
    assert "C: a: stored at epoch 2, last committed by a handler at epoch 1" in found_in(book)


def test_an_order_that_contradicts_an_acknowledgement_is_found() -> None:
    """What was sent after an ask was answered is committed after it."""
    book = replace(good(), sent=[ask(1, 2), tell(2)], ledgers={"a": ledger(commit(2), commit(1))})
    assert "C: a: 2 is before what was acknowledged before it was sent" in found_in(book)


def test_a_message_that_was_committed_twice_is_found() -> None:
    """Each message commits at most once."""
    assert "D: 2 was committed 2 times" in found_in(
        replace(good(), ledgers={"a": ledger(commit(1), commit(2), commit(2, attempt=2))})
    )


def test_a_key_that_stands_for_two_messages_is_found() -> None:
    """The same key with another payload is refused."""
    calls = [tell(1, key="k"), ask(2, 2, key="k")]
    assert "D: a: key k stands for 2 messages: [1, 2]" in found_in(replace(good(), sent=calls))


def test_a_commit_that_nobody_sent_is_found() -> None:
    """Whatever is in a state was sent."""
    assert "D: 9 is in the state of a and nobody sent it" in found_in(
        replace(good(), ledgers={"a": ledger(commit(1), commit(2), commit(9))})
    )


def test_a_row_without_its_state_and_a_state_without_its_row_are_found() -> None:
    """The handler's SQL is committed with its state or not at all."""
    stray = Witness(2, 1002, "a", 1, 1, 2)
    assert "E: a: 2 has a row that its state does not know" in found_in(replace(good(), witnesses=[stray]))
    assert "E: a: 2 has a row that its state does not know" in found_in(replace(good(), witnesses=[stray, stray]))
    alone = ledger(commit(1, is_witnessed=True), commit(2))
    assert "E: a: 1 is in the state and its row is not there" in found_in(replace(good(), ledgers={"a": alone}))


def test_a_told_message_without_its_teller_and_the_reverse_are_found() -> None:
    """An outbox leaves with its run's commit."""
    early = replace(good(), ledgers={**good().ledgers, "b": ledger(commit(-3))})
    assert "E: b: -3 was told by a run that was not committed" in found_in(early)
    assert "E: a: -3 ran, told by a run that was not committed" in found_in(
        replace(good(), runs=[*good().runs, run(-3)])
    )
    lost = replace(good(), ledgers={"a": ledger(commit(1, target="b"), commit(2))})
    assert "E: b: -1 was told by a committed run and did not arrive" in found_in(lost)


def test_a_run_of_a_message_that_is_not_stored_is_found() -> None:
    """A durable message is stored before it runs."""
    assert "E: a: 2 ran as message 1002, which is not stored" in found_in(replace(good(), rows=rows(1)))


def test_a_failed_call_that_was_executed_is_found() -> None:
    """An error with the promise that no handler ran leaves no trace of one."""
    failed = Sent(2, "ann", "a", "ask", 2.0, outcome="failed")
    book = replace(good(), sent=[good().sent[0], failed])
    assert "F: 2 failed as never executed (), and is in the state" in found_in(book)
    ran = replace(book, ledgers={"a": ledger(commit(1))}, rows=rows(1))
    assert "F: 2 failed as never executed (), and its handler ran" in found_in(ran)


def test_a_sender_that_was_overtaken_by_itself_is_found() -> None:
    """Messages of one sender start in the order of their acceptance."""
    book = replace(good(), sent=[tell(1), tell(2)], runs=[run(2, 3.0), run(1, 3.1)])
    assert "G: a: 2 of ann started before 1, accepted earlier" in found_in(book)
    overlapping = replace(book, sent=[tell(1, completed=2.5), tell(2)])
    assert "G:" not in found_in(overlapping)


def test_an_outbox_that_overtook_another_one_is_found() -> None:
    """What two runs of one entity told another one starts in the order of their commits."""
    book = replace(
        good(),
        ledgers={"a": ledger(commit(1, target="b"), commit(2, target="b")), "b": ledger(commit(-2), commit(-1))},
        runs=[run(-2, 3.0), run(-1, 3.1)],
    )
    assert "G: b: -2 of a started before -1, told earlier" in found_in(book)


def test_a_message_that_starts_early_is_found() -> None:
    """Nothing starts before its due time."""
    assert "T: a: 1 started 3.800 s early" in found_in(replace(good(), sent=[tell(1, due=5.0), good().sent[1]]))


def test_a_cancelled_message_that_runs_is_found() -> None:
    """After a cancellation succeeded the message neither starts nor commits."""
    cancelled = replace(good(), sent=[tell(1, cancelled=1.1), good().sent[1]])
    assert "A: a: 1 was cancelled and started 0.100 s later" in found_in(cancelled)
    assert "A: 1 was cancelled and is in the state" in found_in(cancelled)


def test_runs_that_were_not_counted_before_they_started_are_found() -> None:
    """Two runs of one message never have the same number, and there are no more than allowed."""
    poison = tell(1, attempts=2, expected="dead")
    same = replace(good(), sent=[poison, good().sent[1]], runs=[run(1), run(1, 1.3), run(2, seen=1)])
    assert "P: 1 (message 1001) ran twice as the same attempt: [1, 1]" in found_in(same)
    runs = [run(1), run(1, 1.3, attempt=2), run(1, 1.4, attempt=3)]
    assert "P: 1 (message 1001) ran more than 2 times: [1, 2, 3]" in found_in(replace(same, runs=runs))


def test_a_second_run_in_calm_weather_is_found() -> None:
    """While runners only leave gracefully, no message runs twice."""
    book = replace(good(), runs=[run(1), run(2, seen=1), run(2, 2.3, seen=1, attempt=2)])
    assert found_in(replace(book, ledgers={"a": ledger(commit(1), commit(2))})) == ""
    assert "B: 2 ran 2 times, though nothing failed" in found_in(replace(book, is_calm=True))


def test_torn_lines_of_killed_processes_are_left_out(tmp_path: Path) -> None:
    """What a killed process wrote half is not a run."""
    events = tmp_path / "r1.2.events"
    events.write_text('[1.5, 2.5, 7, "a", 1007, 1, 3, 4]\n[1.6, 2.6, 8, "a", 10')
    assert read_runs([events]) == [Run(1.5, 2.5, 7, "a", 1007, 1, 3, 4, "r1.2")]


def test_a_violation_is_told_with_its_story() -> None:
    """Who reads a failure sees what its sender was told and when its handler ran."""
    book = replace(good(), sent=[tell(1), tell(2)], runs=[run(2, 3.0), run(1, 3.1)])
    text = explained_violations(["G: a: 2 of ann started before 1, accepted earlier"], book)
    assert "1.000 tell 1 of ann" in text
    assert "3.000 run 2 of message 1002" in text
