"""``python -m tests.net --minutes 60 --seed 1``: rounds of random load until the time is over, as JSON on stdout.

Of eight rounds, five are on tiny random models, two on tiny mixtures of experts, one on the embedded model. Every round
prints its seed on stderr; ``--rounds 1 --seed N`` repeats it. Exit code 1 if an answer differed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from .run import Report
from .worlds import embedded_round, moe_round, tiny_round

_ROUNDS = {"tiny": tiny_round, "moe": moe_round, "embedded": embedded_round}
# By the seed's remainder.
_KINDS = ("embedded", "tiny", "tiny", "moe", "tiny", "tiny", "tiny", "moe")


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(
        prog="tests.net", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no round after this [5]")
    parser.add_argument("--rounds", type=int, default=0, help="rounds at most; 0: as many as there is time for")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round [the clock]")
    parser.add_argument("--only", choices=tuple(_ROUNDS), help="one kind of model only")
    options = parser.parse_args()
    began = time.monotonic()
    total = Report()
    rounds = dict.fromkeys(_ROUNDS, 0)
    for seed in itertools.islice(itertools.count(options.seed), options.rounds or None):
        if time.monotonic() - began > 60 * options.minutes:
            break
        kind = options.only or _KINDS[seed % len(_KINDS)]
        with tempfile.TemporaryDirectory() as folder:
            report = _ROUNDS[kind](Path(folder), seed)
        total.add(report)
        rounds[kind] += 1
        print(
            f"{time.monotonic() - began:7.0f} s  seed {seed} {kind}: {report.requests} requests, {report.equal} equal, "
            f"{report.explained} within tolerance, {len(report.differences)} different",
            file=sys.stderr,
            flush=True,
        )
        for difference in report.differences:
            print(f"  {difference}", file=sys.stderr, flush=True)
    minutes = round((time.monotonic() - began) / 60, 1)
    print(json.dumps({"seed": options.seed, "minutes": minutes, "rounds": rounds, **asdict(total)}, indent=1))
    return 1 if total.differences else 0


if __name__ == "__main__":
    sys.exit(main())
