"""What finished steps teach about the planner's predictions on one device. No MLX here."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from optiq_core.base.paths import cache_path
from optiq_core.errors import PlanError

# The graph decides most of it: a device may shift a prediction by so much, and a fit that wants more is not believed.
FACTOR_BOUNDS = (0.85, 1.25)
OFFSET_BOUND = 0.05
# Room above a prediction that nothing has confirmed yet, and the least that is kept however good the record is.
UNPROVEN_MARGIN = 0.06
LEAST_MARGIN = 0.015
MOST_MARGIN = 0.35
_KEPT = 200
# Of these, the worst decides on the margin: what was wrong long ago has been learned since.
_RECENT = 50
_FEW = 4


class Observation(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step's peak in bytes, as predicted before calibration and as measured.

    ``died`` says that the process ran out of memory: the step would have taken more than was measured, which says that
    the margin was too small, and nothing of the factor.
    """

    predicted: int
    measured: int
    died: bool = False


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """``measured = factor * predicted + offset`` on one device.

    Attributes:
        factor, offset: bounded; the offset is in bytes.
        margin: share to keep above a calibrated prediction, bounded: the worst that has lately been seen above it, and
            a little.
        observations: how many it was learned from.
    """

    factor: float = 1.0
    offset: int = 0
    margin: float = UNPROVEN_MARGIN
    observations: int = 0

    def expected(self, predicted: int) -> int:
        """Bytes to expect."""
        return max(0, int(self.factor * predicted + self.offset))

    def bound(self, predicted: int) -> int:
        """Bytes that a step is not expected to exceed."""
        return int(self.expected(predicted) * (1 + self.margin))


def learn(observations: Sequence[Observation]) -> Calibration:
    """Fit factor and offset; a factor alone while there are few observations."""
    valid = [o for o in observations if o.predicted > 0 and o.measured > 0]
    seen = [(o.predicted, o.measured) for o in valid if not o.died]
    if not valid:
        return Calibration()
    factor, offset = 1.0, 0.0
    if seen:
        factor, offset = _fit(seen) if len(seen) > _FEW else (_median([m / p for p, m in seen]), 0.0)
    low, high = FACTOR_BOUNDS
    factor = min(max(factor, low), high)
    bound = OFFSET_BOUND * min((measured for _, measured in seen), default=0)
    offset = min(max(offset, -bound), bound)
    worst = max(o.measured / (factor * o.predicted + offset) - 1 for o in valid[-_RECENT:])
    # One run says little about the next.
    unproven = UNPROVEN_MARGIN / max(1, len(seen))
    return Calibration(
        factor=factor,
        offset=int(offset),
        margin=min(max(LEAST_MARGIN, worst * 1.25) + unproven, MOST_MARGIN),
        observations=len(valid),
    )


def _fit(seen: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Factor and offset by Theil and Sen: medians, so that one strange run shifts nothing."""
    slopes = [(m - n) / (p - q) for i, (p, m) in enumerate(seen) for q, n in seen[:i] if p != q]
    if not slopes:
        return _median([m / p for p, m in seen]), 0.0
    factor = _median(slopes)
    return factor, _median([m - factor * p for p, m in seen])


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def calibration_path() -> Path:
    """The one file of this user and machine: ``$OPTIQ_CALIBRATION``, or ``calibration.json`` in the cache."""
    explicit = os.environ.get("OPTIQ_CALIBRATION")
    return Path(explicit).expanduser() if explicit else cache_path() / "calibration.json"


class CalibrationStore:
    """Observations per device in one JSON file, newest last."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, device: str) -> Calibration:
        """What has been learned of a device.

        Raises:
            PlanError: the file is damaged; it says how to begin anew.
        """
        return learn(self._read().get(device, []))

    def add(self, device: str, observation: Observation) -> None:
        """Remember a finished step."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f".{self._path.name}.lock").open("a") as lock:
            # Several daemons, and several jobs of one, may learn at the same time.
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self._read()
            content[device] = [*content.get(device, []), observation][-_KEPT:]
            staging = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            staging.write_bytes(msgspec.json.encode(content))
            staging.replace(self._path)

    def _read(self) -> dict[str, list[Observation]]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, list[Observation]])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise PlanError(f"{self._path}: {error}; delete it to begin anew") from error
