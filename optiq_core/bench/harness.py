"""What all benches share: interleaved runs, and a description of what was measured on what."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..base import LoadedBase

_PACKAGES = ("optiq", "mlx", "mlx-lm", "cmeel-openblas")


def describe_run(base: LoadedBase | None = None) -> dict[str, Any]:
    """Say what a figure was measured with.

    Returns:
        `model` and `profile` (if there is a base), `machine`, `cores`, `threads` (as limited by the environment, else
        the cores) and `versions`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    run: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "threads": int(os.environ.get("OPENBLAS_NUM_THREADS") or cores),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    if base is not None:
        profile = base.profile
        run["model"] = {"path": base.path.name, "digest": base.digest, "bits_per_weight": base.bits_per_weight}
        run["profile"] = {"kind": profile.kind, "name": profile.name, "compute": profile.compute}
    return run


def paired(
    contestants: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    progress: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Measure contestants in turn, round after round, so that a drift of the machine meets all of them.

    The order is reversed in every other round, for the same reason.

    Args:
        contestants: name to a function that runs once and returns its figure.
        rounds: how often each runs.
        progress: told before every round.

    Returns:
        The figures of each, in order of the rounds.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds):
        if progress is not None:
            progress(f"round {round_ + 1} of {rounds}")
        for name in list(contestants)[:: -1 if round_ % 2 else 1]:
            figures[name].append(contestants[name]())
    return figures


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios pair by pair, which a drift between rounds leaves alone."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of the values that at least ``percent`` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def narrate(text: str) -> None:
    """A line of progress on stderr, where a person watches."""
    if sys.stderr.isatty():
        click.echo(text, err=True)


def emit(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a bench's result: one JSON object, or a line for each figure."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for name, value in _flat(result):
        click.echo(f"{name:<32} {value:.4g}" if isinstance(value, float) else f"{name:<32} {value}")


def _flat(result: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for name, value in result.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for row in value:
                lines.append((f"{prefix}{name}", json.dumps(row)))
        else:
            lines.append((prefix + name, value))
    return lines


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
