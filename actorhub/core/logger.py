"""Loggers that never raise: filters and handlers are the program's, and a run must end whatever they do."""

import logging
import sys
from collections.abc import Callable


class _Handling:
    """Hands records on, and says on standard error what filters and handlers raise."""

    def __init__(self, handle: Callable[[logging.LogRecord], None]) -> None:
        self._handle = handle

    def __call__(self, record: logging.LogRecord) -> None:
        try:
            self._handle(record)
        except KeyboardInterrupt:  # an order of whoever sits at the terminal
            raise
        except BaseException as error:  # noqa: BLE001 - user code: and there is no log to write it to
            kind = type(error).__name__
            sys.stderr.write(f"actorhub: a filter or handler of logger {record.name} raised {kind}: {record.msg}\n")


def get_logger(name: str) -> logging.Logger:
    """Return the logger of this name. What its filters and handlers raise does not reach whoever logs."""
    logger = logging.getLogger(name)
    if not isinstance(logger.handle, _Handling):
        logger.handle = _Handling(logger.handle)  # type: ignore[method-assign]
    return logger
