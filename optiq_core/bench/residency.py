"""Bench ``residency``: mounting many adapters, and what those that nobody uses cost the ones that are used."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from ..errors import OptiqError
from ..heap import freeze_heap
from .harness import describe_run, emit, median_ratio, narrate, paired, percentile

_USED = 8


def run(
    model: str = "embedded",
    *,
    adapters: int = 200,
    rank: int = 8,
    targets: str = "qv",
    rounds: int = 7,
    tokens: int = 32,
    quick: bool = False,
) -> dict[str, Any]:
    """Mount adapter folders and decode eight rows on eight of them, with 8, 50 and all of them resident.

    Args:
        model: as :func:`optiq_core.base.resolve_base` takes it.
        adapters: folders; at least 8.
        rank: of all.
        targets: ``qv``, or ``all`` linear modules of the blocks.
        rounds: how often each number of residents is measured, in turn.
        tokens: decoded per row and round.
        quick: 12 adapters, one round.

    Returns:
        ``mount_ms_p50``, ``mount_ms_p99`` (from a folder on disk until rows can use it), ``bytes_per_adapter``, ``tps``
        by number of residents (medians), ``flatness`` (the largest distance from 1 of any number's ratio to the first,
        median of the ratios round by round), the run.

    Raises:
        OptiqError: the model cannot be loaded.
    """
    from ..base import load_base, resolve_base, setup_device

    setup_device()
    from ..engine.engine import Engine
    from .adapters import chosen, write_folder
    from .mixed import prompt_ids
    from .streams import Stream

    adapters, rounds, tokens = (12, 1, 4) if quick else (adapters, rounds, tokens)
    base = load_base(resolve_base(model, progress=narrate))
    engine = Engine(base, max_batch=_USED)
    engine.start()
    freeze_heap()
    mounts: list[float] = []
    names = [f"adapter-{i}" for i in range(adapters)]
    prompts = [prompt_ids(base, i) for i in range(_USED)]

    with tempfile.TemporaryDirectory() as scratch:
        modules = chosen(engine.modules, targets)
        narrate(f"writing {adapters} adapters")
        folders = [write_folder(Path(scratch) / name, modules, rank, i) for i, name in enumerate(names)]

        def reside(count: int) -> None:
            for name, folder in zip(names[:count], folders[:count], strict=True):
                if name not in engine.bank:
                    began = time.perf_counter()
                    engine.load_adapter(name, folder)
                    mounts.append((time.perf_counter() - began) * 1e3)
            for name in names[count:]:
                engine.unload_adapter(name)

        def measure(count: int) -> float:
            reside(count)
            streams = [
                Stream(engine, prompt, tokens + 1, name) for prompt, name in zip(prompts, names[:_USED], strict=True)
            ]
            for stream in streams:
                stream.wait()
            # From the last row's first token on, all rows decode.
            began, ended = max(s.times[0] for s in streams), max(s.times[-1] for s in streams)
            return sum(t > began for s in streams for t in s.times) / (ended - began)

        counts = sorted({_USED, min(50, adapters), adapters})
        try:
            measure(_USED)
            figures = paired(
                {str(count): lambda count=count: measure(count) for count in counts},  # type: ignore[misc]
                rounds=rounds,
                progress=narrate,
            )
            nbytes = engine.bank.bytes_of(names[0])
        finally:
            engine.close()
    tps = {count: statistics.median(values) for count, values in figures.items()}
    return {
        "mount_ms_p50": percentile(mounts, 50),
        "mount_ms_p99": percentile(mounts, 99),
        "bytes_per_adapter": nbytes,
        "tps": tps,
        "flatness": max(abs(median_ratio(values, figures[str(_USED)]) - 1) for values in figures.values()),
        "mounts": len(mounts),
        "used": _USED,
        "rank": rank,
        "targets": targets,
        **describe_run(base),
    }


@click.command(
    epilog="\b\nExamples:\n  optiq bench residency --json\n  optiq bench residency --adapters 100 --targets all"
)
@click.option("--model", default="embedded", show_default=True)
@click.option("--adapters", type=click.IntRange(_USED, 2000), default=200, show_default=True)
@click.option("--rank", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--targets", type=click.Choice(["all", "qv"]), default="qv", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=32, show_default=True, help="Decoded per row and round.")
@click.option("--quick", is_flag=True, help="A fraction of the work, to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def residency(as_json: bool, **options: Any) -> None:
    """Mount many adapters and decode on eight of them: the others must cost nothing but their bytes."""
    try:
        emit(run(**options), as_json=as_json)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
