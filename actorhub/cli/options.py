"""Command-line options made from the table of settings."""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import click

from actorhub.cli.commands import wrong_settings
from actorhub.core.config import SETTINGS, Setting, Settings, load_settings
from actorhub.core.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])


def setting_options(*names: str) -> Callable[[F], F]:
    """Return a decorator that gives a command the options of these settings, which have no defaults of their own."""

    def decorate(function: F) -> F:
        for name in reversed(names):
            function = _option(SETTINGS[name])(function)
        return function

    return decorate


def load(given: Mapping[str, object]) -> Settings:
    """Return the settings, as given by these flags, the environment and the file.

    Raises:
        WrongSettings: a value is not allowed; ends the command with exit code 2.
    """
    try:
        return load_settings(given, os.environ, origin="flag")
    except ConfigurationError as error:
        raise wrong_settings(error) from error


def _option(setting: Setting) -> Callable[[F], F]:
    text = setting.help + _shown_default(setting)
    if not setting.metavar:
        return click.option(setting.flag, setting.name, is_flag=True, flag_value=True, default=None, help=text)
    return click.option(setting.flag, setting.name, metavar=setting.metavar, default=None, help=text)


def _shown_default(setting: Setting) -> str:
    default = setting.default
    if default is None or default is False or default == ():
        return f"  [{setting.env}]"
    if isinstance(default, timedelta):
        default = _shown_duration(default)
    return f"  [default: {default}; {setting.env}]"


def _shown_duration(value: timedelta) -> str:
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
