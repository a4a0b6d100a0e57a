"""Classes of modules whose calls are replaced for a while: a model keeps its modules, and is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Call = Callable[..., Any]


@contextmanager
def patched_calls(calls: Mapping[Any, Call]) -> Iterator[None]:
    """While entered, instances of these classes are called by these functions."""
    originals = {kind: kind.__call__ for kind in calls}
    for kind, call in calls.items():
        kind.__call__ = call
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.__call__ = original


@contextmanager
def patched_blocks(model: Any, wrap: Callable[[Call], Call]) -> Iterator[None]:
    """While entered, every block of a model is called by what ``wrap`` makes of its call."""
    with patched_calls({kind: wrap(kind.__call__) for kind in {type(block) for block in model.layers}}):
        yield
