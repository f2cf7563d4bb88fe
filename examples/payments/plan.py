"""Who holds which account and who pays whom. The plan is made from a seed, and is the same on every machine."""

from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import Final

import msgspec

from examples.payments.entities import Transfer

_FIRST: Final = (
    "Ada", "Amina", "Anton", "Beatriz", "Björn", "Carla", "Chen", "Clara", "Dmitri", "Elif", "Emil", "Fatma", "Felix",
    "Frida", "Giulia", "Hanna", "Ingrid", "Ivan", "Jakub", "Jonas", "Jun", "Kwame", "Lea", "Liam", "Lucía", "Malik",
    "Maria", "Mateo", "Mira", "Nadia", "Noah", "Olga", "Omar", "Paul", "Priya", "Rosa", "Samuel", "Sofia", "Tariq",
    "Yuki",
)  # fmt: skip
_LAST: Final = (
    "Abebe", "Almeida", "Andersson", "Bauer", "Becker", "Bianchi", "Costa", "Demir", "Dubois", "Fischer", "García",
    "Haddad", "Hansen", "Ito", "Jansen", "Kaya", "Keller", "Kowalski", "Krüger", "Lehmann", "Li", "Marino", "Mensah",
    "Meyer", "Moreau", "Nguyen", "Novák", "Okafor", "Patel", "Petrov", "Richter", "Rossi", "Santos", "Schmidt",
    "Silva", "Singh", "Tanaka", "Vogel", "Weber", "Yılmaz",
)  # fmt: skip
_BANKS: Final = ("10020030", "20030040", "30040050", "70080090")
"""Bank codes that no bank has."""
_OPENING_CENTS: Final = (20_000, 500_000)
_TYPICAL_CENTS: Final = 6_000
_SKEW: Final = 0.7
"""Exponent of the power law according to which some accounts get more transfers than others."""
_GREEDY: Final = 1 / 25
"""Share of the transfers whose amount is more than anybody has."""
_ASKED: Final = 0.6
"""Share of the transfers that are asks: the sender waits for the receipt. The others are tells."""
_COPIED: Final = 1 / 6
"""Share of the transfers that are sent again, with the same key."""
_FORGED: Final = 1 / 100
"""Share of the transfers whose id is used again with another amount."""
_CLOSED: Final = 1 / 50
"""Share of the accounts that are closed half-way."""
_FARTHEST_COPY: Final = 0.25
"""The greatest distance of a copy from its transfer, as a share of all transfers."""


class Holder(msgspec.Struct, frozen=True):
    """An account before it is opened."""

    account: str
    """The number of the account, in the form of an IBAN."""
    name: str
    cents: int


class Order(msgspec.Struct, frozen=True):
    """One message with a transfer."""

    source: str
    transfer: Transfer
    asked: bool
    """Whether the sender waits for the receipt."""
    copy: bool = False
    """Whether the transfer was sent before."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run sends."""

    holders: Sequence[Holder]
    orders: Sequence[Order]
    """In the order in which they are sent, including copies."""
    forged: Sequence[Order]
    """Transfers that are sent at the end, with ids that were used before and other amounts."""
    closing: Sequence[str]
    """The accounts to close half-way."""

    @property
    def transfers(self) -> int:
        """The number of different transfers."""
        return sum(not order.copy for order in self.orders)


def make_plan(accounts: int, transfers: int, seed: int) -> Plan:
    """Return the plan for a seed.

    Args:
        accounts: How many, at least 2.
        transfers: How many different ones.
        seed: Equal seeds make equal plans.
    """
    random = Random(seed)
    holders = [_holder(random, number) for number in range(1, accounts + 1)]
    first = list(_transfers(random, holders, transfers))
    places = [(float(number), order) for number, order in enumerate(first)]
    for number, order in enumerate(first):
        if random.random() < _COPIED:
            # Half of the copies are sent at once, while the first is in flight; the others much later, as ask or tell.
            later = random.choice((0.5, 1 + random.random() * _FARTHEST_COPY * transfers))
            places.append((number + later, msgspec.structs.replace(order, copy=True, asked=random.random() < 0.5)))
    places.sort(key=lambda place: place[0])
    forged = [
        Order(order.source, msgspec.structs.replace(order.transfer, cents=order.transfer.cents + 1), True, True)
        for order in random.sample(first, max(1, round(transfers * _FORGED)))
    ]
    late = dict.fromkeys(order.transfer.target for order in first[-max(1, transfers // 3) :])
    closing = list(late)[: max(1, round(accounts * _CLOSED))]
    return Plan(holders=holders, orders=[order for _, order in places], forged=forged, closing=closing)


def iban(bank: str, number: int) -> str:
    """Return the German IBAN of an account, with its check digits (ISO 7064, MOD 97-10)."""
    basic = f"{bank}{number:010d}"
    return f"DE{98 - int(f'{basic}131400') % 97:02d}{basic}"


def _holder(random: Random, number: int) -> Holder:
    account = iban(random.choice(_BANKS), number * 1_000_003 % 9_999_999_967)
    return Holder(account, f"{random.choice(_FIRST)} {random.choice(_LAST)}", random.randint(*_OPENING_CENTS))


def _transfers(random: Random, holders: Sequence[Holder], count: int) -> Iterator[Order]:
    """Yield orders: everybody pays, and a few accounts get most of it, as shops and landlords do."""
    everything = sum(holder.cents for holder in holders)
    shares = list(accumulate(rank**-_SKEW for rank in range(1, len(holders) + 1)))
    for number in range(1, count + 1):
        source = random.choice(holders)
        while (target := holders[bisect(shares, random.random() * shares[-1])]) is source:
            pass
        cents = max(1, round(random.lognormvariate(0, 1.2) * _TYPICAL_CENTS))
        if random.random() < _GREEDY:
            cents += everything
        yield Order(source.account, Transfer(f"T{number:08d}", target.account, cents), asked=random.random() < _ASKED)
