"""The planner process: one prediction, in a process of its own because it imports MLX, which the daemon does not.

``python -m optiq_daemon.planner_process --job FILE --limit-bytes N --resident-bytes N --calibration FILE``

The file is a trainer's ``job.json``. The verdict goes to stdout as JSON. It allocates no weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from optiq_daemon.answers import give_answer
from optiq_daemon.trainer_process import Job


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="optiq_daemon.planner_process", description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--limit-bytes", type=int, default=0)
    parser.add_argument("--resident-bytes", type=int, default=0)
    parser.add_argument("--calibration", type=Path, required=True)
    arguments = parser.parse_args(argv)
    job = msgspec.json.decode(arguments.job.read_bytes(), type=Job)
    return give_answer(lambda: plan(job, arguments.limit_bytes, arguments.resident_bytes, arguments.calibration))


def plan(job: Job, limit_bytes: int, resident_bytes: int, calibration: Path) -> bytes:
    """A verdict on a job, with advice, as JSON."""
    from optiq_core.base.device import setup_device

    profile = setup_device(1)
    import mlx.core as mx
    from mlx_lm.utils import load_tokenizer

    from optiq_core.planner.advice import advise
    from optiq_core.planner.calibration import CalibrationStore
    from optiq_core.planner.ceilings import ceiling_of
    from optiq_core.planner.planner import Planner
    from optiq_core.train.data import load_data

    folder = Path(job.base_path)
    info = mx.device_info() if profile.kind != "cpu" else None
    ceiling = ceiling_of(profile.kind, resident_bytes=resident_bytes, user_bytes=limit_bytes, device_info=info)
    examples = load_data(job.config.data_path, load_tokenizer(folder), job.config).train.examples
    planner = Planner(folder, ceiling, CalibrationStore(calibration).of(ceiling.device), examples, job.load_in)
    return msgspec.json.encode(advise(planner, job.config))


if __name__ == "__main__":
    sys.exit(main())
