"""The gate process: scores a trained adapter against the version that is served, before it is published.

``python -m optiq_daemon.gate_process --job FILE --adapter DIR --present DIR --data FILE``

The job file is the trainer's. Both adapters are scored on the same examples with the same loss: nats per token, the
prompts masked as in training; without ``--present`` the bare base is what has to be beaten. The answer goes to stdout
as JSON (:class:`Scores`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import msgspec

from optiq_daemon.answers import give_answer
from optiq_daemon.trainer_process import BLAS_THREADS, NICENESS, Job

# A gate is no benchmark: so many examples tell a better adapter from a worse one.
MOST_EXAMPLES = 500
_BATCH = 4


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Mean loss in nats per token of the new adapter and of the present one, over the same tokens."""

    loss: float
    present_loss: float
    tokens: int
    examples: int


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="optiq_daemon.gate_process", description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--present", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args(argv)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    job = msgspec.json.decode(arguments.job.read_bytes(), type=Job)
    return give_answer(lambda: msgspec.json.encode(score(job, arguments.adapter, arguments.present, arguments.data)))


def score(job: Job, adapter: Path, present: Path | None, data: Path) -> Scores:
    """Score both.

    Raises:
        OptiqError: the file has no example to score, or an adapter does not fit the base.
    """
    from optiq_core.base.device import setup_device

    profile = setup_device(BLAS_THREADS)
    from optiq_core.adapters.mount import AdapterActivation, mount_adapter_on_model
    from optiq_core.base.loader import load_base
    from optiq_core.train.data import load_examples
    from optiq_core.train.loss import loss_for
    from optiq_core.train.validation import mean_loss

    base = load_base(Path(job.base_path), profile=profile, load_in=job.load_in)
    examples = load_examples(data, base.tokenizer, job.config)[:MOST_EXAMPLES]
    loss = loss_for(base.model)
    mount_adapter_on_model(base.model, "new", adapter)
    if present is not None:
        mount_adapter_on_model(base.model, "present", present)
    found = {}
    for name in ("new", "present" if present is not None else None):
        with AdapterActivation(name, base.model):
            found[name or "present"] = mean_loss(base.model, loss, examples, rows=_BATCH)
    (new, tokens), (old, _) = found["new"], found["present"]
    return Scores(loss=new, present_loss=old, tokens=tokens, examples=len(examples))


if __name__ == "__main__":
    sys.exit(main())
