"""The handlers of this release, as they run messages that are stored."""

from collections.abc import Mapping

from actorhub.engine.model.records import HostedType
from actorhub.engine.model.spec import HandlerSpec


class StoredHandlers:
    """Finds the handler that a stored message is for.

    Whether a handler is durable is the runner's to declare. But a message may have been stored by a release, or for a
    caller, that declared it otherwise: it is run as the stored message that it is, and settled once.
    """

    def __init__(self, types: Mapping[str, HostedType]) -> None:
        self._types = types
        self._found: dict[tuple[str, str], HandlerSpec] = {}

    def find(self, entity_type: str, name: str) -> HandlerSpec | None:
        """Return the handler; `None` if this release has none of that name that can run a stored message."""
        found = self._found.get((entity_type, name))
        if found is not None:
            return found
        hosted = self._types.get(entity_type)
        spec = None if hosted is None else hosted.spec.handlers.get(name)
        if spec is None or spec.stream:
            return None
        self._found[entity_type, name] = spec.for_stored()
        return self._found[entity_type, name]
