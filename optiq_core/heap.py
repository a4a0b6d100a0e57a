"""Keeps Python's garbage collector off the objects that a process has for good.

A full collection stops every thread that runs Python while it looks at all objects: with a base loaded and the model
library imported 140 ms on two CPU cores, three decode steps, set off by whatever made the last few objects.
"""

from __future__ import annotations

import gc


def freeze_heap() -> None:
    """Take what is alive now out of all later collections. For the main program, once it has loaded what it keeps."""
    gc.collect()
    gc.freeze()
