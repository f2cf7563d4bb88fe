"""The committed state of one entity of a memory cluster, read and written as its own type."""

import asyncio
from typing import Final, TypeVar

from actorhub._declaration import spec_of
from actorhub.cluster import part_of
from actorhub.core.address import check_entity_id
from actorhub.core.codec import Codec, check_size
from actorhub.core.errors import ConfigurationError, MalformedMessage
from actorhub.engine.model.records import DEAD, Cell
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.runner import Runner
from actorhub.entity import Declared
from actorhub.storage.ports import StoredState
from actorhub.testing.cluster import MemoryCluster

S = TypeVar("S")

_PASSIVATION_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.002


async def state_of(memory: MemoryCluster, entity: type[Declared[S]], entity_id: str) -> S:
    """Return what an activation of the entity would start from now: its committed state, decoded.

    Where nothing is stored, or a singleton's state is older than its `state_ttl`, that is the initial state, as for the
    entity itself; `memory.stored` tells the two apart. What a running handler has changed is not committed yet, and
    so not in it. Changing what is returned changes nothing in the cluster.

    Args:
        memory: The cluster.
        entity: The class of an entity or of a singleton.
        entity_id: Its id; a singleton's is its name.

    Raises:
        TypeError: the class keeps no state.
        ConfigurationError: no hub of the cluster has the class.
        MalformedMessage: the id cannot be one, or what is stored does not fit the type.
    """
    spec, codec = _with_state(memory, entity, entity_id)
    stored = memory.stored(spec.name, entity_id)
    if stored is None or (spec.state_ttl is not None and stored.age > spec.state_ttl):
        initial: S = spec.initial_state()
        return initial
    return codec.decode(stored.data)


async def give_state(memory: MemoryCluster, entity: type[Declared[S]], entity_id: str, state: S) -> None:
    """Write the entity's state past its owner: what it does next, it does from there.

    An entity that is in memory is passivated first, so that it never goes on with what it had: handlers that run are
    waited for, its streams end, `on_deactivate` runs, and what these commit is overwritten. Messages that arrive
    meanwhile may still run on the old state; those that are sent after this returned run on the new one.

    A singleton that a runner leads cannot be put aside like that. Give it its state while no runner is up.

    Args:
        memory: The cluster.
        entity: The class of an entity or of a singleton.
        entity_id: Its id; a singleton's is its name.
        state: The state; it is copied.

    Raises:
        TypeError: the class keeps no state.
        ConfigurationError: no hub of the cluster has the class.
        MalformedMessage: the id cannot be one, or the state does not fit its type.
        MessageTooLarge: the state exceeds the limit of messages.
        RuntimeError: it is a singleton that a runner leads.
        TimeoutError: the entity did not passivate within 10 s. Nothing was written.
    """
    spec, codec = _with_state(memory, entity, entity_id)
    data = check_size(codec.encode(state), memory.settings.max_message_bytes, codec.what)
    codec.check_faithful(state, data)
    await _passivated(memory, spec, entity_id)
    # Nothing may be awaited between the last look for an activation and this: one that began would load the old state.
    stored = memory.stored(spec.name, entity_id)
    memory.overwrite(spec.name, entity_id, StoredState(1 if stored is None else stored.version + 1, data))


def _with_state(memory: MemoryCluster, entity: type[Declared[S]], entity_id: str) -> tuple[EntitySpec, Codec[S]]:
    spec = spec_of(entity)
    if not any(hub.specs.get(spec.name) is spec for hub in memory.hubs):
        raise ConfigurationError(f"{entity.__name__} is not registered with a hub of this cluster")
    if spec.state is None:
        raise TypeError(f"{entity.__name__} keeps no state: declare it as Entity[State] or Singleton[State]")
    check_entity_id(entity_id, memory.settings.max_entity_id_bytes)
    if spec.singleton_id not in (None, entity_id):
        raise MalformedMessage(f"{entity.__name__} is a singleton: its id is {spec.singleton_id!r}, not {entity_id!r}")
    return spec, spec.state


async def _passivated(memory: MemoryCluster, spec: EntitySpec, entity_id: str) -> None:
    """Return in the very step of the loop in which no live runner has the entity in memory."""
    try:
        async with asyncio.timeout(_PASSIVATION_SECONDS):
            while (found := _resident(memory, spec, entity_id)) is not None:
                runner, cell = found
                if spec.singleton_id is not None:
                    raise RuntimeError(
                        f"singleton {spec.name} is led by runner {runner.info.runner.address}: give it a state before "
                        "a runner starts, or after the last one was stopped"
                    )
                # One that is just being made is not closed by this, hence the loop. Without a hook it is gone at once.
                runner.host.activations.close(cell)
                if cell.phase != DEAD:
                    await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise TimeoutError(
            f"{spec.name}/{entity_id} did not passivate within {_PASSIVATION_SECONDS:g} s: one of its handlers runs, "
            "or messages keep coming"
        ) from None


def _resident(memory: MemoryCluster, spec: EntitySpec, entity_id: str) -> tuple[Runner, Cell] | None:
    for cluster in memory.runners:
        runner = part_of(cluster)
        assert isinstance(runner, Runner)
        hosted = runner.host.types.get(spec.name)
        if hosted is not None and (cell := hosted.cells.get(entity_id)) is not None:
            return runner, cell
    return None
