"""SIGKILL at random moments: a few of them here, hundreds in the slow test."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.integration.faults import FaultRun


def test_a_few_kills_lose_nothing(tiny_folder: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    FaultRun(seed, tiny_folder, print).run(4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hundreds_of_kills_lose_nothing(tiny_folder: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    FaultRun(seed, tiny_folder, print).run(300)
