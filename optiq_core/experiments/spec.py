"""What an experiment is: configurations times seeds on one task set, read from a TOML file. No MLX here."""

from __future__ import annotations

import hashlib
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from optiq_core.base.load_in import LoadIn
from optiq_core.errors import OptiqError, TrainingError
from optiq_core.experiments.puzzles import PUZZLES
from optiq_core.quant.options import BITS
from optiq_core.train.config import MAX_RANK, TrainConfig, decode_config

PRESETS = ("logic", "joint", "schemes", "methods", "smoke")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class SpecError(OptiqError):
    """An experiment that cannot be run as written; the message names file and field."""


class Items(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The task set.

    Attributes:
        source: ``puzzles``, or a JSONL file whose lines have ``prompt``, ``answer`` and optionally ``category``.
        categories: of the puzzles; empty means all.
        train, valid, test: items of each split, disjoint, drawn anew for every seed.
    """

    source: str = "puzzles"
    categories: list[str] = []
    train: int = 200
    valid: int = 40
    test: int = 120


class BaseSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A base of the comparison.

    Attributes:
        model: what ``optiq serve --model`` takes.
        convert: settings of ``optiq convert`` (``target_bpw``, ``candidate_bits``, ...), or bits by rule:
            ``fixed = ["*=4", "embeddings=8"]`` and optionally ``group_size`` (see
            :mod:`optiq_core.experiments.fixed`); empty: as it is.
        load_in: quantize at load to ``4bit``, ``6bit``, ``8bit`` or ``mxfp4``; only for a base in float, and what
            LoftQ needs.
    """

    model: str = "embedded"
    convert: dict[str, Any] = {}
    # Unset is not encoded: the digests of runs without it stay what they were.
    load_in: LoadIn | msgspec.UnsetType = msgspec.UNSET


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One contestant.

    Attributes:
        name: unique, used as a folder's name.
        base: key of ``bases``.
        kind: ``adapter`` is trained and served beside the base; ``merged`` is trained, added into the base's own
            weights (rounded again where these are quantized) and scored there; ``bare`` is the base without training.
        train: settings that differ from the experiment's ``train``.
    """

    name: str
    base: str = "base"
    kind: Literal["adapter", "merged", "bare"] = "adapter"
    train: dict[str, Any] = {}


class SearchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A joint search over bits and ranks, see :mod:`optiq_core.experiments.search`; no effect on runs.

    Attributes:
        base: key of ``bases``; what it has quantized is dequantized first.
        budget_mb: bytes of base and adapter, in millions; 0 is what the one-shot solution takes an eighth of the way
            from the fewest bits to the most: 5 bits per weight with 4 and 8 in groups of 64.
        bits, group_size: what a layer can be quantized to.
        ranks: what an adapted layer at 4 bits can get; at more bits it gets more, in proportion.
        parts: of the stack of blocks; each has a group for attention and one for the rest, which share a rank and a
            weight in sharing out the bits.
        proxy_trials: choices to rate by what was measured once; they take milliseconds.
        short_trials, short_steps: choices to train for so many steps.
        finalists: choices to train and score in full, beside the one-shot solution, on every seed.
        seed: of the search.
    """

    base: str = "base"
    budget_mb: float = 0.0
    bits: tuple[int, ...] = (4, 8)
    group_size: int = 64
    ranks: tuple[int, ...] = (2, 4, 8, 16)
    parts: int = 4
    proxy_trials: int = 600
    short_trials: int = 24
    short_steps: int = 12
    finalists: int = 1
    seed: int = 0

    def problems(self) -> list[str]:
        """What is out of range, a sentence each."""
        found = []
        if len(set(self.bits)) < 2 or not set(self.bits) <= set(BITS):
            found.append(f"search.bits: give two or more of {', '.join(map(str, BITS))}")
        if not self.ranks or not all(1 <= rank <= MAX_RANK for rank in self.ranks):
            found.append(f"search.ranks: give at least one between 1 and {MAX_RANK}")
        for name in ("parts", "proxy_trials", "short_trials", "short_steps", "finalists"):
            if getattr(self, name) < 1:
                found.append(f"search.{name}: must be at least 1, is {getattr(self, name)}")
        if self.budget_mb < 0:
            found.append(f"search.budget_mb: must be 0 or more, is {self.budget_mb:g}")
        return found


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A grid of configurations and seeds.

    Attributes:
        name: of the experiment.
        seeds: each draws its own items, data order and initial adapters.
        items: the task set.
        bases: by name.
        train: training settings that all configurations share.
        configurations: the contestants, the reference of the comparison first.
        max_tokens: generated for an answer at most.
        search: of ``optiq experiment search``.
        text: also measure perplexity on this UTF-8 file; ``evaluation`` is the one that comes with Optiq. Empty: no.
    """

    name: str
    seeds: list[int]
    configurations: list[Configuration]
    items: Items = Items()
    bases: dict[str, BaseSpec] = msgspec.field(default_factory=lambda: {"base": BaseSpec()})
    train: dict[str, Any] = {}
    max_tokens: int = 32
    text: str = ""
    search: SearchSettings = SearchSettings()

    def train_config(self, configuration: Configuration, data_path: str, seed: int) -> TrainConfig:
        """Settings of one run.

        Raises:
            TrainingError: names the field that is wrong.
        """
        return decode_config({**self.train, **configuration.train, "data_path": data_path, "seed": seed})

    def with_search(self, **settings: Any) -> Experiment:
        """The same with other settings of the search.

        Raises:
            SpecError: one is out of range.
        """
        changed = msgspec.structs.replace(self, search=msgspec.structs.replace(self.search, **settings))
        if problems := changed.search.problems():
            raise SpecError("; ".join(problems))
        return changed

    def digest(self, configuration: Configuration) -> str:
        """Identity of everything that a run of this configuration computes, but for its seed."""
        content = [
            self.items,
            self.bases[configuration.base],
            self.train,
            configuration.kind,
            configuration.train,
            self.max_tokens,
            *([self.text] if self.text else []),
        ]
        return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


def load_experiment(source: Path | str) -> Experiment:
    """Read a TOML file, or a preset by name.

    Raises:
        SpecError: it cannot be read; the message names the field.
    """
    if isinstance(source, str) and source in PRESETS:
        text = resources.files(__package__).joinpath(f"presets/{source}.toml").read_text(encoding="utf-8")
        where = f"preset {source}"
    else:
        where = str(source)
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise SpecError(f"{where}: {error.strerror}; presets are {', '.join(PRESETS)}") from error
    try:
        experiment = msgspec.convert(tomllib.loads(text), Experiment)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SpecError(f"{where}: {error}") from error
    _check(experiment, where)
    return experiment


def _check(experiment: Experiment, where: str) -> None:
    names = [c.name for c in experiment.configurations]
    problems = experiment.search.problems()
    problems += [f"configurations: {n!r} is there twice" for n in sorted({n for n in names if names.count(n) > 1})]
    problems += [f"configurations: {n!r} is not a folder name like by-bits-8" for n in names if not _NAME.fullmatch(n)]
    if not names:
        problems.append("configurations: there are none")
    if not experiment.seeds or len(set(experiment.seeds)) != len(experiment.seeds):
        problems.append("seeds: give at least one, none twice")
    for category in experiment.items.categories:
        if category not in PUZZLES:
            problems.append(f"items.categories: {category!r} is none of {', '.join(PUZZLES)}")
    for configuration in experiment.configurations:
        if configuration.base not in experiment.bases:
            problems.append(f"configurations.{configuration.name}.base: {configuration.base!r} is not in bases")
        elif configuration.kind == "merged" and experiment.bases[configuration.base].load_in:
            problems.append(f"configurations.{configuration.name}.kind: merged needs a base without load_in")
        try:
            experiment.train_config(configuration, "data", 0)
        except TrainingError as error:
            problems.append(f"configurations.{configuration.name}.train: {error}")
    if problems:
        raise SpecError(f"{where}: " + "; ".join(problems))
