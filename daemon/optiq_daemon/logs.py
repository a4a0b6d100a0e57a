"""Where the daemon's log goes, and its two forms. Lines carry ids and counts, never a prompt or an answer."""

from __future__ import annotations

import dataclasses
import logging
import logging.handlers
import sys
from datetime import datetime
from typing import Any

import msgspec

from optiq_client import paths
from optiq_daemon.config import Settings
from optiq_daemon.observers import Ended

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
MAX_BYTES = 16 * 1024 * 1024

_requests = logging.getLogger("optiq.requests")


def configure_logging(settings: Settings) -> None:
    """Log to `logs/daemon.log` of the home, and to stderr when that is a terminal or a pipe of the caller's."""
    folder = paths.logs_path(settings.home_path)
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(folder / "daemon.log", maxBytes=MAX_BYTES, backupCount=2),
        logging.StreamHandler(sys.stderr),
    ]
    formatter = JsonFormatter() if settings.log_format == "json" else logging.Formatter(FORMAT)
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level.upper(), handlers=handlers, force=True)
    # watchdog tells about every inotify event at debug level.
    logging.getLogger("watchdog").setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of a record that has some."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def log_request(request: Ended) -> None:
    """One line for every request that has ended; with log_format = json it holds each of its figures as a field."""
    _requests.info(
        "request=%s tenant=%s adapter=%s code=%s prompt=%d tokens=%d first_token_ms=%.0f ms=%.0f",
        request.request_id or "-",
        request.tenant,
        request.adapter or "-",
        request.code,
        request.prompt_tokens,
        request.completion_tokens,
        request.first_token_ms,
        request.seconds * 1000,
        extra={"fields": {"event": "request", **_rounded(dataclasses.asdict(request))}},
    )


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in fields.items()}
