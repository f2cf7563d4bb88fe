"""The payments example's plan, and its checks on books that are right and on books that are wrong in one place."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from examples.payments.books import CHECKS, Books, fresh_books
from examples.payments.driver import Answer
from examples.payments.entities import Statement, Transfer
from examples.payments.plan import Holder, Order, iban, make_plan

ADA, BEN, EVE = "A", "B", "E"
HOLDERS = [Holder(ADA, "Ada", 1000), Holder(BEN, "Ben", 500), Holder(EVE, "Eve", 0)]
STATEMENTS = {
    ADA: Statement("Ada", 900, 4),
    BEN: Statement("Ben", 600, 2),
    EVE: Statement("Eve", 0, 1, closed=True),
}
ANSWERS = [
    (Order(ADA, Transfer("T1", BEN, 100), asked=True), Answer("receipt", 2, 900)),
    (Order(ADA, Transfer("T2", EVE, 300), asked=True), Answer("receipt", 3, 600)),
    (Order(BEN, Transfer("T3", ADA, 9999), asked=False), Answer("refused", balance=500)),
]
LEDGER = """
    insert into {schema}.ledger (transfer, account, other, kind, cents, booking, balance) values
    ('', 'A', '', 'opening', 1000, 1, 1000), ('', 'B', '', 'opening', 500, 1, 500), ('', 'E', '', 'opening', 0, 1, 0),
    ('T1', 'A', 'B', 'debit', -100, 2, 900), ('T1', 'B', 'A', 'credit', 100, 2, 600),
    ('T2', 'A', 'E', 'debit', -300, 3, 600), ('T2', 'A', 'E', 'refund', 300, 4, 900)
"""


@pytest.fixture
async def books(postgres_url: str) -> AsyncIterator[Books]:
    """Books of three accounts in which everything is right."""
    async with fresh_books(postgres_url, "payments_books") as made:
        await made.note(HOLDERS, STATEMENTS, {order.transfer.id: (order, answer) for order, answer in ANSWERS})
        await execute(postgres_url, LEDGER.format(schema=made.schema))
        yield made


async def execute(url: str, statement: str) -> None:
    """Run a statement."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=5)


async def test_books_that_are_right_pass_every_check(books: Books) -> None:
    """A credit, a refund from a closed account and a refusal contradict nothing."""
    assert [await books.wrong(check) for check in CHECKS] == [[] for _ in CHECKS]
    assert await books.by_kind() == {"opening": 3, "debit": 2, "credit": 1, "refund": 1}


@pytest.mark.parametrize(
    ("mistake", "found_by"),
    [
        ("update statement set balance = 901 where account = 'A'", {0, 1}),
        ("update statement set bookings = 5 where account = 'A'", {1}),
        ("insert into ledger select * from ledger where kind = 'credit'", {1, 2, 5}),
        ("insert into ledger select * from ledger where transfer = 'T1' and kind = 'debit'", {1, 2, 4}),
        ("insert into ledger select * from ledger where account = 'E'", {1, 2, 3}),
        ("delete from ledger where kind = 'refund'", {1, 5}),
        ("delete from ledger where transfer = 'T2'", {1, 4, 5}),
        ("update ledger set kind = 'credit', account = 'E' where kind = 'refund'", {1, 2}),
        ("update statement set closed = false", {5}),
        ("update answer set booking = 4 where transfer = 'T1'", {4}),
        ("update answer set outcome = 'refused' where transfer = 'T1'", {4, 5, 6}),
        ("delete from answer where transfer = 'T1'", {4, 5}),
        ("update ledger set cents = -400, balance = 500 where transfer = 'T2' and kind = 'debit'", {1, 2, 4}),
        ("update holder set cents = 999 where account = 'A'", {0, 3}),
        ("delete from statement where account = 'E'", {1, 5}),
    ],
)
async def test_a_mistake_is_found(postgres_url: str, books: Books, mistake: str, found_by: set[int]) -> None:
    """Whatever is lost, doubled, moved or invented fails the checks that it contradicts, and no others."""
    await execute(postgres_url, f"set search_path = {books.schema}; {mistake}")
    assert {number for number, check in enumerate(CHECKS) if await books.wrong(check)} == found_by


def test_account_numbers_have_their_check_digits() -> None:
    """A number that the standard gives as its example comes out with the same check digits."""
    assert iban("37040044", 532013000) == "DE89370400440532013000"


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    """What a run sends depends on its seed alone; copies follow what they copy, and nobody pays himself."""
    plan = make_plan(20, 400, seed=7)
    assert plan == make_plan(20, 400, seed=7) != make_plan(20, 400, seed=8)
    assert plan.transfers == 400
    seen: dict[str, Order] = {}
    for order in plan.orders:
        assert order.source != order.transfer.target
        assert order.copy == (order.transfer.id in seen)
        assert seen.setdefault(order.transfer.id, order).transfer == order.transfer
    assert len(plan.orders) > 400
    assert {order.transfer.cents - seen[order.transfer.id].transfer.cents for order in plan.forged} == {1}
    assert len({holder.account for holder in plan.holders}) == 20
