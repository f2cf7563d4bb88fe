"""What operators see: the admin service, the gateway, health, metrics, traces, HTTP."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from actorhub.core.clock import Clock
from actorhub.core.config import Settings
from actorhub.core.errors import ConfigurationError
from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.engine.model.spec import EntitySpec
from actorhub.ops.admin import add_admin
from actorhub.ops.gateway import add_gateway
from actorhub.ops.health import add_health
from actorhub.ops.peer_admins import PeerAdmins
from actorhub.transport.grpc import AddService


def port_services(acceptor: LinkAcceptor, specs: Mapping[str, EntitySpec], settings: Settings) -> Sequence[AddService]:
    """Return the services that share the runner's port."""
    return (
        partial(add_admin, acceptor, PeerAdmins(settings), specs),
        partial(add_gateway, acceptor, specs),
        partial(add_health, acceptor),
    )


@asynccontextmanager
async def http_server(settings: Settings, acceptor: LinkAcceptor, clock: Clock) -> AsyncGenerator[None, None]:
    """Serve probes, metrics and a page over HTTP during the block, if the settings say where.

    Raises:
        ConfigurationError: the `ops` extra is not installed, or the address cannot be bound.
    """
    if settings.http is None:
        yield
        return
    try:
        from actorhub.ops.http import serve_http  # noqa: PLC0415 - the extra may be absent
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            f"http = {settings.http} needs a package that is not installed ({exc.name}): pip install 'actorhub[ops]'"
        ) from exc
    async with serve_http(settings, settings.http, acceptor, clock):
        yield
