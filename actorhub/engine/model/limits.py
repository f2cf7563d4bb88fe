"""The limits of one process."""

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one process accepts at most, and for how long it keeps replies."""

    max_message_bytes: int
    max_entity_id_bytes: int
    max_call_depth: int
    max_resident: int = 100_000
    """Entities in memory."""
    retention: float = 86_400.0
    """Seconds for which the replies of durable messages are kept."""
