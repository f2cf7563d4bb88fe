"""Declaring singletons: subclass `Singleton`. The cluster keeps exactly one of each alive."""

import sys
from datetime import timedelta
from typing import Never

import msgspec

from actorhub._declaration import declare
from actorhub._options import SingletonOptions, check_keywords
from actorhub.entity import Declared, S


class Singleton(Declared[S]):
    """A special entity of which the cluster keeps exactly one alive, on the runner that owns its shard.

    It starts as soon as a runner owns its shard, without waiting for a message. After a failure it starts again, with
    growing pauses. Its public async methods are handlers, like those of an entity; call them with
    `cluster.singleton(Cls)`. Methods with `@cron` are run by schedules.

    At most one runner *commits* for it, fenced by the epoch of the shard. A leader that is frozen or cut off can still
    execute Python for a moment while the next one works already, but Postgres refuses everything it tries to commit.

    A `Singleton[State]` has a `state`, which is loaded before it starts. If the stored state no longer fits its type,
    this is counted and logged, and the singleton starts with `State()`. The stored state stays until the next commit.

    Args:
        name: The name to which messages are addressed. By default the class name in snake case.
        shard_group: The shard group that the singleton's shard belongs to. By default `"default"`.
        mailbox_capacity: How many messages can wait. The next one fails with `MailboxFull`. By default 4096.
        state_ttl: How long a state is valid after its last commit. A leader that starts later begins with `State()`.
            Data of a singleton that nobody has led for this long, and whose state is as old, is deleted. By default
            `None`: without limit.

    A subclass of a singleton class inherits `mailbox_capacity` and `state_ttl`. `name` is its own. If the base class
    has a `shard_group`, it must say its own.

    Raises:
        TypeError: At class definition, if a keyword or a member of the class is not valid. The text says what to write.
    """

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        shard_group: str | msgspec.UnsetType = msgspec.UNSET,
        mailbox_capacity: int | msgspec.UnsetType = msgspec.UNSET,
        state_ttl: timedelta | msgspec.UnsetType | None = msgspec.UNSET,
        **unknown: Never,
    ) -> None:
        try:
            super().__init_subclass__(**unknown)
        except TypeError:
            check_keywords(cls, unknown, SingletonOptions)
            raise
        given = {
            "name": name,
            "shard_group": shard_group,
            "mailbox_capacity": mailbox_capacity,
            "state_ttl": state_ttl,
        }
        frame = sys._getframe(1)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        cls.__declaration__ = declare(cls, SingletonOptions, given, frame)

    async def on_become_leader(self) -> None:
        """Called when this runner has become the leader: after `on_activate`, before `run` and the first handler.

        The state is loaded, and changes to it are committed. If this raises, the singleton starts again from a new
        instance.
        """

    async def on_lose_leadership(self) -> None:
        """Called after `run` and all handlers have ended, for at most 5 s, once for each successful `on_become_leader`.

        When the singleton is handed over, this runs before the next leader starts, and can commit. When leadership was
        lost by force (a frozen or unreachable runner, a failed commit), it can commit nothing, and the next leader may
        already be at work: check `current().is_leader`. It is not called when the process dies.
        """

    async def run(self) -> None:
        """The main loop of the singleton, called while it leads. Optional: if it returns, the singleton stays alive.

        While `run` waits for something, handlers of the singleton run. Between two of its awaits nothing else of the
        singleton runs. `save()` commits its changes to `state`. Do not await anything between a change and `save()`: a
        handler that fails in the meantime resets the state to what is committed.

        If `run` raises, it is called again, after growing pauses, and the steps since the last `save()` are not
        repeated. It is cancelled when leadership ends.
        """
