"""What operators see: the admin service, the gateway, health."""

from collections.abc import Mapping, Sequence

from actorhub.core.config import Settings
from actorhub.engine.node import Door
from actorhub.engine.spec import EntitySpec
from actorhub.transport.grpc import AddService


def port_services(door: Door, specs: Mapping[str, EntitySpec], settings: Settings) -> Sequence[AddService]:
    """Return the services that share the runner's port."""
    return ()
