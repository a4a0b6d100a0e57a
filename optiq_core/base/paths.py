"""Where bases, wheels and prepared libraries are cached."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_path() -> Path:
    """Return the cache directory: ``$OPTIQ_CACHE``, or the platform's cache directory for Optiq."""
    explicit = os.environ.get("OPTIQ_CACHE")
    return Path(explicit).expanduser() if explicit else user_cache_path("optiq")
