"""Which shard an entity is in: a pure function of its id, once the cluster's number of shards is known."""

from collections.abc import Callable, Mapping

from actorhub.core.address import ShardId, shard_number
from actorhub.core.errors import MalformedMessage
from actorhub.core.texts import summary_of
from actorhub.engine.model.records import Message
from actorhub.engine.model.spec import EntitySpec


class Sharding:
    """Maps ids to shards. `shards_per_group` is 0 until the cluster's value is known."""

    def __init__(self, specs: Mapping[str, EntitySpec], shards_per_group: int = 0) -> None:
        self._specs = specs
        self.shards_per_group = shards_per_group
        self._ids: dict[str, tuple[ShardId, ...]] = {}

    def shard_of(self, spec: EntitySpec, entity_id: str) -> ShardId:
        """Return the entity's shard; the number of shards must be known.

        Raises:
            MalformedMessage: the type's `shard_key` fails for this id.
        """
        key = entity_id if spec.shard_key is None else _shard_key(spec, spec.shard_key, entity_id)
        shards = self._ids.get(spec.shard_group)
        if shards is None:
            shards = tuple(ShardId(spec.shard_group, number) for number in range(self.shards_per_group))
            self._ids[spec.shard_group] = shards
        return shards[shard_number(key, self.shards_per_group)]

    def shard_of_target(self, message: Message) -> ShardId:
        """Return the shard of a message's entity; the message remembers it."""
        shard = message.shard_id
        if shard is None:
            shard = message.shard_id = self.shard_of(self._specs[message.spec.entity_type], message.entity_id)
        return shard


def _shard_key(spec: EntitySpec, shard_key: Callable[[str], str], entity_id: str) -> str:
    try:
        # `str.encode` fails for what is not a string, here, where the error can name the id that it came from.
        return str.encode(shard_key(entity_id)).decode()
    except Exception as exc:
        text = f"{spec.name}/{entity_id}: its shard_key failed: {summary_of(exc)}"
        raise MalformedMessage(text) from exc
