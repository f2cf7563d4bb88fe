"""Channels to runners, for the services on their port."""

from typing import TypeAlias

import grpc.aio

from actorhub.core.config import Settings
from actorhub.transport.grpc.options import TlsFiles, channel_credentials, channel_options, check_token
from actorhub.transport.outbox import LinkLimits

Metadata: TypeAlias = tuple[tuple[str, str], ...]


def open_channel(address: str, settings: Settings) -> grpc.aio.Channel:
    """Return a channel to the runner at `address`; it connects when it is first used.

    Raises:
        ConfigurationError: a TLS file cannot be read.
    """
    limits = LinkLimits(max_message_bytes=settings.max_message_bytes)
    options = channel_options(limits.max_frame_bytes)
    # The explicit scheme keeps an address from being read as one, such as unix:path.
    target = f"dns:///{address}"
    tls = tls_files(settings)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, channel_credentials(tls), options=options)


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return the files of mutual TLS, if it is set up."""
    if settings.tls_cert and settings.tls_key and settings.tls_ca:
        return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_ca)
    return None


def call_metadata(settings: Settings) -> Metadata:
    """Return what every call carries.

    Raises:
        ConfigurationError: the token cannot travel.
    """
    token = check_token(settings.token)
    return (("authorization", f"Bearer {token}"),) if token is not None else ()


def status_text(error: grpc.aio.AioRpcError) -> str:
    """Return what a failed call says, in a line."""
    return " ".join((error.details() or "no details").split()) or error.code().name
