"""`actorhub serve`: one runner, or several worker processes."""

from typing import Final

import click

from actorhub.cli.commands import wrong_settings
from actorhub.cli.logs import set_up_logging
from actorhub.cli.options import load, setting_options
from actorhub.cli.program import load_hub
from actorhub.cli.running import run_one
from actorhub.cli.workers import run_workers
from actorhub.core.config import SETTINGS, Settings
from actorhub.core.errors import ConfigurationError

_NOT_HERE: Final = frozenset({"admin", "gateway"})
_LAST_PORT: Final = 65_535


@click.command
@click.argument("reference", metavar="MODULE:HUB")
@setting_options(*(name for name in SETTINGS if name not in _NOT_HERE))
@click.pass_context
def serve(ctx: click.Context, /, reference: str, **flags: object) -> None:
    """Run a hub's entities as part of the cluster.

    MODULE:HUB names a Hub in a module, such as shop:hub in shop.py. The command prints one line when its runner owns
    shards and takes calls. SIGTERM or Ctrl-C hands the shards over and ends it; a second one ends it at once.
    """
    settings = load(flags)
    _check_http_ports(settings)
    set_up_logging(settings)
    if settings.workers == 1:
        ctx.exit(run_one(load_hub(reference), settings))
    ctx.exit(run_workers(reference, settings, flags))


def _check_http_ports(settings: Settings) -> None:
    if settings.http is not None and settings.http.port and settings.http.port + settings.workers - 1 > _LAST_PORT:
        raise wrong_settings(
            ConfigurationError(
                f"http = {settings.http}: {settings.workers} workers take a port each, from this one on, and the last "
                f"port is {_LAST_PORT}: choose a lower one"
            )
        )
