"""Bases that `optiq convert` made, once and cached: the embedded model in mixed precision, and those of experiments.

Every conversion is made in a process of its own, so that its memory is elsewhere and nobody here needs MLX.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import BaseModelError
from .paths import cache_path

# The embedded model about as large as its file, 4 and 8 bits by measured sensitivity; about half a minute on two CPU
# cores. Groups of 64: in the groups of 32 that the file has, 4 bits would cost its blocks nothing, and there were
# nothing to measure.
EMBEDDED_ARGUMENTS = (
    *("--target-bpw", "5.8", "--candidate-bits", "4,8", "--group-size", "64"),
    *("--method", "gradient", "--calibration-tokens", "512"),
)
# Changes when a conversion would write other content.
_FORMAT = "1"


def converted(
    source: Path,
    digest: str,
    arguments: Sequence[str],
    say: Callable[[str], None],
    *,
    program: str = "optiq_core.quant",
) -> Path:
    """Return the folder of a converted base, converting it on first use.

    Args:
        source: folder of the unconverted base.
        digest: of its content, for the cache.
        arguments: of `optiq convert`, without the base and the output.
        say: called with one sentence per step.
        program: module that takes the source, ``-o FOLDER``, ``--overwrite`` and the arguments.

    Raises:
        BaseModelError: the conversion failed.
    """
    key = hashlib.sha256("\n".join((digest, *arguments, _FORMAT)).encode()).hexdigest()[:12]
    folder = cache_path() / "bases" / f"{source.name.split('.')[0]}-mixed-{key}"
    if (folder / "config.json").exists():
        return folder
    say(f"converting {source.name} (once): {' '.join(arguments)}")
    # A second process may be making the same folder: either result will do.
    command = [sys.executable, "-m", program, str(source), "-o", str(folder), "--overwrite", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise BaseModelError(f"{source}: the conversion failed: {reason}")
    return folder
