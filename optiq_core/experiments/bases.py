"""Finds or makes the bases of an experiment, each once. No MLX until one is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from optiq_core.experiments.spec import Experiment, SpecError

if TYPE_CHECKING:
    from optiq_core.quant.plan import PlanSettings


class Bases:
    """The bases of an experiment by name.

    Args:
        experiment: says where they come from.
        progress: told what takes long.
    """

    def __init__(self, experiment: Experiment, *, progress: Callable[[str], None]) -> None:
        self._specs = experiment.bases
        self._progress = progress
        self._found: dict[str, Path] = {}

    def locate(self, name: str) -> Path:
        """Folder of a base.

        Raises:
            OptiqError: it cannot be found or made.
        """
        if name not in self._found:
            from optiq_core.base import resolve_base, setup_device

            setup_device()
            spec = self._specs[name]
            folder = resolve_base(spec.model, progress=self._progress)
            if spec.convert:
                from optiq_core.base.converted import converted
                from optiq_core.quant.partial import content_digest

                program, arguments = _conversion(spec.convert)
                folder = converted(folder, content_digest(folder), arguments, self._progress, program=program)
            self._found[name] = folder
        return self._found[name]


def _conversion(convert: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The program that makes a base, and its arguments."""
    if "fixed" not in convert:
        return "optiq_core.quant", plan_settings(convert).arguments
    from optiq_core.experiments.fixed import FixedBits

    try:
        return "optiq_core.experiments.fixed", msgspec.convert(convert, FixedBits).arguments
    except msgspec.ValidationError as error:
        raise SpecError(f"bases.*.convert: {error}") from error


def plan_settings(convert: dict[str, Any]) -> PlanSettings:
    """Settings of a conversion from a base's ``convert`` table.

    Raises:
        SpecError: a field is unknown or has a wrong value.
    """
    from optiq_core.quant.plan import PlanSettings

    known = [field.name for field in dataclasses.fields(PlanSettings)]
    if unknown := sorted(set(convert) - set(known)):
        raise SpecError(f"bases.*.convert: {unknown[0]!r} is none of {', '.join(known)}")
    try:
        return msgspec.convert(convert, PlanSettings)
    except msgspec.ValidationError as error:
        raise SpecError(f"bases.*.convert: {error}") from error
