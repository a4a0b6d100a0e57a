"""What a dropped folder looks like at one moment, without reading any file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import stat
from pathlib import Path
from typing import NamedTuple

from optiq_core.errors import AdapterError


class Snapshot(NamedTuple):
    """Equal fingerprints mean that nothing was written, renamed or replaced in between.

    `changed_at` is the time of the last change of the folder or of a file in it, in seconds since the epoch: the inode
    change time, which a copy that keeps modification times cannot set back.
    """

    fingerprint: str
    changed_at: float


def take_snapshot(folder: Path) -> Snapshot | None:
    """Look at `folder` and the files directly in it; None if it is not there or is not a folder.

    Raises:
        AdapterError: the folder is a link, or cannot be listed.
    """
    try:
        info = folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(info.st_mode):
        raise AdapterError("LINK", "the adapter's folder is a link; copy the folder itself", found=folder.name)
    if not stat.S_ISDIR(info.st_mode):
        return None
    lines = [f"{info.st_ino}"]
    changed = info.st_ctime_ns
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                try:
                    file = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                changed = max(changed, file.st_ctime_ns)
                lines.append(f"{entry.name}\0{file.st_size}\0{file.st_mtime_ns}\0{file.st_ctime_ns}\0{file.st_ino}")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AdapterError("FOLDER_UNREADABLE", f"the folder cannot be listed: {error.strerror}") from None
    return Snapshot(hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest(), changed / 1e9)


def being_written(folder: Path) -> bool:
    """Whether some process has a file of `folder` open for writing, as far as the platform tells.

    Linux refuses a read lease on such a file. Elsewhere, and on files of other users, the answer is no.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        with os.scandir(folder) as entries:
            return any(_open_for_writing(entry.path) for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:
        return False


def _open_for_writing(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # A writer that comes while the lease is held waits until it is given back, and raises this signal instead of
        # SIGIO, which would end the process; SIGURG is ignored unless somebody asks for it.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
