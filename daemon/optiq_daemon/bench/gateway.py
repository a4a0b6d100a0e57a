"""``optiq bench gateway``: what the daemon costs over the engine alone, over gRPC and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import click

from optiq_core.bench.harness import emit, median_ratio, narrate
from optiq_daemon.bench.load import EngineAlone, over_grpc, over_http

WAYS = ("engine", "grpc", "http")
Figures = dict[str, list[dict[str, float]]]


@click.command(
    epilog="\b\nExamples:\n  optiq bench gateway --json\n  optiq bench gateway --streams 16 --tokens 64 --rounds 5"
)
@click.option("--streams", type=click.IntRange(1, 128), default=16, show_default=True, help="Requests at once.")
@click.option("--tokens", type=click.IntRange(2, 512), default=48, show_default=True, help="Tokens of each.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Runs of each way.")
@click.option("--first-rounds", type=click.IntRange(1), default=20, show_default=True, help="First-token runs of each.")
@click.option("--quick", is_flag=True, help="One short run of each way, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gateway(*, streams: int, tokens: int, rounds: int, first_rounds: int, quick: bool, as_json: bool) -> None:
    """Compare gRPC and HTTP with the engine alone.

    Throughput is tokens a second of all streams together, as a client counts them; the clients' own work is part of it.
    First-token time is that of a lone request. All ways decode the same prompts greedily, in turn.
    """
    if quick:
        streams, tokens, rounds, first_rounds = 4, 8, 1, 2
    emit(run(streams=streams, tokens=tokens, rounds=rounds, first_rounds=first_rounds), as_json=as_json)


def run(*, streams: int = 16, tokens: int = 48, rounds: int = 5, first_rounds: int = 20) -> dict[str, Any]:
    """Measure.

    Returns:
        ``grpc_over_engine`` and ``http_over_engine`` (ratios of tokens a second), ``added_ttft_ms`` (HTTP's first text
        less the engine's) and ``grpc_added_ttft_ms``, each the median over pairs, and the figures behind them.
    """
    from optiq_core.base import EMBEDDED

    prompts = [f"Count: {start}, {start + 1}, {start + 2}," for start in range(1, streams + 1)]
    with _ways(streams) as (described, ways):
        narrate("warm up")
        for way in ways.values():
            way(prompts, 4)
        many = _interleaved(ways, prompts, tokens, rounds, "streams")
        one = _interleaved(ways, prompts[:1], 3, first_rounds, "first token")
    speed = {way: [figures["tokens_per_second"] for figures in many[way]] for way in WAYS}
    first = {way: [figures["first_text_ms"] for figures in one[way]] for way in WAYS}
    return {
        "grpc_over_engine": median_ratio(speed["grpc"], speed["engine"]),
        "http_over_engine": median_ratio(speed["http"], speed["engine"]),
        "added_ttft_ms": _median_difference(first["http"], first["engine"]),
        "grpc_added_ttft_ms": _median_difference(first["grpc"], first["engine"]),
        "tokens_per_second": {way: statistics.median(speed[way]) for way in WAYS},
        "first_text_ms": {way: statistics.median(first[way]) for way in WAYS},
        "tokens": {way: int(many[way][0]["tokens"]) for way in WAYS},
        "rounds_tokens_per_second": {way: [round(figure, 2) for figure in speed[way]] for way in WAYS},
        "daemon_cpu_ms_per_token": {way: _cost(many[way]) for way in ("grpc", "http")},
        "streams": streams,
        "run": {"model_argument": EMBEDDED, **described},
    }


@contextlib.contextmanager
def _ways(streams: int) -> Iterator[tuple[dict[str, Any], dict[str, Callable[[list[str], int], dict[str, float]]]]]:
    """Start the engine alone and a daemon with a gateway."""
    from optiq_client.paths import socket_path
    from optiq_core.base import EMBEDDED
    from optiq_daemon.demo.host import DaemonHost
    from optiq_daemon.gateway.names import base_name

    port = _free_port()
    host = DaemonHost("--max-batch", str(streams), "--port", str(port))
    try:
        narrate("start a daemon")
        host.start().close()
        narrate("start the engine alone")
        alone = EngineAlone(EMBEDDED, streams)
        try:
            yield (
                alone.described,
                {
                    "engine": alone.run,
                    "grpc": lambda prompts, n: _with_cpu(host.pid, over_grpc(socket_path(host.home), prompts, n)),
                    "http": lambda prompts, n: _with_cpu(host.pid, over_http(port, base_name(EMBEDDED), prompts, n)),
                },
            )
        finally:
            alone.close()
    finally:
        host.stop()


def _interleaved(ways: Any, prompts: list[str], tokens: int, rounds: int, what: str) -> Figures:
    """As :func:`optiq_core.bench.harness.paired`, for several figures of a run."""
    figures: Figures = {way: [] for way in WAYS}
    for number in range(rounds):
        narrate(f"{what}: round {number + 1} of {rounds}")
        for way in WAYS[:: -1 if number % 2 else 1]:
            figures[way].append(ways[way](prompts, tokens))
    return figures


def _with_cpu(pid: int, load: Coroutine[Any, Any, dict[str, float]]) -> dict[str, float]:
    """Run a load; also say how much processor time the daemon itself took, in milliseconds."""
    import psutil

    def spent() -> float:
        times = psutil.Process(pid).cpu_times()
        return (times.user + times.system) * 1000

    before = spent()
    figures = asyncio.run(load)
    return {**figures, "daemon_cpu_ms": spent() - before}


def _cost(runs: list[dict[str, float]]) -> float:
    """Milliseconds of the daemon's processor time for each token."""
    return sum(run["daemon_cpu_ms"] for run in runs) / sum(run["tokens"] for run in runs)


def _median_difference(these: list[float], those: list[float]) -> float:
    return statistics.median(a - b for a, b in zip(these, those, strict=True))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
