"""Database URLs in libpq's forms: what they may say, and what is wrong with one, without showing any secret of it."""

import re
from collections.abc import Mapping
from typing import Final, NoReturn
from urllib.parse import unquote

import msgspec

_SHAPE: Final = re.compile(r"(?:postgresql|postgres)://([^/?]*)(?:/([^?]*))?(?:\?(.*))?", re.DOTALL)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::(\d{0,6}))?")
_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PARAMETER: Final = re.compile(r"[a-z][a-z0-9_]{0,40}")
_LAST_PORT: Final = 65_535
_ENCODE: Final = "in a user name or password, write @ as %40, # as %23, / as %2F, ? as %3F, % as %25"

_CONNECTION: Final = ("host", "port", "user", "password", "dbname", "database", "passfile", "service")
_NUMBERS: Final = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
_SECURITY: Final = (
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslpassword",
    "sslnegotiation",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "krbsrvname",
    "gsslib",
)
_USED: Final = frozenset((*_CONNECTION, *_NUMBERS, *_SECURITY, "options", "application_name", "target_session_attrs"))
_ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "target_session_attrs": frozenset({"any", "primary", "read-write"}),
    "client_encoding": frozenset({"utf8", "utf-8", "auto"}),
    "channel_binding": frozenset({"disable", "prefer"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "load_balance_hosts": frozenset({"disable"}),
    "sslcompression": frozenset({"0"}),
    "sslsni": frozenset({"1"}),
    "sslcertmode": frozenset({"allow"}),
    "gssdelegation": frozenset({"0"}),
}
"""What may be asked for. All but the first one is how the connection is made anyway."""


class WrongUrl(ValueError):
    """What is wrong with a URL. Its text says what to do, and shows neither the URL nor a part of a password."""


class DatabaseUrl(msgspec.Struct, frozen=True):
    """A URL, taken apart. What it leaves out is up to the service file, to `PG…` variables and to defaults."""

    parameters: Mapping[str, str]
    """By libpq's names. `host` and `port` are lists with commas, as libpq has them, `dbname` is the database."""

    @classmethod
    def parse(cls, text: str) -> "DatabaseUrl":
        """Return what `text` says.

        Raises:
            WrongUrl: it has a character that must be encoded, or a parameter that cannot be had.
            ValueError: it is not a URL of a Postgres database.
        """
        if not (found := _SHAPE.fullmatch(text.partition("#")[0])):
            raise ValueError("scheme")
        authority, path, query = found[1], found[2] or "", found[3] or ""
        if "#" in text or authority.count("@") > 1 or "@" in path or (authority and _hides_password(authority, query)):
            raise WrongUrl(f"it has a character that must be encoded: {_ENCODE}")
        credentials, _, hosts = authority.rpartition("@")
        user, _, password = credentials.partition(":")
        stated = {"user": _decoded(user), "password": _decoded(password), "dbname": _decoded(path)}
        parameters = {name: value for name, value in stated.items() if value}
        parameters |= _hosts(hosts) if hosts else {}
        for name, value in check_parameters(_pairs(query)).items():
            parameters["dbname" if name == "database" else name] = value
        return cls(parameters)


def check_parameters(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """Return those of a URL, or of a service, that have an effect.

    Raises:
        WrongUrl: one is unknown, or asks for what cannot be had; names it.
    """
    used: dict[str, str] = {}
    for name, value in parameters.items():
        if (allowed := _ALLOWED.get(name)) is not None and value.lower() not in allowed:
            raise WrongUrl(f"{name} must be {' or '.join(sorted(allowed))} here: change it, or leave it out")
        if name in _NUMBERS and not re.fullmatch(r"\d{1,9}", value):
            raise WrongUrl(f"{name} is not a whole number")
        if name in _USED:
            used[name] = value
        elif allowed is None and name != "fallback_application_name":
            raise WrongUrl(
                f"parameter {name} is not supported: leave it out; settings of the server go into "
                "options, as in ?options=-c%20work_mem%3D64MB"
            )
    return used


def _hides_password(authority: str, query: str) -> bool:
    """Whether an unencoded `?` in a password may have made the rest of it look like parameters."""
    return "@" not in authority and "@" in query


def _pairs(query: str) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, found, value = part.partition("=")
        if not found or not _PARAMETER.fullmatch(name):
            raise WrongUrl("what follows ? is not name=value, with & between two: in a password, write ? as %3F")
        # As JDBC writes it, and libpq understands it.
        pairs |= {"sslmode": "require"} if (name, value) == ("ssl", "true") else {name: _decoded(value)}
    return pairs


def _hosts(text: str) -> Mapping[str, str]:
    hosts: list[str] = []
    ports: list[str] = []
    for one in text.split(","):
        match = _HOST.fullmatch(one)
        if match is None or int(match[2] or 1) not in range(1, _LAST_PORT + 1):
            raise ValueError("host")
        hosts.append(_decoded(match[1].removeprefix("[").removesuffix("]")))
        ports.append(match[2] or "")
    return {"host": ",".join(hosts)} | ({"port": ",".join(ports)} if any(ports) else {})


def _decoded(text: str) -> str:
    if _ESCAPE.search(text):
        _fail_encoding()
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        _fail_encoding()


def _fail_encoding() -> NoReturn:
    raise WrongUrl(f"it has a % that begins no code of two hexadecimal digits: {_ENCODE}") from None
