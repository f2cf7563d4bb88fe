"""The table of all settings. Type, default, allowed values and help of a setting stand once, at its field."""

import typing
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from actorhub.core.config import values
from actorhub.core.config.database_url import WrongUrl
from actorhub.core.config.values import HostPort, mask_secrets
from actorhub.core.errors import ConfigurationError
from actorhub.core.option_types import check_record
from actorhub.core.texts import shown

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
Locks = Literal["session", "lease"]

_NAME_RULE: Final = "a lower-case letter, then up to 30 lower-case letters, digits or underscores"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """How one setting is read and explained. The command line, the environment and the file all use it."""

    parse: Callable[[object], object]
    """Takes text or a typed value and returns the typed value, or raises `ValueError`."""
    allowed: str
    """What an error message tells the user to use."""
    help: str
    """One line for `--help`, with the unit."""
    metavar: str = "TEXT"
    """Placeholder in `--help`, empty for a switch that takes no value."""
    flag: str = ""
    """Command-line flag, such as `--max-resident`."""
    secret: bool = False
    """Whether the value must never be shown."""
    name: str = ""
    """Name in `Settings`, as a keyword and in `actorhub.toml`."""
    default: object = None
    """Typed value that holds when no source sets one."""

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return f"ACTORHUB_{self.name.upper()}"

    def checked(self, value: object, source: str) -> object:
        """Return `value` typed.

        Raises:
            ConfigurationError: It is not valid. The text names the setting, `source`, and what is allowed.
        """
        try:
            return self.parse(value)
        except WrongUrl as error:
            raise ConfigurationError(f"{self.name} (from {source}) is not valid: {error}") from None
        except (ValueError, OverflowError):
            # Not chained: the parser's own error may quote a secret that the text masks.
            raise ConfigurationError(
                f"{self.name} = {self.shown(value)} (from {source}) is not valid: use {self.allowed}"
            ) from None

    def shown(self, value: object) -> str:
        """Return `value` for messages and logs, with secrets masked and its length bounded."""
        if self.secret:
            return "***"
        if isinstance(value, str):
            return repr(mask_secrets(value)[:200])
        return mask_secrets(str(value) if isinstance(value, HostPort | Path | timedelta) else shown(value))


def _whole(minimum: int, maximum: int, text: str) -> Setting:
    allowed = f"a whole number from {minimum} to {maximum}"
    return Setting(parse=values.whole(minimum, maximum), allowed=allowed, help=text, metavar="N")


def _duration(minimum: timedelta, maximum: timedelta, limits: str, text: str) -> Setting:
    allowed = f"a duration {limits}, such as 500ms, 15s, 5m, 2h, 1d, or a number of seconds"
    return Setting(parse=values.duration(minimum, maximum), allowed=allowed, help=text, metavar="DURATION")


def _path(text: str) -> Setting:
    return Setting(parse=values.parse_path, allowed="a path", help=text, metavar="PATH")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of a process, checked and typed. `repr` masks secrets."""

    database_url: Annotated[
        str | None,
        Setting(
            parse=values.parse_database_url,
            allowed="a URL such as postgresql://user:password@host:5432/database",
            help="URL of the Postgres database. Default: an embedded Postgres under ./.actorhub.",
            metavar="URL",
            flag="--database",
        ),
    ] = None
    listen: Annotated[
        HostPort,
        Setting(
            parse=values.parse_host_port,
            allowed="HOST:PORT, such as 127.0.0.1:7700 or [::1]:7700; port 0 picks a free port",
            help="Address on which this runner's gRPC server listens.",
            metavar="HOST:PORT",
        ),
    ] = HostPort("127.0.0.1", 7700)
    advertise: Annotated[
        HostPort | None,
        Setting(
            parse=values.parse_target,
            allowed="a HOST:PORT that other machines can connect to, not port 0, 0.0.0.0 or [::]",
            help="Address at which peers and clients reach this runner. Default: the listen address.",
            metavar="HOST:PORT",
        ),
    ] = None
    workers: Annotated[int, _whole(1, 1024, "Runner processes to start.")] = 1
    weight: Annotated[
        float,
        Setting(
            parse=values.parse_weight,
            allowed="a number from 0.001 to 1000",
            help="This runner's share of the shards, relative to the other runners.",
            metavar="W",
        ),
    ] = 1.0
    groups: Annotated[
        tuple[str, ...],
        Setting(
            parse=values.parse_names,
            allowed=f"one or more different names, separated by commas, each {_NAME_RULE}",
            help="Shard groups that this runner hosts. Default: the groups of the declared entities.",
            metavar="A,B",
        ),
    ] = ()
    http: Annotated[
        HostPort | None,
        Setting(
            parse=values.parse_host_port,
            allowed="HOST:PORT, such as 127.0.0.1:8080; port 0 picks a free port",
            help="Address for probes, metrics and a status page. Default: off. Further workers use the next ports.",
            metavar="HOST:PORT",
        ),
    ] = None
    namespace: Annotated[
        str,
        Setting(
            parse=values.parse_name,
            allowed=_NAME_RULE,
            help="Name of the cluster and of its database schema. Clusters with different names are independent.",
            metavar="NAME",
        ),
    ] = "actorhub"
    max_connections: Annotated[
        int, _whole(4, 1000, "Most database connections of this process. A client takes at most 4.")
    ] = 10
    lock_database_url: Annotated[
        str | None,
        Setting(
            parse=values.parse_database_url,
            allowed="a URL of the same database as database_url",
            help="Another way to the same database, for the lock session alone: one without a pooler in transaction "
            "mode. Default: the way of the others.",
            metavar="URL",
            flag="--lock-database",
        ),
    ] = None
    locks: Annotated[
        Locks,
        Setting(
            parse=values.one_of("session", "lease"),
            allowed="session or lease",
            help="How runners hold their shards: by locks of one database session each, or by rows, which works "
            "through any pooler. The same on every runner.",
            metavar="KIND",
        ),
    ] = "session"
    admin: Annotated[
        HostPort,
        Setting(
            parse=values.parse_target,
            allowed="the HOST:PORT of any runner, such as 127.0.0.1:7700",
            help="Runner to which the administration commands connect.",
            metavar="HOST:PORT",
        ),
    ] = HostPort("127.0.0.1", 7700)
    gateway: Annotated[
        tuple[HostPort, ...],
        Setting(
            parse=values.parse_targets,
            allowed="the HOST:PORT of one or more runners, separated by commas",
            help="Runners through which a client without a database reaches the cluster.",
            metavar="HOST:PORT[,…]",
        ),
    ] = ()
    tls_cert: Annotated[Path | None, _path("PEM file with the certificate of this process, for mutual TLS.")] = None
    tls_key: Annotated[Path | None, _path("PEM file with the private key of that certificate.")] = None
    tls_ca: Annotated[Path | None, _path("PEM file with the authority that signs the certificates of peers.")] = None
    token: Annotated[
        str | None,
        Setting(
            parse=values.parse_text,
            allowed="printable text",
            help="Secret that clients and administration commands must present.",
            secret=True,
        ),
    ] = None
    insecure: Annotated[
        bool,
        Setting(
            parse=values.parse_flag,
            allowed="true or false",
            help="Allow listening on other than loopback addresses without mutual TLS.",
            metavar="",
        ),
    ] = False
    shards_per_group: Annotated[int, _whole(1, 1_000_000, "Shards in each group, the same on every runner.")] = 300
    max_resident: Annotated[int, _whole(1, 100_000_000, "Most entities in memory at once, per runner.")] = 100_000
    max_message_bytes: Annotated[int, _whole(1024, 1 << 30, "Largest message or state, in bytes.")] = 4 << 20
    max_entity_id_bytes: Annotated[int, _whole(1, 1000, "Longest entity id, in bytes of UTF-8.")] = 255
    max_call_depth: Annotated[int, _whole(1, 10_000, "Longest chain of calls from entity to entity.")] = 32
    grace: Annotated[
        timedelta,
        _duration(timedelta(), timedelta(days=1), "from 0s to 1d", "How long a shutdown waits for running handlers."),
    ] = timedelta(seconds=15)
    retention: Annotated[
        timedelta,
        _duration(
            timedelta(seconds=1),
            timedelta(days=3650),
            "from 1s to 3650d",
            "How long replies and keys of durable messages are kept.",
        ),
    ] = timedelta(days=1)
    log_format: Annotated[
        LogFormat,
        Setting(
            parse=values.one_of("text", "json"), allowed="text or json", help="Format of log lines.", metavar="FORMAT"
        ),
    ] = "text"
    log_level: Annotated[
        LogLevel,
        Setting(
            parse=values.one_of("debug", "info", "warning", "error", "critical"),
            allowed="debug, info, warning, error or critical",
            help="Lowest severity that is logged.",
            metavar="LEVEL",
        ),
    ] = "info"

    def __post_init__(self) -> None:
        check_record("Settings", self)
        for name, setting in SETTINGS.items():
            if (value := getattr(self, name)) != setting.default:
                setting.checked(value, "Settings")

    @property
    def has_mutual_tls(self) -> bool:
        """Whether certificate, key and authority are all set."""
        return None not in (self.tls_cert, self.tls_key, self.tls_ca)

    def __repr__(self) -> str:
        shown = (
            f"{name}={'None' if (value := getattr(self, name)) is None else setting.shown(value)}"
            for name, setting in SETTINGS.items()
        )
        return f"Settings({', '.join(shown)})"


def _table() -> Mapping[str, Setting]:
    hints = typing.get_type_hints(Settings, include_extras=True)
    settings: dict[str, Setting] = {}
    for field in msgspec.structs.fields(Settings):
        (setting,) = (extra for extra in hints[field.name].__metadata__ if isinstance(extra, Setting))
        settings[field.name] = msgspec.structs.replace(
            setting,
            name=field.name,
            flag=setting.flag or f"--{field.name.replace('_', '-')}",
            default=field.default,
        )
    return settings


SETTINGS: Final = _table()
"""All settings by name, in the order of the fields of `Settings`."""
