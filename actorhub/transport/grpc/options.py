"""gRPC's settings, and the credentials of both ends."""

import re
from pathlib import Path
from typing import Final, TypeAlias

import grpc
import msgspec

from actorhub.core.errors import ConfigurationError

ChannelOptions: TypeAlias = list[tuple[str, int]]

_TOKEN: Final = re.compile(r"[!-~]+")


class TlsFiles(msgspec.Struct, frozen=True):
    """Where this process's certificate, its private key, and the authority that signs its peers lie (PEM files)."""

    cert: Path
    key: Path
    ca: Path


def link_options(max_frame_bytes: int) -> ChannelOptions:
    """Return what both ends of a connection are set to.

    A killed peer is noticed within milliseconds, because its kernel closes its connections. A frozen one is not: its
    kernel goes on acknowledging whatever arrives, so TCP sees nothing wrong, and only an HTTP/2 ping that stays
    unanswered tells. With these settings that takes 2.6 to 4.7 seconds.
    """
    return [
        ("grpc.max_receive_message_length", max_frame_bytes + 1024),
        ("grpc.max_send_message_length", max_frame_bytes + 1024),
        ("grpc.keepalive_time_ms", 2_000),
        ("grpc.keepalive_timeout_ms", 2_500),
        # gRPC also pings to estimate the bandwidth. While such a ping is unanswered no keepalive ping is sent, and its
        # own time limit is far longer by default: a peer that freezes in the middle of a transfer would go unnoticed.
        ("grpc.http2.ping_timeout_ms", 2_500),
        ("grpc.keepalive_permit_without_calls", 1),
        # By default gRPC stops pinging after two pings without data between them: an idle link would go unwatched.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options(max_frame_bytes: int) -> ChannelOptions:
    """Return the accepting end's settings: the port is ours alone, and peers may ping as often as they need to."""
    return [
        *link_options(max_frame_bytes),
        # By default two processes may listen at one port, and the kernel deals connections out between them.
        ("grpc.so_reuseport", 0),
        # By default a server takes a client that pings an idle connection more than once in five minutes for an
        # attacker, and ends the connection: GOAWAY with ENHANCE_YOUR_CALM, "too_many_pings".
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def channel_options(max_frame_bytes: int) -> ChannelOptions:
    """Return the connecting end's settings: each channel has a connection of its own and never a proxy.

    `min_reconnect_backoff_ms` stays at its default: it also limits how long one attempt may take, TLS handshake
    included, and a small value would make slow connections impossible. Whoever connects sets a deadline instead.
    """
    return [
        *link_options(max_frame_bytes),
        # Channels to one address would share a connection: closing one link's channel would then not close its
        # connection, and a connection that breaks would take other links with it.
        ("grpc.use_local_subchannel_pool", 1),
        # gRPC's own delays between attempts grow to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_http_proxy", 0),
        # A retry would repeat calls of which nobody knows whether they ran. The engine decides what is sent again.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
    ]


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that demand a certificate signed by `tls.ca` of every client.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    pair = (_read(tls.key, "TLS key"), _read(tls.cert, "TLS certificate"))
    return grpc.ssl_server_credentials([pair], root_certificates=_read(tls.ca, "TLS CA"), require_client_auth=True)


def channel_credentials(tls: TlsFiles) -> grpc.ChannelCredentials:
    """Return credentials that show our certificate and demand one signed by `tls.ca` for the dialled host.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca, "TLS CA"),
        private_key=_read(tls.key, "TLS key"),
        certificate_chain=_read(tls.cert, "TLS certificate"),
    )


def check_token(token: str | None) -> str | None:
    """Return `token` if it can travel in a header.

    Raises:
        ConfigurationError: it cannot. The text does not show it.
    """
    if token is not None and not _TOKEN.fullmatch(token):
        raise ConfigurationError("the token must be printable ASCII without spaces and not empty: choose another")
    return token


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"{what} {path}: {exc.strerror or exc}: name a readable PEM file") from exc
