"""Where the daemon's log goes. Lines carry ids and counts, never a prompt or an answer."""

from __future__ import annotations

import logging
import logging.handlers
import sys

from optiq_client import paths
from optiq_daemon.config import Settings

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
MAX_BYTES = 16 * 1024 * 1024


def configure_logging(settings: Settings) -> None:
    """Log to `logs/daemon.log` of the home, and to stderr when that is a terminal or a pipe of the caller's."""
    folder = paths.logs_path(settings.home_path)
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(folder / "daemon.log", maxBytes=MAX_BYTES, backupCount=2),
        logging.StreamHandler(sys.stderr),
    ]
    logging.basicConfig(level=settings.log_level.upper(), format=FORMAT, handlers=handlers, force=True)
    # watchdog tells about every inotify event at debug level.
    logging.getLogger("watchdog").setLevel(logging.WARNING)
