"""The trainer under MLX's own launcher, on one host."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.unit.train_tiny import write_tiny_base, write_tiny_data

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def train(root: Path, name: str, *words: str, processes: int = 1) -> dict[str, Any]:
    """Run ``optiq lora train`` on so many processes; returns the weights."""
    binaries = Path(sys.executable).parent
    command = [str(binaries / "optiq"), "lora", "train", str(root / "base"), "--data", str(root / "data"), "-o"]
    command += [str(root / name), "--iters", "6", "--learning-rate", "1e-3", "--rank", "4", *words]
    if processes > 1:
        port = str(free_port())
        command = [str(binaries / "mlx.launch"), "-n", str(processes), "-p", port, "--backend", "ring", *command]
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_file(root / name / "adapters.safetensors")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    write_tiny_base(folder / "base")
    # Eleven examples: the last batch of four has three, so that shares differ.
    write_tiny_data(folder / "data", train=11)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("--patience", "3", "--steps-per-eval", "2", "--clip-norm", "0.5"),
        ("--micro-batch-size", "1", "--method", "dora", "--lr-schedule", "cosine"),
        ("--pack-length", "64"),
    ],
    ids=["early-stopping-and-clipping", "parts-dora-schedule", "packed"],
)
def test_two_processes_are_one_at_twice_the_batch(root: Path, words: tuple[str, ...]) -> None:
    name = words[0].strip("-")
    one = train(root, f"{name}-one", "--batch-size", "4", *words)
    two = train(root, f"{name}-two", "--batch-size", "2", *words, processes=2)
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert np.allclose(value, two[key], atol=2e-5, rtol=1e-3), key
    cards = [json.loads((root / f"{name}-{n}" / "optiq_lora_config.json").read_text()) for n in ("one", "two")]
    assert cards[0]["training"]["trained_tokens"] == cards[1]["training"]["trained_tokens"]
    assert not (root / f"{name}-two.checkpoint").exists()


def test_a_share_without_a_row_still_takes_part(root: Path) -> None:
    # Batches of ten and one: every second step has a row for one process alone.
    one = train(root, "uneven-one", "--batch-size", "10")
    two = train(root, "uneven-two", "--batch-size", "5", processes=2)
    for key, value in one.items():
        assert np.allclose(value, two[key], atol=2e-5, rtol=1e-3), key
