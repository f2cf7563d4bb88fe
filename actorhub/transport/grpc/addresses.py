"""`host:port` of the listening side: which numeric address to bind, and whether it may be bound."""

import asyncio
import ipaddress
import re
import socket
from typing import Final

from actorhub.core.errors import ConfigurationError

_ADDRESS: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>[0-9]{1,5})")


def split_address(address: str) -> tuple[str, int]:
    """Return host (IPv6 without brackets) and port of `address`.

    Raises:
        ConfigurationError: it is not `host:port`.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65_535:
        raise ConfigurationError(f"{address!r} is not an address: write host:port or [IPv6]:port")
    return found["v6"] or found["host"], int(found["port"])


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def numeric_host(host: str) -> str:
    """Return the first IP address of `host`, so that exactly one socket is bound.

    Raises:
        ConfigurationError: the name does not resolve.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ConfigurationError(f"cannot listen on {host!r}: {exc.strerror or exc}: name a local address") from exc
    return str(found[0][4][0])


async def is_refused(address: str) -> bool:
    """Return whether each IP address of `address` refuses connections: nobody listens there.

    A connection that is cut off on its way, or that nobody answers, is not refused: the process may be alive.

    Raises:
        OSError: the name does not resolve, or an IP address is out of reach.
    """
    host, port = split_address(address)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    for family, kind, protocol, _, place in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setblocking(False)
            try:
                await loop.sock_connect(probe, place)
            except ConnectionRefusedError:
                continue  # Another IP address of the name may accept.
            return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only processes of this machine reach the numeric `host`."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def is_wildcard(host: str) -> bool:
    """Return whether the numeric `host` means every address of the machine, so that no peer can dial it."""
    return ipaddress.ip_address(host.partition("%")[0]).is_unspecified
