"""What operators see: the admin service, the gateway, health."""

from collections.abc import Mapping, Sequence
from functools import partial

from actorhub.core.config import Settings
from actorhub.engine.runner import Door
from actorhub.engine.spec import EntitySpec
from actorhub.ops.admin import add_admin
from actorhub.ops.colleagues import Colleagues
from actorhub.ops.gateway import add_gateway
from actorhub.ops.health import add_health
from actorhub.transport.grpc import AddService


def port_services(door: Door, specs: Mapping[str, EntitySpec], settings: Settings) -> Sequence[AddService]:
    """Return the services that share the runner's port."""
    return (
        partial(add_admin, door, Colleagues(settings), specs),
        partial(add_gateway, door, specs),
        partial(add_health, door),
    )
