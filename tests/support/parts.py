"""The engine underneath a connected program, for tests that look inside."""

from actorhub.cluster import Cluster, part_of
from actorhub.engine.client_node import ClientNode
from actorhub.engine.host import Host
from actorhub.engine.runner import Runner


def runner_of(cluster: Cluster) -> Runner:
    """Return the runner that this process is."""
    part = part_of(cluster)
    assert isinstance(part, Runner)
    return part


def host_of(cluster: Cluster) -> Host:
    """Return what a runner hosts, with its counts."""
    return runner_of(cluster).host


def client_of(cluster: Cluster) -> ClientNode:
    """Return the client that this process is."""
    part = part_of(cluster)
    assert isinstance(part, ClientNode)
    return part
