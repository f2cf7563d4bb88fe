"""Virtual actors on Postgres: every id is exactly one live, typed, asyncio object."""

import os

# gRPC reads this variable when it is imported. Its fork handlers can crash the child when a program starts another one
# (seen under uvloop). They are of no use here: a forked process cannot use gRPC anyway, and workers are spawned.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from actorhub._checkpoints import Deferred
from actorhub.client import Client
from actorhub.cluster import Cluster
from actorhub.context import Current, current
from actorhub.core.address import ShardId
from actorhub.core.config import SettingKeywords
from actorhub.core.cron import Breaker
from actorhub.core.errors import (
    ActorhubError,
    CallCycle,
    CallTimeout,
    ConfigurationError,
    DeferredFailed,
    DuplicateKey,
    EntityError,
    EntityNotAssigned,
    HandlerFailed,
    MailboxFull,
    MalformedMessage,
    MessageCancelled,
    MessageTooLarge,
    NotConnected,
    PersistenceError,
    RunnerNotRegistered,
    RunnerUnavailable,
    ShuttingDown,
    SingletonError,
    UnknownEntityType,
    UnknownHandler,
    UnknownMessage,
)
from actorhub.core.retry import Retry
from actorhub.core.snowflake import Snowflake
from actorhub.cron import cron
from actorhub.entity import Entity, handler
from actorhub.hub import Hub
from actorhub.key_value import KeyValue
from actorhub.singleton import Singleton

__all__ = [
    "ActorhubError",
    "Breaker",
    "CallCycle",
    "CallTimeout",
    "Client",
    "Cluster",
    "ConfigurationError",
    "Current",
    "Deferred",
    "DeferredFailed",
    "DuplicateKey",
    "Entity",
    "EntityError",
    "EntityNotAssigned",
    "HandlerFailed",
    "Hub",
    "KeyValue",
    "MailboxFull",
    "MalformedMessage",
    "MessageCancelled",
    "MessageTooLarge",
    "NotConnected",
    "PersistenceError",
    "Retry",
    "RunnerNotRegistered",
    "RunnerUnavailable",
    "SettingKeywords",
    "ShardId",
    "ShuttingDown",
    "Singleton",
    "SingletonError",
    "Snowflake",
    "UnknownEntityType",
    "UnknownHandler",
    "UnknownMessage",
    "cron",
    "current",
    "handler",
]
