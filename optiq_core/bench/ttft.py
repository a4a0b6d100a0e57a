"""Bench ``ttft``: time to the first token with the adapter mounted and not, and what mounts cost running streams."""

from __future__ import annotations

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from ..errors import OptiqError
from .harness import describe_run, emit, narrate, percentile

_STREAMS = 4
# Tokens of a stream that outlasts the bench.
_LONG = 4000


def run(
    model: str = "embedded", *, requests: int = 24, rank: int = 8, targets: str = "all", quick: bool = False
) -> dict[str, Any]:
    """Ask adapters for one token beside running streams, mounted ones and new ones in turn; then mount and do not ask.

    Args:
        model: as :func:`optiq_core.base.resolve_base` takes it.
        requests: of each kind, and mounts in the second part.
        rank, targets: of the adapters.
        quick: 3 requests.

    Returns:
        ``warm_ms`` and ``cold_ms`` with ``p50`` and ``p99`` (a cold one mounts its folder first), their ratio,
        ``stall_steps_max`` (the longest wait of a running stream for a token while adapters are mounted, less an
        ordinary step, in ordinary steps), ``step_ms``, the run.

    Raises:
        OptiqError: the model cannot be loaded.
    """
    from ..base import load_base, resolve_base, setup_device

    setup_device()
    from ..engine.engine import Engine
    from .adapters import chosen, write_folder
    from .mixed import prompt_ids
    from .streams import Stream

    requests = 3 if quick else requests
    base = load_base(resolve_base(model, progress=narrate))
    engine = Engine(base, max_batch=_STREAMS + 1)
    engine.start()
    warm: list[float] = []
    cold: list[float] = []
    # Adapters are read on a thread of their own, as in the engine process.
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as loader:
        modules = chosen(engine.modules, targets)
        narrate(f"writing {2 * requests + 1} adapters")
        folders = [write_folder(Path(scratch) / str(i), modules, rank, i) for i in range(2 * requests + 1)]

        def mount(i: int) -> None:
            loader.submit(engine.load_adapter, str(i), folders[i]).result()

        def ask(i: int) -> float:
            return (Stream(engine, prompt_ids(base, 100 + i), 1, str(i)).wait().times[0] - began) * 1e3

        try:
            mount(0)
            running = [Stream(engine, prompt_ids(base, i), _LONG) for i in range(_STREAMS)]
            while not all(stream.times for stream in running):
                time.sleep(0.01)
            began = time.perf_counter()
            ask(0)
            for i in range(1, requests + 1):
                narrate(f"request {i} of {requests}")
                began = time.perf_counter()
                warm.append(ask(0))
                began = time.perf_counter()
                mount(i)
                cold.append(ask(i))
            quiet_from = time.perf_counter()
            time.sleep(0.5 if quick else 3)
            mounts_from = time.perf_counter()
            for i in range(requests + 1, 2 * requests + 1):
                mount(i)
            # A stall shows in the token after it.
            time.sleep(0.5)
            for stream in running:
                stream.cancel()
        finally:
            engine.close()
            loader.submit(_end_streams).result()
    gaps = [gap for stream in running for gap in stream.gaps]
    step = statistics.median(gap for at, gap in gaps if quiet_from < at <= mounts_from)
    longest = max(gap for at, gap in gaps if at > mounts_from)
    figures = {
        name: {"p50": percentile(values, 50), "p99": percentile(values, 99)}
        for name, values in (("warm_ms", warm), ("cold_ms", cold))
    }
    return {
        **figures,
        "cold_over_warm_p99": figures["cold_ms"]["p99"] / figures["warm_ms"]["p99"],
        "stall_steps_max": max(longest / step - 1, 0.0),
        "step_ms": step * 1e3,
        "requests": requests,
        "streams": _STREAMS,
        "rank": rank,
        "targets": targets,
        **describe_run(base),
    }


def _end_streams() -> None:
    """A thread's MLX streams must end before it does."""
    import mlx.core as mx

    mx.synchronize()
    mx.clear_streams()


@click.command(epilog="\b\nExamples:\n  optiq bench ttft --json\n  optiq bench ttft --requests 100 --targets qv")
@click.option("--model", default="embedded", show_default=True)
@click.option("--requests", type=click.IntRange(1, 500), default=24, show_default=True, help="Of each kind.")
@click.option("--rank", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--targets", type=click.Choice(["all", "qv"]), default="all", show_default=True)
@click.option("--quick", is_flag=True, help="A fraction of the work, to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ttft(as_json: bool, **options: Any) -> None:
    """Time the first token of mounted and of new adapters, and the longest stall that a mount causes."""
    try:
        emit(run(**options), as_json=as_json)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
