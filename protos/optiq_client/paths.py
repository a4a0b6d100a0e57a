"""Where Optiq keeps its files, and which address a client talks to.

``home`` is the folder of one daemon::

    run/         0700: daemon.sock (public gRPC), engine-*.sock (private), daemon.lock, daemon.pid
    adapters/    drop folder: <tenant>/<name>/
    store/       content-addressed adapter blobs, and staging
    jobs/        one folder per training job
    logs/        daemon.log, engine.log
    optiq.sqlite3

Nothing here creates a folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

# sockaddr_un.sun_path holds 104 bytes on macOS and 108 on Linux, with the closing zero.
MAX_SOCKET_PATH_BYTES = 103


class SocketPathError(ValueError):
    """A Unix socket path that the operating system could not bind."""


def home_path(home: str | os.PathLike[str] | None = None) -> Path:
    """The daemon's folder: the argument, else ``$OPTIQ_HOME``, else the user's data directory."""
    chosen = os.fspath(home) if home else os.environ.get("OPTIQ_HOME", "")
    if chosen:
        return Path(os.path.abspath(Path(chosen).expanduser()))  # noqa: PTH100 - links stay as the user wrote them
    return platformdirs.user_data_path("optiq")


def config_path() -> Path:
    """The configuration file: ``$OPTIQ_CONFIG``, else ``config.toml`` in the user's config directory."""
    chosen = os.environ.get("OPTIQ_CONFIG", "")
    if chosen:
        return Path(os.path.abspath(Path(chosen).expanduser()))  # noqa: PTH100
    return platformdirs.user_config_path("optiq") / "config.toml"


def run_path(home: Path) -> Path:
    """Folder of sockets, lock and pid file; the daemon makes it with mode 0700."""
    return home / "run"


def socket_path(home: Path) -> Path:
    """The daemon's public socket.

    Raises:
        SocketPathError: the path is longer than a Unix socket allows.
    """
    return checked_socket_path(run_path(home) / "daemon.sock")


def engine_socket_path(home: Path, life: str) -> Path:
    """The private socket of one engine process.

    Each has a path of its own: one that ends late removes its own socket, never its successor's.

    Args:
        life: four characters that tell processes apart.

    Raises:
        SocketPathError: the path is longer than a Unix socket allows.
    """
    return checked_socket_path(run_path(home) / f"engine-{life}.sock")


def checked_socket_path(path: Path) -> Path:
    """``path`` itself, if a socket can be bound there.

    Raises:
        SocketPathError: the path is longer than a Unix socket allows.
    """
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise SocketPathError(
            f"socket path {path} is {length} bytes long, the limit is {MAX_SOCKET_PATH_BYTES}; "
            "set OPTIQ_HOME (or --home) to a shorter folder"
        )
    return path


def lock_path(home: Path) -> Path:
    """File that a running daemon holds an exclusive flock on."""
    return run_path(home) / "daemon.lock"


def pid_path(home: Path) -> Path:
    """File with the process id of the running daemon."""
    return run_path(home) / "daemon.pid"


def adapters_path(home: Path) -> Path:
    """The drop folder: ``<tenant>/<name>/`` below it."""
    return home / "adapters"


def store_path(home: Path) -> Path:
    """The content-addressed store: ``adapters/<digest>/`` and ``staging/`` below it."""
    return home / "store"


def jobs_path(home: Path) -> Path:
    """One folder per training job."""
    return home / "jobs"


def database_path(home: Path) -> Path:
    """The daemon's SQLite file."""
    return home / "optiq.sqlite3"


def logs_path(home: Path) -> Path:
    """Folder of daemon.log and engine.log."""
    return home / "logs"


def resolve_address(address: str | None = None, home: str | os.PathLike[str] | None = None) -> str:
    """What to dial: ``unix:/path`` or ``host:port``.

    The first that is given: ``address``, the socket of ``home``, ``$OPTIQ_ADDRESS``, the socket of the
    default home. A bare absolute path is read as a socket path.

    Raises:
        SocketPathError: the home's socket path is longer than a Unix socket allows.
    """
    chosen = address or ("" if home else os.environ.get("OPTIQ_ADDRESS", ""))
    if not chosen:
        return f"unix:{socket_path(home_path(home))}"
    return f"unix:{chosen}" if chosen.startswith("/") else chosen
