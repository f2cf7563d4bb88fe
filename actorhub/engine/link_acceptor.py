"""Taking links on behalf of a runner that may still be starting."""

from actorhub.core.errors import RunnerUnavailable
from actorhub.engine.runner import Runner
from actorhub.transport.ports import Link, LinkEvents


class LinkAcceptor:
    """Takes links on behalf of a runner that may still be starting. Until it is ready, they are refused.

    The transport must listen before the runner exists, because the runner registers the address that was bound. A link
    is refused before the accepting end says `Hello`, so to the peer, a link that is established is one that works; a
    peer whose link was refused tries again.
    """

    def __init__(self) -> None:
        self.runner: Runner | None = None

    def accept(self, link: Link) -> LinkEvents:
        """Pass the link on to the runner.

        Raises:
            RunnerUnavailable: The runner is not ready yet.
        """
        if self.runner is None:
            raise RunnerUnavailable("this runner is starting")
        return self.runner.accept(link)
