"""Command line options of rank allocation, shared by training here and training in the daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from optiq_core.train.schemes import RANK_SCALINGS

F = TypeVar("F", bound=Callable[..., Any])


def rank_options(command: F) -> F:
    """Add --rank-scaling, --rank-pattern and --budget-like; the pattern arrives as a dictionary."""
    for option in (
        click.option(
            "--budget-like",
            default="",
            metavar="SCHEME:RANK",
            help="Keep the scheme's proportions, spend the parameters of another: constant:16.",
        ),
        click.option(
            "--rank-pattern",
            multiple=True,
            metavar="MODULE=RANK",
            callback=_read_pattern,
            help="With --rank-scaling pattern, repeatable: q_proj=4, layers.3.self_attn.v_proj=32.",
        ),
        click.option(
            "--rank-scaling",
            type=click.Choice(RANK_SCALINGS),
            default="by_bits",
            show_default=True,
            help="How ranks are spread; by_bits: modules that the base keeps at 8 bits get twice the rank. "
            "`optiq lora ranks` shows what each gives.",
        ),
    ):
        command = option(command)
    return command


def _read_pattern(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    pattern = {}
    for text in values:
        module, equals, rank = text.rpartition("=")
        if not (module and equals and rank.isascii() and rank.isdigit()):
            raise click.BadParameter(f"{text!r} is not MODULE=RANK, for example q_proj=4", context, option)
        pattern[module] = int(rank)
    return pattern
