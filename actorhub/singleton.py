"""Declaring singletons: subclass `Singleton`; the cluster keeps exactly one of each alive."""

import sys
from datetime import timedelta
from typing import Any

from actorhub._declaration import SingletonOptions, declare, snake_case
from actorhub.entity import Declared, S


class Singleton(Declared[S]):
    """A special entity of which the cluster keeps exactly one alive: on the runner that owns its shard, at all times.

    It is started as soon as a runner owns its shard, without waiting for a message, and again after each failure, with
    growing pauses. Its public async methods are handlers, as those of an entity; `cluster.singleton(Cls)` calls them.
    Methods with `@cron` are run by schedules.

    At most one runner *commits* for it, fenced by the shard's epoch. A leader that is frozen or cut off may still
    execute Python for a moment, while the next one is at work already, but nothing that it commits is accepted.

    With `Singleton[State]` it has a `state`, loaded before it starts. A stored state that does not fit its type any
    more is counted, logged, and left in the store until the next commit; the singleton starts with `State()`.

    Args:
        name: What messages are addressed to; default is the class name in snake case.
        shard_group: Of which group one shard has it.
        mailbox_capacity: How many messages may wait; one more fails with `MailboxFull`.
        state_ttl: A state that nobody committed for that long is forgotten: a leader that starts then has `State()`,
            and what a singleton that nobody leads any more left behind is deleted.

    Raises:
        TypeError: at class definition, when a public name is anything but an async method or an UPPER_CASE constant.
    """

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        shard_group: str = "default",
        mailbox_capacity: int = 4096,
        state_ttl: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        options = SingletonOptions(
            name=snake_case(cls.__name__) if name is None else name,
            shard_group=shard_group,
            mailbox_capacity=mailbox_capacity,
            state_ttl=state_ttl,
        )
        # Annotations may name what only the scope of the class statement knows.
        scope = sys._getframe(1).f_locals  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        cls.__declaration__ = declare(cls, options, scope)

    async def on_become_leader(self) -> None:
        """Run once this runner leads: after `on_activate`, before `run` and the first handler.

        The state is loaded, and what this changes in it is committed. If it raises, the singleton is made anew.
        """

    async def on_lose_leadership(self) -> None:
        """Run once for each `on_become_leader` that returned, after `run` and every handler ended; for at most 5 s.

        When the singleton is handed over it runs before the next leader starts, and may commit. When leadership was
        lost by force (a frozen or unreachable runner, a failed commit) it can commit nothing, and the next leader may
        be at work already: `current().is_leader` tells. It is not run when the process dies.
        """

    async def run(self) -> None:
        """Work for as long as the singleton leads. Optional; if it returns, the singleton stays alive.

        While it waits for something, handlers of the singleton run; between two of its awaits nothing else of the
        singleton does. What it changes in `state` is committed by `save()`: change and save without an await in
        between, since a handler that fails meanwhile takes the state back to what is committed.

        If it raises, it is started again with growing pauses, and the steps since the last `save()` are not repeated.
        It is cancelled when leadership ends.
        """
