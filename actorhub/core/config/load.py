"""Reading settings: flags and keywords override the environment, which overrides `actorhub.toml`, then defaults."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from actorhub.core.config.settings import SETTINGS, Settings
from actorhub.core.errors import ConfigurationError

Origin = Literal["flag", "hub.connect", "hub.runner"]
"""Where the overrides come from. Error messages name it."""

CONFIG_FILE: Final = "actorhub.toml"
CONFIG_VARIABLE: Final = "ACTORHUB_CONFIG"


def load_settings(
    overrides: Mapping[str, object],
    environ: Mapping[str, str],
    toml_path: Path | None = None,
    *,
    origin: Origin = "hub.connect",
) -> Settings:
    """Read and check the settings of this process.

    Args:
        overrides: Flags or keywords by setting name, as text or typed values. `None` and `()` mean "not given".
        environ: The environment. An empty variable counts as not set.
        toml_path: The file to read. By default it is the file that ACTORHUB_CONFIG names, or else `actorhub.toml` in
            the current directory if it exists.
        origin: Where `overrides` come from.

    Raises:
        ConfigurationError: A value is not valid, a name is unknown, or two values contradict each other. The text
            names the setting, where its value comes from, and what is allowed.
    """
    file, content = _read_file(environ, toml_path)
    for unknown in content.keys() - SETTINGS.keys():
        raise ConfigurationError(f"{file}: unknown setting {unknown!r}{_suggestion(unknown)}")
    for unknown in overrides.keys() - SETTINGS.keys():
        raise ConfigurationError(f"{_override_source(origin, unknown)}: unknown setting{_suggestion(unknown)}")
    typed: dict[str, object] = {}
    sources: dict[str, str] = {}
    for name, setting in SETTINGS.items():
        for source, value in (
            (_override_source(origin, name), overrides.get(name)),
            (f"environment {setting.env}", environ.get(setting.env) or None),
            (f"{file} key {name}", content.get(name)),
        ):
            if value is not None and value != ():
                typed[name] = setting.checked(value, source)
                sources[name] = source
                break
    settings = msgspec.convert(typed, Settings)
    _check_together(settings, sources)
    return settings


def _read_file(environ: Mapping[str, str], toml_path: Path | None) -> tuple[str, dict[str, object]]:
    named = toml_path or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    source = f" ({CONFIG_VARIABLE})" if named and not toml_path else ""
    path = named or Path(CONFIG_FILE)
    try:
        content: dict[str, object] = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        if not named:
            return str(path), {}
        raise ConfigurationError(f"settings file {path}{source} does not exist") from error
    except OSError as error:
        raise ConfigurationError(f"settings file {path}{source} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"settings file {path}{source} is not valid TOML: {error}") from error
    return str(path), content


def _check_together(settings: Settings, sources: Mapping[str, str]) -> None:
    if settings.workers > 1 and (source := sources["workers"]).startswith("hub."):
        raise ConfigurationError(
            f"workers = {settings.workers} (from {source}): this process is a runner or client, and starts no others: "
            "leave it out, or run `actorhub serve MODULE:HUB --workers N`"
        )
    tls = {name: sources.get(name) for name in ("tls_cert", "tls_key", "tls_ca")}
    missing = [name for name, source in tls.items() if source is None]
    if 0 < len(missing) < len(tls):
        given = ", ".join(f"{name} (from {source})" for name, source in tls.items() if source)
        raise ConfigurationError(
            f"mutual TLS needs tls_cert, tls_key and tls_ca; set: {given}; missing: {', '.join(missing)}"
        )
    if settings.locks == "lease" and settings.lock_database_url is not None:
        raise ConfigurationError(
            f"locks = 'lease' (from {sources['locks']}) needs no other way to the database, and lock_database_url "
            f"(from {sources['lock_database_url']}) names one: leave one of the two out"
        )
    listen = f"listen = {settings.listen} (from {sources.get('listen', 'the default')})"
    if not settings.listen.is_loopback and not settings.has_mutual_tls and not settings.insecure:
        raise ConfigurationError(
            f"{listen} is reachable from other machines without mutual TLS: set tls_cert, tls_key and tls_ca, "
            "listen on a loopback address such as 127.0.0.1:7700, or accept the risk with insecure (--insecure)"
        )
    if settings.listen.is_wildcard and settings.advertise is None:
        raise ConfigurationError(
            f"{listen} stands for all addresses: set advertise (--advertise HOST:PORT) to the one that peers should use"
        )


def _override_source(origin: Origin, name: str) -> str:
    if origin == "flag":
        setting = SETTINGS.get(name)
        return f"flag {setting.flag if setting else name}"
    return f"{origin}({name}=...)"


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), SETTINGS, n=1)
    return f": did you mean {close[0]!r}?" if close else f": use one of {', '.join(SETTINGS)}"
