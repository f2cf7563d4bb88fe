"""Database URLs: libpq's forms are understood, and what is wrong with one is said without showing its secrets."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub.core.config import load_settings
from actorhub.core.config.database_url import DatabaseUrl
from actorhub.core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("postgresql://", {}),
        ("postgres:///shop", {"dbname": "shop"}),
        ("postgresql://ada@/shop?host=/run/pg", {"user": "ada", "dbname": "shop", "host": "/run/pg"}),
        ("postgresql://%2Frun%2Fpg/shop", {"host": "/run/pg", "dbname": "shop"}),
        ("postgresql://[::1]:5433,b/x", {"host": "::1,b", "port": "5433,", "dbname": "x"}),
        (
            "postgresql://ada:a%40b%23c%2Fd%3Fe%25@h/x",
            {"user": "ada", "password": "a@b#c/d?e%", "host": "h", "dbname": "x"},
        ),
        ("postgresql://h/x?database=y&ssl=true", {"host": "h", "dbname": "y", "sslmode": "require"}),
        ("postgresql://h?channel_binding=prefer&client_encoding=UTF8&fallback_application_name=x", {"host": "h"}),
        ("postgresql:///?password=p@ss", {"password": "p@ss"}),
    ],
)
def test_the_forms_of_libpq_are_understood(url: str, parameters: dict[str, str]) -> None:
    """Hosts, ports, sockets, encoded characters and parameters, wherever they may stand."""
    assert DatabaseUrl.parse(url).parameters == parameters


@pytest.mark.parametrize(
    ("parameter", "texts"),
    [
        ("schema=foo", ("parameter schema is not supported", "options=-c")),
        ("search_path=foo", ("parameter search_path is not supported",)),
        ("hostaddr=1.2.3.4", ("parameter hostaddr is not supported",)),
        ("target_session_attrs=standby", ("target_session_attrs must be any or primary or read-write",)),
        ("channel_binding=require", ("channel_binding must be disable or prefer",)),
        ("connect_timeout=soon", ("connect_timeout is not a whole number",)),
        ("connect_timeout", ("name=value",)),
    ],
)
def test_a_parameter_that_cannot_be_had_is_refused_by_its_name(parameter: str, texts: tuple[str, ...]) -> None:
    """The error says what may stand there."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"database_url": f"postgresql://ada:sesame@h/x?{parameter}"}, {}, origin="flag")
    assert str(caught.value).startswith("database_url (from flag --database) is not valid: ")
    assert "sesame" not in str(caught.value)
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize("password", ["ses@ame", "ses#ame", "ses/ame", "ses?ame", "ses%ame", "@sesame", "se?s=ame"])
def test_a_password_that_is_not_encoded_is_told_so(password: str) -> None:
    """The error says how to write each character, and shows no part of the password."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"database_url": f"postgresql://ada:{password}@h:5432/x"}, {})
    assert "%40" in str(caught.value)
    assert "ame" not in str(caught.value).replace("user name", "").replace("parameter", "")


@given(password=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=6, max_size=20))
def test_no_url_is_taken_for_another_one(password: str) -> None:
    """With any password the host is the one that stands there, or the URL is refused."""
    with contextlib.suppress(ValueError):
        found = DatabaseUrl.parse(f"postgresql://ada:{password}@database.example/x").parameters
        assert (found["host"], found["dbname"], found["user"]) == ("database.example", "x", "ada")
