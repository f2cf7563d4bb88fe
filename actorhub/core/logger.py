"""Loggers that never raise: filters and handlers are the program's, and a run must end whatever they do."""

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Final

_RAISED: Final = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)
"""What a filter, a handler or the text of an error may raise by itself; Ctrl-C is an order of the user."""


class _Handling:
    """Hands records on, and says on standard error what filters and handlers raise."""

    def __init__(self, handle: Callable[[logging.LogRecord], None]) -> None:
        self._handle = handle

    def __call__(self, record: logging.LogRecord) -> None:
        try:
            self._handle(record)
        except _RAISED as error:  # user code: and there is no log to write it to
            kind = type(error).__name__
            sys.stderr.write(f"actorhub: a filter or handler of logger {record.name} raised {kind}: {record.msg}\n")


def get_logger(name: str) -> logging.Logger:
    """Return the logger of this name. What its filters and handlers raise does not reach whoever logs."""
    logger = logging.getLogger(name)
    if not isinstance(logger.handle, _Handling):
        logger.handle = _Handling(logger.handle)  # type: ignore[method-assign]
    return logger
