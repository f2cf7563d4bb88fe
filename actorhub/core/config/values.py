"""Parsers of setting values. Each takes text or a typed value, and raises `ValueError` for anything else."""

import ipaddress
import math
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final, Self, cast

import msgspec

from actorhub.core.address import NAME_PATTERN
from actorhub.core.config.database_url import DatabaseUrl

_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(ms|s|m|h|d)?")
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}
_USER_PASSWORD: Final = re.compile(r"(^|//)([^:/@?#\s]*):(?!//)(.*)@", re.DOTALL)
_PASSWORD_PARAMETER: Final = re.compile(r"((?:password|passwd|passfile|token)\s*=\s*)[^&\s]*", re.IGNORECASE)
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


class HostPort(msgspec.Struct, frozen=True):
    """A network address, written `host:port`, with an IPv6 host in brackets."""

    host: str
    port: int
    """0 to 65535. For a listener, 0 lets the operating system choose."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address that `text` names.

        Raises:
            ValueError: `text` is not `HOST:PORT`.
        """
        host, _, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError("port")
        if bracketed:
            ipaddress.IPv6Address(host)
        elif not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", host):
            raise ValueError("host")
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address. Of host names, only `localhost` counts."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for all addresses of the machine, so that no peer can connect to it."""
        return self.host in ("0.0.0.0", "::")  # noqa: S104 - recognised here, never bound

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def mask_secrets(text: str) -> str:
    """Return `text` with passwords in database URLs and in `password=` parameters replaced by `***`."""
    return _PASSWORD_PARAMETER.sub(r"\1***", _USER_PASSWORD.sub(r"\1\2:***@", text))


def parse_text(value: object) -> str:
    """Return non-empty, printable text, without surrounding spaces."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("text")
    return value.strip()


def parse_name(value: object) -> str:
    """Return a name that may become part of an SQL identifier."""
    if not isinstance(value, str) or not NAME_PATTERN.fullmatch(value):
        raise ValueError("name")
    return value


def parse_names(value: object) -> tuple[str, ...]:
    """Return one or more distinct names."""
    names = tuple(parse_name(item) for item in _items(value))
    if not names or len(set(names)) != len(names):
        raise ValueError("names")
    return names


def parse_host_port(value: object) -> HostPort:
    """Return an address to listen on. Port 0 is allowed."""
    if isinstance(value, HostPort):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("address")  # noqa: TRY004 - every parser reports by ValueError
    return HostPort.parse(value.strip())


def parse_target(value: object) -> HostPort:
    """Return an address to connect to."""
    target = parse_host_port(value)
    if target.port == 0 or target.is_wildcard:
        raise ValueError("target")
    return target


def parse_targets(value: object) -> tuple[HostPort, ...]:
    """Return one or more addresses to connect to."""
    targets = tuple(parse_target(item) for item in ([value] if isinstance(value, HostPort) else _items(value)))
    if not targets:
        raise ValueError("targets")
    return targets


def parse_database_url(value: object) -> str:
    """Return a Postgres URL. Only its syntax and its parameters are checked."""
    text = parse_text(value)
    DatabaseUrl.parse(text)
    return text


def parse_path(value: object) -> Path:
    """Return a path, which need not exist."""
    return value if isinstance(value, Path) else Path(parse_text(value)).expanduser()


def parse_flag(value: object) -> bool:
    """Return a boolean."""
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text not in _TRUE | _FALSE:
        raise ValueError("flag")
    return text in _TRUE


def whole(minimum: int, maximum: int) -> Callable[[object], int]:
    """Return a parser of whole numbers from `minimum` to `maximum`."""

    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d[\d_]{0,30}", value.strip()):
            value = int(value.strip())
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ValueError("whole number")
        return value

    return parse


def parse_weight(value: object) -> float:
    """Return a positive weight."""
    if isinstance(value, str):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= 1000:
        raise ValueError("weight")
    return float(value)


def duration(minimum: timedelta, maximum: timedelta) -> Callable[[object], timedelta]:
    """Return a parser of durations: `500ms`, `15s`, `5m`, `2h`, `1d`, or a number of seconds."""

    def parse(value: object) -> timedelta:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            value = f"{value:.6f}" if value >= 0 else "negative"
        if isinstance(value, str):
            value = _duration_of(value.strip())
        if not isinstance(value, timedelta) or not minimum <= value <= maximum:
            raise ValueError("duration")
        return value

    return parse


def one_of(*allowed: str) -> Callable[[object], str]:
    """Return a parser of the given words, in upper or lower case."""

    def parse(value: object) -> str:
        text = value.strip().lower() if isinstance(value, str) else ""
        if text not in allowed:
            raise ValueError("word")
        return text

    return parse


def _duration_of(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError("duration")
    try:
        return timedelta(seconds=float(match[1]) * _UNIT_SECONDS[match[2]])
    except OverflowError:
        raise ValueError("duration") from None


def _items(value: object) -> Sequence[object]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")]
    if isinstance(value, list | tuple):
        return cast("Sequence[object]", value)
    raise ValueError("list")
