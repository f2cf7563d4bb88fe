"""The client of the bank: it sends transfers, some of them twice, and keeps the answer to each."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from actorhub import Cluster, DuplicateKey
from examples.demo.sending import Sender
from examples.payments.entities import Account, AccountClosed, InsufficientFunds, Opening, Receipt, Statement
from examples.payments.plan import Holder, Order, Plan


class Answer(msgspec.Struct, frozen=True):
    """The answer to the caller of a transfer."""

    outcome: str
    """`receipt`, `refused` or `closed`."""
    booking: int | None = None
    balance: int | None = None


class Payer(Sender):
    """Sends the orders of a plan.

    Args:
        cluster: Where to send.
        in_flight: How many calls may be under way at once.
    """

    def __init__(self, cluster: Cluster, in_flight: int) -> None:
        super().__init__(in_flight)
        self.answers: dict[str, tuple[Order, Answer]] = {}
        """Answers by transfer."""
        self.contradictions: list[str] = []
        """Transfers whose copy got another answer."""
        self.sent: Counter[str] = Counter()
        """Numbers of messages sent, by kind."""
        self.forgeries_refused = 0
        self._cluster = cluster
        self._accounts = cluster.client(Account)
        self._told: list[tuple[Order, int]] = []

    async def open(self, holders: Mapping[str, Holder]) -> None:
        """Open all accounts."""

        async def open_one(holder: Holder) -> None:
            await self.until_done(lambda: self._accounts(holder.account).open(Opening(holder.name, holder.cents)))

        await self.each(holders.values(), open_one)

    async def run(self, plan: Plan) -> None:
        """Send every order. Return when each ask is answered and each tell is stored.

        Raises:
            ExceptionGroup: one failed for good.
        """
        await self.each(plan.orders, self._send)

    async def close(self, accounts: list[str]) -> None:
        """Close accounts."""

        async def close_one(account: str) -> None:
            await self.until_done(lambda: self._accounts(account).close())

        await self.each(accounts, close_one)

    async def forge(self, plan: Plan) -> None:
        """Send transfers with ids that were used before and other amounts. None of them may run."""

        async def forge_one(order: Order) -> None:
            try:
                answer = await self._answer(lambda: self._accounts(order.source).transfer(order.transfer))
                self.contradictions.append(f"{order.transfer.id} ran again with another amount: {answer}")
            except DuplicateKey:
                self.forgeries_refused += 1

        await self.each(plan.forged, forge_one)

    async def collect(self) -> None:
        """Fetch the answers to the tells."""

        async def collect_one(told: tuple[Order, int]) -> None:
            order, message_id = told
            self._note(order, await self._answer(lambda: self._cluster.reply(message_id)))

        await self.each(self._told, collect_one)

    async def statements(self, holders: Mapping[str, Holder]) -> dict[str, Statement]:
        """Return the statement of every account."""
        return await self.results({account: self._accounts(account).statement for account in holders})

    async def _send(self, order: Order) -> None:
        account = self._accounts(order.source)
        if order.asked:
            self._note(order, await self._answer(lambda: account.transfer(order.transfer)))
        else:
            message_id = await self.until_done(lambda: self._cluster.tell(account.transfer(order.transfer)))
            self._told.append((order, message_id))
        self.sent[("asked" if order.asked else "told") + (", a copy" if order.copy else "")] += 1
        if not order.copy:
            self.advance(1)

    async def _answer(self, call: Callable[[], Awaitable[Receipt]]) -> Answer:
        try:
            receipt = await self.until_done(call)
        except InsufficientFunds as error:
            return Answer("refused", balance=error.balance)
        except AccountClosed:
            return Answer("closed")
        return Answer("receipt", receipt.booking, receipt.balance)

    def _note(self, order: Order, answer: Answer) -> None:
        before = self.answers.setdefault(order.transfer.id, (order, answer))[1]
        if before != answer:
            self.contradictions.append(f"{order.transfer.id} was answered with {before}, and with {answer}")
