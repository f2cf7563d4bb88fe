"""Tokens of deferred values: only the cluster can make them, and they are the same in every release."""

import base64
import hashlib

import msgspec
import pytest

from actorhub.core.errors import MalformedMessage
from actorhub.core.idempotency import MAX_KEY_BYTES
from actorhub.core.tokens import Deferral, make_token, read_token, token_hash

SECRET = bytes(range(16))
APPROVAL = Deferral("orders", "ada", 7_000_000_000_000, 3, "approval")


def test_a_token_is_the_same_in_every_release() -> None:
    """Tokens are a wire format, because people keep them in mails and other systems in callbacks."""
    token = "laZvcmRlcnOjYWRhzwAABl3Qg3AAA6hhcHByb3ZhbANkWRn5CP1wrmMNj0eshg0"
    assert make_token(APPROVAL, SECRET) == token
    assert token_hash(APPROVAL, SECRET).hex() == "03645919f908fd70ae630d8f47ac860d"
    assert read_token(token, SECRET) == (APPROVAL, token_hash(APPROVAL, SECRET))


def test_tokens_may_be_put_in_urls() -> None:
    """Whatever the names are, a token contains no character that needs quoting."""
    for number in range(200):
        token = make_token(Deferral("orders", f"späte/Bestellung?{number}&", number, 0, "größer + 1"), SECRET)
        assert token.isascii()
        assert token.replace("-", "").replace("_", "").isalnum()


def test_a_token_names_one_deferred_value() -> None:
    """Any other type, id, message, generation, name or cluster has another token."""
    others = [
        msgspec.structs.replace(APPROVAL, **change)
        for change in (
            {"entity_type": "order"},
            {"entity_id": "sada"},
            {"message_id": 0},
            {"generation": 4},
            {"name": ""},
        )
    ]
    tokens = [make_token(deferral, SECRET) for deferral in (APPROVAL, *others)]
    assert len({*tokens, make_token(APPROVAL, bytes(16))}) == 7
    assert [read_token(token, SECRET)[0] for token in tokens] == [APPROVAL, *others]


def test_the_longest_names_make_a_token_that_is_read() -> None:
    """A token is short enough even for a type, an id and a name at their limits."""
    longest = Deferral("t" * 31, "i" * 1000, 2**63 - 1, 2**63 - 1, "n" * MAX_KEY_BYTES)
    assert read_token(make_token(longest, SECRET), SECRET)[0] == longest


def test_a_field_of_a_later_release_is_passed_over() -> None:
    """This release reads tokens of a later one, and ignores the additional fields."""
    data = msgspec.msgpack.encode([*msgspec.structs.astuple(APPROVAL), "later"])
    mac = hashlib.blake2b(data, key=SECRET, digest_size=16).digest()
    token = base64.urlsafe_b64encode(data + mac).decode().rstrip("=")
    assert read_token(token, SECRET) == (APPROVAL, mac)


@pytest.mark.parametrize("at", range(0, 63, 3))
def test_a_changed_token_is_refused(at: int) -> None:
    """A token with any character changed is refused."""
    token = make_token(APPROVAL, SECRET)
    changed = token[:at] + ("A" if token[at : at + 1] != "A" else "Q") + token[at + 1 :]
    with pytest.raises(MalformedMessage, match="not a token of this cluster"):
        read_token(changed, SECRET)


@pytest.mark.parametrize("length", range(63))
def test_a_shortened_token_is_refused(length: int) -> None:
    """A token that is cut at any point is refused."""
    with pytest.raises(MalformedMessage, match="not a token of this cluster"):
        read_token(make_token(APPROVAL, SECRET)[:length], SECRET)


def _signed(value: object) -> str:
    data = msgspec.msgpack.encode(value)
    mac = hashlib.blake2b(data, key=SECRET, digest_size=16).digest()
    return base64.urlsafe_b64encode(data + mac).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "=",
        "A",
        "AAAA" * 5,
        "späte-Bestellung",
        "\ud800",
        "a b c",
        "\x00",
        "A" * 4097,
        "A" * 50_000_000,
        "-_" * 40,
        make_token(APPROVAL, bytes(16)),
        make_token(APPROVAL, b""),
        f" {make_token(APPROVAL, SECRET)}",
        f"{make_token(APPROVAL, SECRET)}\n",
        _signed(["orders", "ada"]),
        _signed({"entity_type": "orders"}),
        _signed(b""),
    ],
    ids=lambda token: token[:20],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    """Random text, tokens of other clusters, and tokens made without the secret are refused."""
    with pytest.raises(MalformedMessage, match="not a token of this cluster"):
        read_token(token, SECRET)
