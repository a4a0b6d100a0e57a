"""Bench ``ttft``: time to the first token with the adapter mounted and not, and what mounts cost running streams."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..errors import OptiqError
from ..heap import freeze_heap
from .harness import describe_run, emit, narrate, percentile

_STREAMS = 4
# Tokens of a stream that outlasts the bench.
_LONG = 4000
# Between two measurements, so that a wait belongs to one of them.
_PAUSE_S = 0.3


def run(
    model: str = "embedded",
    *,
    requests: int = 24,
    rank: int = 8,
    targets: str = "all",
    prompt_tokens: int = 4000,
    quick: bool = False,
) -> dict[str, Any]:
    """Time first tokens beside running streams, and the streams while adapters are mounted and a long prompt comes.

    In turn, a mounted adapter is asked for one token and a new one is mounted and asked; then, in turn, an adapter is
    mounted and not asked and nothing happens for as long; then a long prompt of the bare base is processed.

    Args:
        model: as :func:`optiq_core.base.resolve_base` takes it.
        requests: of each kind, and mounts in the second part.
        rank, targets: of the adapters.
        prompt_tokens: of the long prompt; 0 for none.
        quick: 3 requests, a prompt of 300 tokens.

    Returns:
        ``warm_ms`` and ``cold_ms`` with ``p50`` and ``p99`` (a cold one mounts its folder first), their ratio;
        ``stall_steps``, in ordinary steps: ``mount``, the longest wait of a running stream for a token while adapters
        are mounted, less the longest in as many times as long while nothing happens; ``first_use``, the longest wait
        while new adapters are mounted and asked, less the longest while a mounted one is asked, whose prompt takes as
        long; ``stall_steps_max``, the larger; ``longest_wait_steps``, what these are differences of;
        ``step_ms``; ``long_prompt``: its tokens, seconds until its first token, tokens of each running stream
        meanwhile and their longest wait in ordinary steps; the run.

    Raises:
        OptiqError: the model cannot be loaded.
    """
    from ..base import load_base, resolve_base, setup_device

    setup_device()
    from ..engine.engine import Engine
    from .adapters import chosen, write_folder
    from .mixed import prompt_ids
    from .streams import Stream

    requests, prompt_tokens = (3, min(300, prompt_tokens)) if quick else (requests, prompt_tokens)
    base = load_base(resolve_base(model, progress=narrate))
    engine = Engine(base, max_batch=_STREAMS + 1)
    engine.start()
    freeze_heap()
    spans: dict[str, list[Span]] = {"warm": [], "cold": [], "mount": [], "quiet": [], "prompt": []}
    # Adapters are read on a thread of their own, as in the engine process.
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as loader:
        modules = chosen(engine.modules, targets)
        narrate(f"writing {2 * requests + 1} adapters")
        folders = [write_folder(Path(scratch) / str(i), modules, rank, i) for i in range(2 * requests + 1)]

        def mount(i: int) -> None:
            loader.submit(engine.load_adapter, str(i), folders[i]).result()

        def ask(i: int, prompt: list[int] | None = None) -> None:
            Stream(engine, prompt or prompt_ids(base, 100 + i), 1, "" if prompt else str(i)).wait()

        def timed(kind: str, *work: Callable[[], None]) -> None:
            began = time.perf_counter()
            for part in work:
                part()
            spans[kind].append(Span(began, time.perf_counter()))
            # A stall shows in the token after it.
            time.sleep(_PAUSE_S)

        try:
            mount(0)
            running = [Stream(engine, prompt_ids(base, i), _LONG) for i in range(_STREAMS)]
            while not all(stream.times for stream in running):
                time.sleep(0.01)
            ask(0)
            for i in range(1, requests + 1):
                narrate(f"request {i} of {requests}")
                timed("warm", partial(ask, 0))
                timed("cold", partial(mount, i), partial(ask, i))
            for i in range(requests + 1, 2 * requests + 1):
                timed("mount", partial(mount, i), partial(time.sleep, _PAUSE_S))
                timed("quiet", partial(time.sleep, spans["mount"][-1].seconds))
            if prompt_tokens:
                narrate(f"a prompt of {prompt_tokens} tokens")
                words = prompt_ids(base, 0)
                timed("prompt", partial(ask, 0, (words * (prompt_tokens // len(words) + 1))[:prompt_tokens]))
            for stream in running:
                stream.cancel()
        finally:
            engine.close()
            loader.submit(_end_streams).result()
    gaps = [gap for stream in running for gap in stream.gaps]
    return {
        **summarise(spans, gaps, prompt_tokens),
        "requests": requests,
        "streams": _STREAMS,
        "rank": rank,
        "targets": targets,
        **describe_run(base),
    }


class Span(NamedTuple):
    """From when to when, in `time.perf_counter()` seconds."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.ended - self.began

    def holds(self, at: float) -> bool:
        """Whether a moment lies in it."""
        return self.began < at <= self.ended


def summarise(
    spans: Mapping[str, Sequence[Span]], gaps: Sequence[tuple[float, float]], prompt_tokens: int
) -> dict[str, Any]:
    """Return the figures of :func:`run`.

    Args:
        spans: when each kind of measurement was under way.
        gaps: of all running streams, when a token came and seconds since the one before.
        prompt_tokens: of the long prompt.
    """
    step = statistics.median(gap for at, gap in gaps if any(span.holds(at) for span in spans["quiet"]))
    waits = {kind: longest(gaps, of_kind) / step for kind, of_kind in spans.items() if of_kind}
    stalls = {
        "mount": max(waits["mount"] - waits["quiet"], 0.0),
        "first_use": max(waits["cold"] - max(waits["warm"], 1.0), 0.0),
    }
    figures = {
        f"{kind}_ms": {
            "p50": percentile([span.seconds * 1e3 for span in spans[kind]], 50),
            "p99": percentile([span.seconds * 1e3 for span in spans[kind]], 99),
        }
        for kind in ("warm", "cold")
    }
    result: dict[str, Any] = {
        **figures,
        "cold_over_warm_p99": figures["cold_ms"]["p99"] / figures["warm_ms"]["p99"],
        "stall_steps": stalls,
        "stall_steps_max": max(stalls.values()),
        "longest_wait_steps": {kind: waits[kind] for kind in ("warm", "cold", "quiet", "mount")},
        "step_ms": step * 1e3,
    }
    for span in spans["prompt"]:
        result["long_prompt"] = {
            "tokens": prompt_tokens,
            "first_token_s": span.seconds,
            "tokens_per_stream_meanwhile": sum(span.holds(at) for at, _ in gaps) / _STREAMS,
            "longest_wait_steps": waits["prompt"],
        }
    return result


def longest(gaps: Sequence[tuple[float, float]], spans: Sequence[Span]) -> float:
    """Return the longest wait, in seconds, of those that overlap a span.

    Args:
        gaps: when a token came, and seconds since the one before.
        spans: of one kind.
    """
    return max(gap for at, gap in gaps if any(at > span.began and at - gap < span.ended for span in spans))


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
@click.option(
    "--prompt-tokens", type=click.IntRange(0), default=4000, show_default=True, help="Of the long prompt; 0 for none."
)
@click.option("--quick", is_flag=True, help="A fraction of the work, to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ttft(as_json: bool, **options: Any) -> None:
    """Time the first token of mounted and of new adapters, and how long mounts and a long prompt stall streams."""
    try:
        emit(run(**options), as_json=as_json)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
