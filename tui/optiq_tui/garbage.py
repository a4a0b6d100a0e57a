"""Garbage collection that does not hold up the loop.

A full collection visits every object there is, and with thousands of adapters that takes 200 ms and more: by far the
longest that a key would wait. What the dashboard drops is freed by counting references; cycles are left by closed
dialogs and connections only.
"""

from __future__ import annotations

import gc

# Of the young generations a few milliseconds each, and full collections after millions of objects.
THRESHOLDS = (3000, 4, 500)


def collect_rarely() -> None:
    """Call once, when everything is imported: no collection visits again what is there by now."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
