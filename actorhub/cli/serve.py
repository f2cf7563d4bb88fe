"""`actorhub serve`: one runner, or several worker processes."""

import logging
from typing import Final

import click

from actorhub.cli.logs import set_up_logging
from actorhub.cli.options import load, setting_options
from actorhub.cli.program import load_hub
from actorhub.cli.running import run_one
from actorhub.cli.workers import run_workers
from actorhub.core.config import SETTINGS

_log: Final = logging.getLogger("actorhub.serve")

_NOT_HERE: Final = frozenset({"admin", "gateway"})


@click.command
@click.argument("reference", metavar="MODULE:HUB")
@setting_options(*(name for name in SETTINGS if name not in _NOT_HERE))
@click.pass_context
def serve(ctx: click.Context, /, reference: str, **flags: object) -> None:
    """Run a hub's entities as part of the cluster.

    MODULE:HUB names a Hub in a module, such as shop:hub in shop.py. The command prints one line when it owns shards and
    takes calls. SIGTERM or Ctrl-C hands the shards over and ends it; a second one ends it at once.
    """
    settings = load(flags)
    set_up_logging(settings)
    if settings.http is not None:
        _log.warning("http = %s has no effect: this release serves no HTTP", settings.http)
    if settings.workers == 1:
        ctx.exit(run_one(load_hub(reference), settings))
    ctx.exit(run_workers(reference, settings, flags))
