"""The first envelope of each direction of a link: what a process accepts from its peer."""

from collections.abc import Sequence

from actorhub.core.envelope import Envelope, Hello
from actorhub.core.errors import ConfigurationError, MalformedMessage


def check_hello(frame: Sequence[Envelope], ours: Hello) -> Hello:
    """Return the peer's `Hello`, which must lead the first frame and agree with ours.

    Raises:
        MalformedMessage: the frame does not begin with a `Hello`.
        ConfigurationError: the peer speaks another protocol version or belongs to another namespace.
    """
    if not frame or not isinstance(frame[0], Hello):
        raise MalformedMessage("the first frame of a link must begin with a Hello")
    hello = frame[0]
    if hello.protocol != ours.protocol:
        raise ConfigurationError(
            f"the peer speaks protocol version {hello.protocol}, this process {ours.protocol}: "
            "run the same release of actorhub on both sides"
        )
    if hello.namespace != ours.namespace:
        raise ConfigurationError(
            f"one side has namespace {hello.namespace!r}, the other {ours.namespace!r}: "
            "use the same `namespace` on both, or connect to another cluster"
        )
    return hello
