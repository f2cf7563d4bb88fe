"""What the command logs: the standard library's logging, as text or JSON lines on standard error."""

import logging
import sys
from datetime import UTC, datetime
from typing import Final

import msgspec

from actorhub.core.config import Settings, mask_secrets
from actorhub.log_context import FIELDS, HandlerFields

_encode: Final = msgspec.json.Encoder(enc_hook=str).encode


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(process)d %(levelname)s %(name)s%(place)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields = record.__dict__
        record.place = f" [{fields['entity_type']}/{fields['entity_id']}]" if fields["entity_type"] else ""
        return mask_secrets(super().format(record))


class _Json(logging.Formatter):
    """One JSON object per record and line; a record of a handler has fields that say which entity it is about."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask_secrets(record.getMessage()),
            "pid": record.process,
        }
        if record.__dict__["entity_type"]:
            line |= {name: record.__dict__[name] for name in FIELDS}
        if record.exc_info:
            line["exception"] = mask_secrets(self.formatException(record.exc_info))
        return _encode(line).decode()


def set_up_logging(settings: Settings) -> None:
    """Send every logger's records, and warnings, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(HandlerFields())
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
