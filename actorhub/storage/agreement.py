"""Comparing cluster-wide values."""

import msgspec

from actorhub.core.errors import ConfigurationError
from actorhub.storage.ports import ClusterValues


def check_agreement(stored: ClusterValues, mine: ClusterValues, where: str) -> None:
    """Compare what the cluster agreed on with what this runner was told.

    Raises:
        ConfigurationError: they differ; names each value, both sides, and the remedy.
    """
    theirs = msgspec.structs.asdict(stored)
    differing = [name for name, value in msgspec.structs.asdict(mine).items() if theirs[name] != value]
    if differing:
        values = ", ".join(f"{name} is {theirs[name]!r}, this runner has {getattr(mine, name)!r}" for name in differing)
        raise ConfigurationError(
            f"the cluster in {where} has other values: {values}: start this runner with the cluster's, "
            "or with another namespace"
        )
