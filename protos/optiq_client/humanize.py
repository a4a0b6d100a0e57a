"""Numbers as people read them. Shared by the command line and the dashboard."""

from __future__ import annotations

from datetime import UTC, datetime

DIGEST_LENGTH = 12


def size(count: int) -> str:
    """Bytes in binary units, three figures: ``538 MiB``, ``1.9 GiB``; a dash for none."""
    if count <= 0:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(number: int) -> str:
    """A count, three figures: ``461 K``, ``1.29 M``."""
    if number < 1000:
        return str(number)
    value = float(number)
    for unit in ("K", "M", "G"):
        value /= 1000
        if value < 1000:
            return f"{value:.3g} {unit}"
    return f"{value:.0f} G"


def duration(seconds: float) -> str:
    """``41s``, ``2m10s``, ``3h25m``, ``2d4h``."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left}s"
    minutes, rest = divmod(left, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h"


def since(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago; a dash if never."""
    if moment is None:
        return "-"
    return duration(((now or datetime.now(UTC)) - moment).total_seconds())


def short_digest(digest: str) -> str:
    """The first twelve digits; a dash for none."""
    return digest[:DIGEST_LENGTH] or "-"


def ranks(smallest: int, largest: int) -> str:
    """``8`` or ``8-16``; a dash if unknown."""
    if not largest:
        return "-"
    return str(largest) if smallest == largest else f"{smallest}-{largest}"
