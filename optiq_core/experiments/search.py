"""Joint search over bits and ranks under a budget of bytes, in the spirit of QR-Adaptor (arXiv:2505.03802).

Three stages, each dearer and shorter than the one before:

1. ``proxy``: NSGA-II (Deb et al., 2002) over the sum of measured KL divergences and the share of the training loss's
   squared gradient that the ranks capture. It begins at solutions without a search: bits by sensitivity, ranks by bits.
2. ``short``: the front of the first stage, spread out, is trained for a few steps; a tree-structured Parzen estimator
   (Bergstra et al., 2011) proposes some more from the validation losses.
3. ``full``: the best ones and the one-shot solution at the same bytes become a grid that is trained and scored like any
   other experiment, with its report.

Everything is in the output directory: Optuna's journal, the bases, the runs. The same call goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial as Asked
from optuna.trial import TrialState

from optiq_core.experiments.grid import GridProgress, run_grid
from optiq_core.experiments.report import Report, make_report
from optiq_core.experiments.search_report import SearchResult, Trial
from optiq_core.experiments.space import Assignment, SearchError, Space
from optiq_core.experiments.spec import BaseSpec, Configuration, Experiment
from optiq_core.files import write_atomically
from optiq_core.quant.partial import content_digest

if TYPE_CHECKING:
    from optiq_core.experiments.lab import Lab

ONE_SHOT = "one-shot"
_SEARCH_FILE = "search.json"
_JOURNAL = "optuna.journal"
# Of the short trials, those that come from the proxies' front; the rest is proposed from what they gave.
_FROM_FRONT = 0.5
_PROPOSALS = 50
_DONE = "done"


@dataclass(frozen=True)
class SearchProgress:
    """Where a search is; ``seconds_left`` is of its stage, None while unknown."""

    stage: str
    done: int
    total: int
    detail: str
    seconds_left: float | None = None


def search(
    experiment: Experiment,
    folder: Path,
    *,
    locate_base: Callable[[str], Path],
    on_progress: Callable[[SearchProgress], None] = lambda progress: None,
) -> SearchResult:
    """Search, and compare what was found with the one-shot solution.

    Args:
        experiment: its items, ``train`` and ``search``; its configurations do not matter.
        folder: made if missing; goes on if it holds the same search.
        locate_base: name of a base of the experiment to its folder.
        on_progress: told about every step forward.

    Raises:
        SearchError: the budget is too small, or the folder holds another search.
        OptiqError: base, data or training failed.
    """
    settings = experiment.search
    base = locate_base(settings.base)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, experiment, base)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from optiq_core.base import setup_device

    # Before anything imports mlx: afterwards it keeps the slow BLAS that it came with.
    setup_device()
    from optiq_core.experiments.lab import Lab

    lab = Lab(base, experiment, folder / "work")
    space = lab.space(lambda share, what: on_progress(SearchProgress("measuring", round(100 * share), 100, what)))
    asked = int(settings.budget_mb * 1e6)
    plain = space.one_shot(asked or space.default_budget(lab.rank), lab.rank)
    budget = asked or space.bytes(plain)
    stages = _Stages(space=space, lab=lab, experiment=experiment, folder=folder, budget=budget, on_progress=on_progress)
    front = stages.rate()
    one_shot, short = stages.train_shortly(plain, front)
    finalists = {f"found-{i}": space.assign(t.groups, budget) for i, t in enumerate(short[: settings.finalists], 1)}
    named = [msgspec.structs.replace(t, name=n) for n, t in zip(finalists, short, strict=False)]
    report = stages.train_fully({ONE_SHOT: plain, **finalists})
    return SearchResult(budget, stages.rated, len(front), one_shot, [*named, *short[len(named) :]], report)


class _Stages:
    def __init__(
        self,
        *,
        space: Space,
        lab: Lab,
        experiment: Experiment,
        folder: Path,
        budget: int,
        on_progress: Callable[[SearchProgress], None],
    ) -> None:
        self._space, self._lab, self._experiment, self._folder = space, lab, experiment, folder
        self._budget, self._tell, self._settings = budget, on_progress, experiment.search
        self._storage = JournalStorage(JournalFileBackend(str(folder / _JOURNAL)))
        self.rated = 0

    def rate(self) -> list[dict[str, float]]:
        """Rate choices by proxies; returns those that no other beats, by rising KL."""
        settings = self._settings
        sampler = optuna.samplers.NSGAIISampler(
            population_size=max(4, min(50, settings.proxy_trials // 8)), seed=settings.seed
        )
        study = self._study("proxy", ["minimize", "maximize"], sampler)
        if not study.trials:
            for rank in self._space.ranks:
                self._enqueue(study, self._space.neutral(rank))
        while (done := len(_complete(study))) < settings.proxy_trials:
            if done % 20 == 0:
                self._tell(SearchProgress("proxy", done, settings.proxy_trials, "rating"))
            trial = study.ask()
            chosen = self._assign(self._suggest(trial))
            trial.set_constraint("bytes", self._space.bytes(chosen) / self._budget - 1)
            study.tell(trial, [self._space.kl(chosen), self._space.captured(chosen)])
        self.rated = done
        front: list[dict[str, float]] = []
        seen: list[Assignment] = []
        for best in sorted(study.best_trials, key=lambda t: t.values):
            chosen = self._assign(best.params)
            if self._space.bytes(chosen) <= self._budget and chosen not in seen:
                seen.append(chosen)
                front.append(dict(best.params))
        if not front:
            raise SearchError(f"budget: none of {done} choices fits into {self._budget / 1e6:.2f} MB; raise it")
        return front

    def train_shortly(self, plain: Assignment, front: Sequence[dict[str, float]]) -> tuple[Trial, list[Trial]]:
        """Train the one-shot solution and some of the front for a few steps; returns it, and them by rising loss."""
        settings, space = self._settings, self._space
        picked = _spread(front, max(1, round(_FROM_FRONT * settings.short_trials)))
        sampler = optuna.samplers.TPESampler(n_startup_trials=len(picked), seed=settings.seed)
        study = self._study("short", ["minimize", "minimize"], sampler)
        began, total = time.monotonic(), settings.short_trials + 1
        self._tell(SearchProgress("short", 0, total, ONE_SHOT))
        loss = study.user_attrs.get(ONE_SHOT)
        if loss is None:
            loss = self._lab.short_loss(plain)
            study.set_user_attr(ONE_SHOT, loss)
        if not study.trials:
            for params in picked:
                self._enqueue(study, params)
        known = [self._assign(trial.params) for trial in _complete(study)]
        before = len(known)
        # What follows builds on these trials: once they are done, there are no others.
        rejected = _PROPOSALS if _DONE in study.user_attrs else 0
        while (done := len(_complete(study))) < settings.short_trials and rejected < _PROPOSALS:
            share = (time.monotonic() - began) / (done - before + 1)
            self._tell(SearchProgress("short", done + 1, total, "training", share * (settings.short_trials - done)))
            trial = study.ask()
            chosen = self._assign(self._suggest(trial))
            # Other weights may share out the bits in the same way.
            if space.bytes(chosen) > self._budget or chosen in [plain, *known]:
                study.tell(trial, state=TrialState.FAIL)
                rejected += 1
                continue
            known.append(chosen)
            study.tell(trial, [self._lab.short_loss(chosen), space.bytes(chosen)])
        study.set_user_attr(_DONE, True)
        found = [self._trial(t.params, self._assign(t.params), t.values[0]) for t in _complete(study)]
        return self._trial({}, plain, loss, ONE_SHOT), sorted(found, key=lambda t: t.short_loss)

    def train_fully(self, chosen: Mapping[str, Assignment]) -> Report:
        """Write a base for each choice and run them all as a grid."""
        bases = {}
        for name, assignment in chosen.items():
            folder = self._folder / "bases" / name
            if not (folder / "config.json").exists():
                self._tell(SearchProgress("full", 0, len(chosen), f"writing the base of {name}"))
                self._lab.write(assignment, folder)
            bases[name] = folder
        shared = {**self._experiment.train, "rank_scaling": "pattern", "budget_like": ""}
        grid = msgspec.structs.replace(
            self._experiment,
            name=f"{self._experiment.name}-search",
            bases={name: BaseSpec(model=str(folder)) for name, folder in bases.items()},
            configurations=[
                Configuration(name=name, base=name, train={**shared, "rank_pattern": dict(assignment.ranks)})
                for name, assignment in chosen.items()
            ],
        )

        def tell(at: GridProgress) -> None:
            where = f"{at.configuration} seed {at.seed} · " if at.configuration else ""
            self._tell(SearchProgress("full", at.done, at.total, f"{where}{at.phase}", at.seconds_left))

        results = run_grid(grid, self._folder / "full", locate_base=bases.__getitem__, on_progress=tell)
        return make_report(grid, results)

    def _study(
        self, name: str, directions: list[Literal["minimize", "maximize"]], sampler: optuna.samplers.BaseSampler
    ) -> optuna.Study:
        return optuna.create_study(
            study_name=name, directions=directions, sampler=sampler, storage=self._storage, load_if_exists=True
        )

    def _enqueue(self, study: optuna.Study, params: Mapping[str, float]) -> None:
        study.enqueue_trial(dict(params), skip_if_exists=True)

    def _suggest(self, trial: Asked) -> dict[str, float]:
        parameters = self._space.parameters
        return {name: float(trial.suggest_categorical(name, choices)) for name, choices in parameters.items()}

    def _assign(self, params: Mapping[str, float]) -> Assignment:
        return self._space.assign(params, self._budget)

    def _trial(self, params: Mapping[str, float], chosen: Assignment, loss: float, name: str = "") -> Trial:
        space = self._space
        return Trial(
            name=name,
            groups=dict(params),
            bytes=space.bytes(chosen),
            kl=space.kl(chosen),
            captured=space.captured(chosen),
            short_loss=loss,
        )


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _spread(front: Sequence[dict[str, float]], count: int) -> list[dict[str, float]]:
    """At most so many of them, both ends and what lies evenly between."""
    if len(front) <= count or count == 1:
        return list(front[:count])
    return [front[round(i * (len(front) - 1) / (count - 1))] for i in range(count)]


def _claim(folder: Path, experiment: Experiment, base: Path) -> None:
    """Note in a folder which search it holds, and refuse another one's."""
    content = [experiment.items, experiment.train, experiment.search, experiment.seeds, experiment.max_tokens]
    encoded = msgspec.json.encode([*content, experiment.text, content_digest(base)], order="sorted")
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    file = folder / _SEARCH_FILE
    held = msgspec.json.decode(file.read_bytes()).get("digest") if file.exists() else digest
    if held != digest:
        raise SearchError(f"{folder}: holds a search with other settings, items or base; give another directory")
    about = {"digest": digest, "experiment": experiment.name, "search": experiment.search}
    write_atomically(file, msgspec.json.format(msgspec.json.encode(about), indent=1))
