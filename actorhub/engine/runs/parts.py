"""The parts that carry out runs, put together."""

from collections.abc import Callable

from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import Message
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.runs.background import BackgroundTasks
from actorhub.engine.runs.checkpoints import Checkpoints
from actorhub.engine.runs.commits import Commits
from actorhub.engine.runs.completion import Completion, Rebuilder
from actorhub.engine.runs.deferred import Deferrals
from actorhub.engine.runs.hooks import Hooks
from actorhub.engine.runs.lookout import Lookout
from actorhub.engine.runs.saving import Saving
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.runs.streams import Streams
from actorhub.engine.runs.waits import DurableWaits
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import Storage


class RunParts:
    """Makes the parts bottom-up: turns, commits, replies, and what goes on in the middle of a run."""

    def __init__(
        self,
        *,
        storage: Storage,
        supervisor: Supervisor,
        incarnation: str,
        sharding: Sharding,
        limits: Limits,
        scheduler: Scheduler,
        rebuilder: Rebuilder,
        take_back: Callable[[Message], None],
    ) -> None:
        """Prepare; the callbacks are those of `Completion` and `Streams`."""
        self.scheduler = scheduler
        commits = Commits(
            storage=storage,
            supervisor=supervisor,
            incarnation=incarnation,
            sharding=sharding,
            retention=limits.retention,
        )
        size = limits.max_message_bytes
        self.completion = Completion(scheduler=scheduler, commits=commits, max_message_bytes=size, rebuilder=rebuilder)
        self.saving = Saving(
            scheduler=scheduler,
            commits=commits,
            completion=self.completion,
            checkpoints=storage.checkpoints,
            supervisor=supervisor,
        )
        self.streams = Streams(
            scheduler=scheduler,
            completion=self.completion,
            saving=self.saving,
            supervisor=supervisor,
            rebuilder=rebuilder,
            max_message_bytes=size,
            take_back=take_back,
        )
        self.checkpoints = Checkpoints(store=storage.checkpoints, saving=self.saving, max_message_bytes=size)
        self.lookout = Lookout(checkpoints=storage.checkpoints, messages=storage.messages, clock=supervisor.clock)
        self.waits = DurableWaits(
            checkpoints=self.checkpoints,
            saving=self.saving,
            scheduler=scheduler,
            lookout=self.lookout,
            clock=supervisor.clock,
        )
        self.deferrals = Deferrals(storage.checkpoints, self.waits, self.lookout)
        self.background = BackgroundTasks(scheduler=scheduler, supervisor=supervisor)
        self.hooks = Hooks(scheduler=scheduler, completion=self.completion, saving=self.saving, supervisor=supervisor)
