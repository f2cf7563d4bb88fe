"""Finds entities that wait for each other, for the error of a call whose deadline has ended the wait.

A cycle within one chain of calls is refused when it is made (`inbound.check_chain`). Calls that began independently of
each other share no chain: each of them waits in a mailbox whose entity waits, by a chain of its own, for another one.
Nothing is recorded for this while calls are made. The mailboxes and the chains of what waits in them say it all.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from actorhub.engine.model.records import HostedType, Message

_MOST: Final = 256
"""Messages that are looked at: many deadlines may pass at once, and mailboxes may be full."""


def deadlock_of(message: Message, types: Mapping[str, HostedType]) -> str:
    """Return what to add to the error of a call that waits for an entity here; empty if no deadlock is found.

    Only mailboxes of this process are searched, so a cycle over several runners stays unknown. So does one that another
    deadline, which passed a moment before, has broken: calls inherit deadlines, so several may pass at once.
    """
    target = message.address
    seen = {target}
    waits: deque[tuple[str, ...]] = deque([(target,)])
    """Paths of entities, each of which waits for the next one; the last is the target."""
    # Who made the call waits for the target also where the call is not in its mailbox, because it runs. But one that
    # runs within the target's own run, as reentrant ones may, waits for nobody.
    own = () if target in message.chain else (message,)
    found: Iterable[Message] = (*own, *islice(_mailbox(target, types), _MOST))
    left = _MOST
    while waits:
        path = waits.popleft()
        for other in found:
            left -= 1
            for place, entity in enumerate(other.chain):
                if entity == target:
                    ring = " -> ".join((*other.chain[place:], *path))
                    return f": deadlock: {ring}: each waits for the next one: use tell"
                if entity not in seen:
                    seen.add(entity)
                    waits.append((*other.chain[place:], *path))
        if left <= 0 or not waits:
            break
        found = islice(_mailbox(waits[0][0], types), left)
    return ""


def _mailbox(address: str, types: Mapping[str, HostedType]) -> Iterable[Message]:
    """Return what waits in the mailbox of `type/id`."""
    name, _, entity_id = address.partition("/")
    hosted = types.get(name)
    cell = None if hosted is None else hosted.cells.get(entity_id)
    return () if cell is None or cell.queue is None else cell.queue
