"""What a joint search found; Markdown and JSON. No MLX here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from optiq_core.experiments.report import Report


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A choice and what is known of it; sizes in bytes, losses in nats per token.

    Attributes:
        name: ``one-shot``, ``found-1`` and so on for what was trained in full; empty for the others.
        groups: weight and base rank by group, see :class:`optiq_core.experiments.space.Space`; empty for the one-shot
            solution.
        kl: sum of the modules' KL divergences.
        captured: share of the training loss's squared gradient that the ranks capture.
        short_loss: validation loss after the short training.
    """

    name: str = ""
    groups: dict[str, float] = {}
    bytes: int
    kl: float
    captured: float
    short_loss: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        budget: bytes of base and adapter.
        proxy_trials, front: choices rated by proxies, and how many of them no other beat.
        one_shot: the solution without a search.
        short: what was trained for a few steps, the lowest loss first.
        report: of the finalists, the one-shot solution as the reference.
    """

    budget: int
    proxy_trials: int
    front: int
    one_shot: Trial
    short: list[Trial]
    report: Report

    def as_dict(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "budget_bytes": self.budget,
            "proxy_trials": self.proxy_trials,
            "proxy_front": self.front,
            "one_shot": msgspec.to_builtins(self.one_shot),
            "short": msgspec.to_builtins(self.short),
            "full": self.report.as_dict(),
        }

    def as_markdown(self) -> str:
        """The trials, what the finalists are, and the finalists' report."""
        lines = [
            f"Budget {self.budget / 1e6:.2f} MB of base and adapter. {self.proxy_trials} choices rated by proxies, "
            f"{self.front} of them on the front; {len(self.short)} trained for a few steps.",
            "",
            "| choice | MB | KL of the base | gradient captured | loss, short training |",
            "|---|---|---|---|---|",
        ]
        shown = [self.one_shot, *self.short]
        lines += [
            f"| {t.name or '-'} | {t.bytes / 1e6:.2f} | {t.kl:.4f} | {t.captured:.1%} | {t.short_loss:.4f} |"
            for t in shown
        ]
        for trial in self.short:
            if trial.name:
                chosen = ", ".join(f"{name} {value:g}" for name, value in trial.groups.items())
                lines += ["", f"{trial.name}: {chosen}."]
        return "\n".join(lines) + "\n\n" + self.report.as_markdown()
