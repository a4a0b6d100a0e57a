"""The processes without MLX really have none, and the packages point one way."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Everything that the daemon, the client and the dashboard are made of.
WITHOUT_MLX = [
    "optiq_client",
    "optiq_client.client",
    "optiq_client.aio",
    "optiq_tui",
    "optiq_tui.app",
    "optiq_daemon.server",
    "optiq_daemon.cli.main",
    "optiq_core",
    "optiq_core.errors",
    "optiq_core.adapters.format",
    "optiq_core.train.config",
    "optiq_core.train.ranks",
]


def modules_after(statement: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", WITHOUT_MLX)
def test_leaves_mlx_out(module: str) -> None:
    assert not {"mlx", "mlx_lm"} & modules_after(f"import {module}")


def test_using_the_client_leaves_mlx_out() -> None:
    loaded = modules_after(
        "import optiq_client\n"
        "for name in optiq_client.__all__: getattr(optiq_client, name)\n"
        "optiq_client.Client('unix:/nowhere').close()"
    )
    assert not {"mlx", "optiq_core", "optiq_daemon", "optiq_tui"} & loaded


def test_the_dashboard_knows_only_the_client() -> None:
    assert not {"optiq_core", "optiq_daemon"} & modules_after("import optiq_tui.app, optiq_tui.cli")


def test_the_protos_know_nothing_of_ours() -> None:
    loaded = modules_after("import optiq_protos.v1.generation_pb2_grpc, optiq_protos.internal.v1.engine_pb2_grpc")
    assert not {"optiq_client", "optiq_core", "optiq_daemon", "optiq_tui"} & loaded
