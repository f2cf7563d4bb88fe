"""What user code raises, as the error that its caller gets."""

import logging

from actorhub.core.errors import ActorhubError, HandlerFailed
from actorhub.core.texts import is_printable, name_of, only_error_in, text_of, traceback_of


def takes_outcome(error: ActorhubError, *, ran: bool) -> bool:
    """Set an error's `possibly_executed`; return `False` if its class, which may be the program's, prevents that."""
    try:
        error.possibly_executed = ran
        return error.possibly_executed is ran
    except BaseException:  # noqa: BLE001 - user code: the class of a program may refuse in any way
        return False


def handler_failed(error: BaseException) -> HandlerFailed:
    """Return the reply for an exception of user code; it carries the traceback."""
    only = only_error_in(error)
    return HandlerFailed(name_of(type(only)), text_of(only), traceback_of(error))


def log_failure(log: logging.Logger, what: str, error: BaseException, reply: HandlerFailed) -> None:
    """Log an exception of user code with its traceback; one that no log can show, by what the reply has of it."""
    if is_printable(error):
        log.error("%s", what, exc_info=error)
    else:
        log.error("%s\n%s", what, reply.traceback)
