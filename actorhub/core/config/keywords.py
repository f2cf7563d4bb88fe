"""The settings as keywords of `hub.connect` and `hub.runner`, for type checkers and completion.

Names and types follow from the table of settings; a test compares them. What a checker cannot know, such as ranges and
which settings contradict each other, is checked when the settings are loaded.
"""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypedDict

from actorhub.core.config.settings import Locks, LogFormat, LogLevel
from actorhub.core.config.values import HostPort


class SettingKeywords(TypedDict, total=False):
    """Each setting, typed or as the text that the command line takes. `None` means that it is not given."""

    database_url: str | None
    listen: HostPort | str | None
    advertise: HostPort | str | None
    workers: int | None
    weight: float | None
    groups: Sequence[str] | None
    http: HostPort | str | None
    namespace: str | None
    max_connections: int | None
    lock_database_url: str | None
    locks: Locks | None
    admin: HostPort | str | None
    gateway: Sequence[HostPort | str] | None
    tls_cert: Path | str | None
    tls_key: Path | str | None
    tls_ca: Path | str | None
    token: str | None
    insecure: bool | None
    shards_per_group: int | None
    max_resident: int | None
    max_message_bytes: int | None
    max_entity_id_bytes: int | None
    max_call_depth: int | None
    grace: timedelta | float | str | None
    retention: timedelta | float | str | None
    log_format: LogFormat | None
    log_level: LogLevel | None
