"""The first envelope of each direction of a link: what a process accepts from its peer."""

from collections.abc import Sequence

from actorhub.core.envelope import Envelope, Hello
from actorhub.core.errors import ConfigurationError, MalformedMessage


def check_hello(frame: Sequence[Envelope], ours: Hello) -> Hello:
    """Return the peer's `Hello`, which must lead the first frame and agree with ours.

    Raises:
        MalformedMessage: the frame does not begin with a `Hello`.
        ConfigurationError: the peer speaks another protocol version or belongs to another namespace, cluster or era.
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
    check_era(hello, ours)
    return hello


def check_era(hello: Hello, ours: Hello) -> None:
    """Compare whose database the two sides use. Who has none, or is of a release that does not say, fits everywhere.

    A copy of a database names the original's runners, and holds epochs that look like theirs.

    Raises:
        ConfigurationError: the databases are not the same, or one side has not noticed yet that theirs was restarted.
    """
    if hello.cluster and ours.cluster and hello.cluster != ours.cluster:
        raise ConfigurationError(
            f"one side uses the database of cluster {hello.cluster}, the other that of cluster {ours.cluster}; "
            "one may be a copy of the other: name the same database on both sides"
        )
    if hello.era and ours.era and hello.era != ours.era:
        raise ConfigurationError(
            f"one side is in era {hello.era} of the database, the other in era {ours.era}: the server was restarted, "
            "which one side has not noticed yet, or the two sides use different servers, one with a copy of the other's"
            " data"
        )
