"""Where to connect: what a URL, a service file and `PG…` variables say together, as libpq understands them."""

import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import msgspec

from actorhub.core.config.database_url import DatabaseUrl, WrongUrl, check_parameters
from actorhub.core.errors import ConfigurationError

HOST_LIMIT: Final = 4.0
"""Seconds that connecting may take, if there is one host."""
HOSTS_LIMIT: Final = 2.4
"""The same for several hosts together: less than a runner gives a lock session."""

_VARIABLES: Final[Mapping[str, str]] = {
    "host": "PGHOST",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
}
"""Those that asyncpg does not read itself, and those of which the value matters here."""
_OURS: Final = frozenset({"connect_timeout", "options", "application_name", "host", "port", "target_session_attrs"})
_SOCKET: Final[Mapping[str, tuple[str, int]]] = {
    "keepalives_idle": ("TCP_KEEPIDLE", 5),
    "keepalives_interval": ("TCP_KEEPINTVL", 2),
    "keepalives_count": ("TCP_KEEPCNT", 3),
    "tcp_user_timeout": ("TCP_USER_TIMEOUT", 5000),
}


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A database, and how to reach it."""

    addresses: tuple[str, ...]
    """What asyncpg connects to, one URL for each host, in order."""
    place: str
    """Hosts and database, for messages; never a user or a password."""
    limit: float
    """Seconds for each host."""
    settings: Mapping[str, str]
    """Settings of the server that the user asks for."""
    application_name: str | None
    socket_options: Mapping[int, int]
    """Of TCP, by their numbers; empty if keepalives are switched off."""


def target_of(url: str, environ: Mapping[str, str]) -> Target:
    """Return where `url` leads.

    Raises:
        ConfigurationError: the URL, or what it or the environment refers to, cannot be used. Shows no secrets.
    """
    try:
        given = dict(DatabaseUrl.parse(url).parameters)
        service = given.pop("service", None) or environ.get("PGSERVICE")
        found = {name: environ[variable] for name, variable in _VARIABLES.items() if environ.get(variable)}
        parameters = {**check_parameters(found), **(_service(service, environ) if service else {}), **given}
        hosts = parameters.get("host", "").split(",")
        ports = _ports(parameters.get("port", ""), len(hosts))
        options = _settings(parameters.get("options", ""))
    except WrongUrl as exc:
        raise ConfigurationError(f"the database URL cannot be used: {exc}") from None
    except ValueError:
        raise ConfigurationError(
            "the database URL cannot be read: write postgresql://user:password@host:port/database"
        ) from None
    shared = {name: value for name, value in parameters.items() if name not in _OURS and not name.startswith("keepal")}
    shared.pop("tcp_user_timeout", None)
    # A runner has to write, so the first of several hosts may be the wrong one.
    wanted = parameters.get("target_session_attrs", "any" if len(hosts) == 1 else "read-write")
    addresses = [
        "postgresql://?" + urlencode({**shared, **_address(host, port), "target_session_attrs": wanted})
        for host, port in zip(hosts, ports, strict=True)
    ]
    limit = HOST_LIMIT if len(hosts) == 1 else HOSTS_LIMIT / len(hosts)
    return Target(
        addresses=tuple(addresses),
        place=_place(hosts, ports, parameters.get("dbname", "")),
        limit=float(parameters.get("connect_timeout") or 0) or limit,
        settings=options,
        application_name=parameters.get("application_name"),
        socket_options=_socket_options(parameters),
    )


def _address(host: str, port: str) -> Mapping[str, str]:
    shown = f"[{host}]" if ":" in host else host
    return ({"host": shown} if host else {}) | ({"port": port} if port else {})


def _place(hosts: list[str], ports: list[str], database: str) -> str:
    shown = ",".join(
        (f"[{host}]" if ":" in host else host or "localhost") + (f":{port}" if port and host[:1] != "/" else "")
        for host, port in zip(hosts, ports, strict=True)
    )
    return f"{shown}/{database}" if database else shown


def _ports(text: str, hosts: int) -> list[str]:
    ports = text.split(",")
    if len(ports) not in (1, hosts) or any(port and not port.isdigit() for port in ports):
        raise WrongUrl("it does not have one port for all hosts, or one for each")
    return ports * hosts if len(ports) == 1 else ports


def _service(name: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the parameters of a service: of the user's file, else of the system's."""
    files = [Path(environ.get("PGSERVICEFILE") or "~/.pg_service.conf").expanduser()]
    if system := environ.get("PGSYSCONFDIR"):
        files.append(Path(system) / "pg_service.conf")
    for file in files:
        if (found := _section(file, name)) is not None:
            used = dict(check_parameters(found))
            if "database" in used:
                used["dbname"] = used.pop("database")
            return used
    raise WrongUrl(f"service {name[:60]!r} is not in {' or '.join(map(str, files))}: define it there")


def _section(file: Path, name: str) -> Mapping[str, str] | None:
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise WrongUrl(f"the service file {file} cannot be read: {type(exc).__name__}") from exc
    found: dict[str, str] | None = None
    for line in map(str.strip, lines):
        if line.startswith("["):
            if found is not None:
                break
            found = {} if line == f"[{name}]" else None
        elif found is not None and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key.strip()] = value.strip()
    return found


def _settings(options: str) -> Mapping[str, str]:
    """Return the server's settings in `-c name=value --name=value`."""
    settings: dict[str, str] = {}
    words = shlex.split(options)
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            word = words.pop(0)
        elif word.startswith(("-c", "--")):
            word = word[2:]
        else:
            raise WrongUrl("options is not of the form -c name=value")
        name, found, value = word.partition("=")
        if not found or not name.replace("_", "").replace(".", "").replace("-", "").isalnum():
            raise WrongUrl("options is not of the form -c name=value")
        settings[name.replace("-", "_").lower()] = value
    return settings


def _socket_options(parameters: Mapping[str, str]) -> Mapping[int, int]:
    if parameters.get("keepalives") == "0":
        return {}
    values = {number: int(parameters.get(name) or 0) or value for name, (number, value) in _SOCKET.items()}
    return {getattr(socket, name): value for name, value in values.items() if hasattr(socket, name)}
