"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<role>staging|replaced)-(?P<pid>\d+)")


@contextmanager
def staged_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its name when the block ends without an error.

    The staging folder starts with a dot, lies on the same file system and is removed when the block raises. Its
    files are flushed to disk before the rename, so a crash leaves the old content or the new, never a mixture; what
    else it leaves is put right by :func:`recover_folders`, which runs here for ``target`` first.

    Raises:
        FileExistsError: ``target`` exists and ``overwrite`` is false.
    """
    recover_folders(target.parent, target.name)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        for path in (*staging.iterdir(), staging):
            _flush(path)
        _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def recover_folders(parent: Path, name: str = "") -> list[Path]:
    """Put right what processes that died inside :func:`staged_folder` left in ``parent``.

    One that died between its two renames left the old content under another name: it gets its own back. Everything
    else is removed. What a running process works on is left alone.

    Args:
        name: only what belongs to this target; everything if empty.

    Returns:
        The targets that got their content back.
    """
    if not parent.is_dir():
        return []
    back = []
    for left in sorted(parent.iterdir()):
        match = _LEFT.fullmatch(left.name)
        if match is None or name not in ("", match["name"]) or _runs(int(match["pid"]), left):
            continue
        target = parent / match["name"]
        if match["role"] == "replaced" and not target.exists():
            left.rename(target)
            back.append(target)
        else:
            shutil.rmtree(left, ignore_errors=True)
    return back


def _swap(staging: Path, target: Path) -> None:
    old = target.parent / f".{target.name}.replaced-{os.getpid()}"
    if target.exists():
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _runs(pid: int, left: Path) -> bool:
    """Whether the process that left a folder still runs; its number may be another's by now, even our own."""
    try:
        return psutil.Process(pid).create_time() <= left.stat().st_ctime
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.Error:
        return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, also across a crash."""
    staged = path.with_name(f".{path.name}.staging-{os.getpid()}")
    staged.write_bytes(content)
    _flush(staged)
    staged.replace(path)
    _flush(path.parent)
