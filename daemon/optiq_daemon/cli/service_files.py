"""The files that make an operating system start the daemon at login: a launchd agent, a systemd user unit."""

from __future__ import annotations

import plistlib
import shlex
from collections.abc import Sequence
from pathlib import Path

LABEL = "ai.optiq.daemon"
UNIT = "optiq.service"

# Longer than the daemon's own drain, so that it is not killed in the middle of it.
STOP_SECONDS = 60


def launchd_plist(command: Sequence[str], log: Path) -> bytes:
    """A launchd agent that keeps the daemon running.

    Args:
        command: program and arguments.
        log: where its output goes.
    """
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(command),
            "RunAtLoad": True,
            # Again after a crash, not after `optiq daemon stop`.
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": STOP_SECONDS,
            "ProcessType": "Interactive",
            "StandardOutPath": str(log),
            "StandardErrorPath": str(log),
        }
    )


def systemd_unit(command: Sequence[str]) -> str:
    """A systemd user unit that keeps the daemon running.

    Args:
        command: program and arguments.
    """
    return f"""\
[Unit]
Description=Optiq, a local multi-tenant LoRA server

[Service]
ExecStart={" ".join(_escaped(word) for word in command)}
Restart=on-failure
RestartSec=5
TimeoutStopSec={STOP_SECONDS}
UMask=0077

[Install]
WantedBy=default.target
"""


def launchd_path() -> Path:
    """Where launchd looks for a user's agents."""
    return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"


def systemd_path() -> Path:
    """Where systemd looks for a user's units."""
    import platformdirs

    return Path(platformdirs.user_config_path("systemd")) / "user" / UNIT


def _escaped(word: str) -> str:
    # systemd expands % and $ in a command line, and reads quotes as a shell does.
    return shlex.quote(word).replace("%", "%%").replace("$", "$$")
