"""Bases whose bits are given by rule, not by measurement: what mixed precision is compared with.

``python -m optiq_core.experiments.fixed SOURCE -o FOLDER --rule '*=4' --rule 'embeddings=8'`` writes one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from optiq_core.errors import OptiqError, QuantizationError

if TYPE_CHECKING:
    from optiq_core.quant.modules import QuantTarget
    from optiq_core.quant.options import Option
    from optiq_core.quant.source import Source

FLOAT_BITS = 16


class FixedBits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bits by rule.

    Attributes:
        fixed: ``PATTERN=BITS`` with a pattern of ``optiq convert --protect`` (``embeddings``, ``lm_head``, ``first``,
            ``last``, or a glob over module paths) and 2, 3, 4, 5, 6, 8 or 16 bits, the last one for float. Later rules
            win; what none names stays in float.
        group_size: weights that share a scale; modules whose rows do not divide by it stay in float.
    """

    fixed: list[str]
    group_size: int = 64

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the program of this module takes for it."""
        rules = [part for rule in self.fixed for part in ("--rule", rule)]
        return (*rules, "--group-size", str(self.group_size))


def choose_options(targets: Sequence[QuantTarget], rules: Sequence[str], group_size: int) -> dict[str, Option]:
    """Option of every module that rules quantize, by path.

    Args:
        targets: with candidates in groups of ``group_size``.
        rules: see :class:`FixedBits`.
        group_size: of the options.

    Raises:
        QuantizationError: a rule is malformed or matches nothing.
    """
    from optiq_core.quant.modules import protected_paths
    from optiq_core.quant.options import BITS, Option

    chosen: dict[str, int] = {}
    for rule in rules:
        pattern, _, bits = rule.rpartition("=")
        if not pattern or not bits.isdecimal() or int(bits) not in (*BITS, FLOAT_BITS):
            allowed = ", ".join(map(str, (*BITS, FLOAT_BITS)))
            raise QuantizationError(f"fixed: {rule!r} is not PATTERN=BITS with bits of {allowed}, for example *=4")
        for path in protected_paths(targets, (pattern,)):
            chosen[path] = int(bits)
    return {path: Option(bits, group_size) for path, bits in chosen.items() if bits != FLOAT_BITS}


def write_base(source: Source, options: Mapping[str, Option], folder: Path, *, kind: str) -> None:
    """Quantize a source in place as told and write it with its metadata, staged and renamed.

    Args:
        source: dense.
        options: by module path; what is not named stays in float.
        folder: replaced if it exists.
        kind: of the metadata's source, for example ``fixed``.
    """
    from optiq_core.base.metadata import derive_metadata, write_metadata
    from optiq_core.files import staged_folder
    from optiq_core.quant.convert import write_model

    with staged_folder(folder, overwrite=True) as staging:
        write_model(source, options, staging)
        about = {"kind": kind, "name": source.folder.name, "sha256": source.content}
        write_metadata(staging, derive_metadata(staging, about))


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--rule", "rules", multiple=True, required=True, metavar="PATTERN=BITS", help="Later rules win.")
@click.option("--group-size", type=int, default=64, show_default=True, help="Weights that share a scale.")
@click.option("--overwrite", is_flag=True, help="Replace the output folder.")
def main(model: Path, output: Path, rules: tuple[str, ...], group_size: int, overwrite: bool) -> None:
    """Write MODEL with bits by rule, for example --rule '*=4' --rule 'embeddings=8'."""
    if output.exists() and not overwrite:
        raise click.UsageError(f"{output} exists; --overwrite replaces it")
    try:
        from optiq_core.base import setup_device

        setup_device()
        from optiq_core.quant.modules import find_quant_targets
        from optiq_core.quant.options import BITS, parse_candidates
        from optiq_core.quant.source import load_source

        source = load_source(model)
        candidates = parse_candidates(",".join(map(str, BITS)), (group_size,))
        options = choose_options(find_quant_targets(source.model, candidates), rules, group_size)
        write_base(source, options, output, kind="fixed")
    except OptiqError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
