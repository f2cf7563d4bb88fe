"""The checker of recorded histories finds what it must find: a test that cannot fail shows nothing."""

from tests.faults.registers.history import History, Operation, Start, Stored, violations


def _ok(number: int, position: int) -> Operation:
    return Operation("k", number, float(number), "ok", number + 0.5, position)


def _found(operations: list[Operation], stored: Stored, starts: list[Start] | None = None) -> list[str]:
    return violations(History(operations), {"k": stored}, starts or [])


def test_a_clean_history_has_no_violations() -> None:
    """Acknowledged in order, unknown ones absent or late, failed ones absent."""
    operations = [_ok(1, 1), Operation("k", 2, 2.0, "unknown"), Operation("k", 3, 3.0, "failed"), _ok(4, 2)]
    assert _found(operations, Stored(3, 5, [1, 4, 2], [1, 1, 5])) == []
    assert _found(operations, Stored(2, 1, [1, 4], [1, 1])) == []


def test_a_lost_acknowledged_operation_is_found() -> None:
    """An ok operation must be in the state."""
    assert "lost" in str(_found([_ok(1, 1), _ok(2, 2)], Stored(1, 1, [1], [1])))


def test_an_operation_that_was_committed_twice_is_found() -> None:
    """Each operation is in the state at most once."""
    assert "twice" in str(_found([_ok(1, 1)], Stored(2, 1, [1, 1], [1, 1])))


def test_a_failed_operation_in_the_state_is_found() -> None:
    """What promised not to have run must be absent, and its handler must not have started."""
    failed = Operation("k", 1, 1.0, "failed")
    assert "is in the state" in str(_found([failed], Stored(1, 1, [1], [1])))
    assert "its handler ran" in str(_found([failed], Stored(0, 0, [], []), [Start(1.0, "k", 1, 1, "r0.1")]))


def test_falling_epochs_are_found() -> None:
    """Epochs never fall along the commits of an entity."""
    assert "epochs fall" in str(_found([_ok(1, 1), _ok(2, 2)], Stored(2, 3, [1, 2], [4, 3])))


def test_a_gap_in_versions_is_found() -> None:
    """The version counts the commits."""
    assert "version 3" in str(_found([_ok(1, 1), _ok(2, 2)], Stored(3, 1, [1, 2], [1, 1])))


def test_a_wrong_order_is_found() -> None:
    """What was sent after an acknowledgement is behind what was acknowledged."""
    operations = [_ok(1, 2), Operation("k", 2, 2.0, "unknown")]
    assert "before what was acknowledged" in str(_found(operations, Stored(2, 1, [2, 1], [1, 1])))


def test_a_reply_that_disagrees_with_the_state_is_found() -> None:
    """A reply says what was committed."""
    assert "acknowledged as number 7" in str(_found([_ok(1, 7)], Stored(1, 1, [1], [1])))
