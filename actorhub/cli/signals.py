"""SIGTERM and SIGINT: the first asks to leave, the second ends the process at once."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Final

_log: Final = logging.getLogger("actorhub.serve")


def on_stop_signals(asked: Callable[[], None], at_once: Callable[[], None] = lambda: None) -> None:
    """Let the running event loop call `asked` at the first signal; a second one ends the process, after `at_once`.

    The exit code is then 128 + the signal's number.
    """
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def receive(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:
            _log.info("%s: leaving the cluster; a second one ends this process at once", number.name)
            asked()
            return
        _log.warning("%s again: ending at once", number.name)
        at_once()
        logging.shutdown()
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, receive, number)
