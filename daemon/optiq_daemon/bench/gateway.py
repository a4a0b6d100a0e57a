"""``optiq bench gateway``: what the daemon costs over the engine alone, over gRPC and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import click

from optiq_core.bench.harness import emit, median_ratio, narrate
from optiq_daemon.bench.load import EngineAlone, over_grpc, over_http

WAYS = ("engine", "grpc", "http")
Figures = dict[str, list[dict[str, float]]]


@click.command(
    epilog="\b\nExamples:\n  optiq bench gateway --json\n  optiq bench gateway --streams 16 --tokens 64 --starts 5"
)
@click.option("--streams", type=click.IntRange(1, 128), default=16, show_default=True, help="Requests at once.")
@click.option("--tokens", type=click.IntRange(2, 512), default=48, show_default=True, help="Tokens of each.")
@click.option("--starts", type=click.IntRange(1), default=3, show_default=True, help="Times that all is started anew.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Runs of each way in each.")
@click.option("--first-rounds", type=click.IntRange(1), default=8, show_default=True, help="First-token runs likewise.")
@click.option("--quick", is_flag=True, help="One short run of each way, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gateway(
    *, streams: int, tokens: int, starts: int, rounds: int, first_rounds: int, quick: bool, as_json: bool
) -> None:
    """Compare gRPC and HTTP with the engine alone.

    Throughput is what a client sees of all streams together while every one of them decodes; `whole` counts from the
    first request to the last text, prompts included. First-token time is that of a lone request. All ways decode the
    same prompts greedily, in turn.

    The engine alone runs in a process of its own that hands its tokens to nobody; over gRPC and HTTP the same engine,
    the daemon and all clients share the machine's cores, so the clients' own work is in the ratios. Processor time for
    each token is told for each process; that of an engine holds its BLAS threads' waiting for one another. Processes
    are started several times: the same engine may be a tenth faster or slower from one start to the next.
    """
    if quick:
        streams, tokens, starts, rounds, first_rounds = 4, 16, 1, 1, 2
    figures = run(streams=streams, tokens=tokens, starts=starts, rounds=rounds, first_rounds=first_rounds)
    emit(figures, as_json=as_json)


def run(
    *, streams: int = 16, tokens: int = 48, starts: int = 3, rounds: int = 2, first_rounds: int = 8
) -> dict[str, Any]:
    """Measure.

    Returns:
        ``grpc_over_engine`` and ``http_over_engine`` (ratios of tokens a second while all streams decode),
        ``grpc_over_engine_whole`` and ``http_over_engine_whole`` (from the first request to the last text),
        ``added_ttft_ms`` (HTTP's first text less the engine's) and ``grpc_added_ttft_ms``, each the median over pairs,
        and the figures behind them.
    """
    from optiq_core.base import EMBEDDED

    prompts = [f"Count: {start}, {start + 1}, {start + 2}," for start in range(1, streams + 1)]
    many, one = _none(), _none()
    for number in range(starts):
        with _ways(streams) as (described, ways):
            narrate(f"start {number + 1} of {starts}: warm up")
            for way in ways.values():
                way(prompts, 4)
            _interleave(many, ways, prompts, tokens, rounds=rounds, what="streams")
            _interleave(one, ways, prompts[:1], 3, rounds=first_rounds, what="first token")
    speed = {way: [figures["tokens_per_second"] for figures in many[way]] for way in WAYS}
    whole = {way: [figures["whole_tokens_per_second"] for figures in many[way]] for way in WAYS}
    first = {way: [figures["first_text_ms"] for figures in one[way]] for way in WAYS}
    return {
        "grpc_over_engine": median_ratio(speed["grpc"], speed["engine"]),
        "http_over_engine": median_ratio(speed["http"], speed["engine"]),
        "grpc_over_engine_whole": median_ratio(whole["grpc"], whole["engine"]),
        "http_over_engine_whole": median_ratio(whole["http"], whole["engine"]),
        "added_ttft_ms": _median_difference(first["http"], first["engine"]),
        "grpc_added_ttft_ms": _median_difference(first["grpc"], first["engine"]),
        "tokens_per_second": {way: statistics.median(speed[way]) for way in WAYS},
        "whole_tokens_per_second": {way: statistics.median(whole[way]) for way in WAYS},
        "first_text_ms": {way: statistics.median(first[way]) for way in WAYS},
        "tokens": {way: int(many[way][0]["tokens"]) for way in WAYS},
        "rounds_tokens_per_second": {way: [round(figure, 2) for figure in speed[way]] for way in WAYS},
        "cpu_ms_per_token": {way: _costs(many[way]) for way in WAYS},
        "streams": streams,
        "starts": starts,
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
        with host.start() as client:
            engine_pid = client.runtime.status().engine.pid
        pids = {"engine": engine_pid, "daemon": host.pid, "client": os.getpid()}
        narrate("start the engine alone")
        alone = EngineAlone(EMBEDDED, streams)
        try:
            yield (
                alone.described,
                {
                    "engine": lambda prompts, n: _with_cpu({"engine": alone.pid}, lambda: alone.run(prompts, n)),
                    "grpc": lambda prompts, n: _with_cpu(
                        pids, lambda: asyncio.run(over_grpc(socket_path(host.home), prompts, n))
                    ),
                    "http": lambda prompts, n: _with_cpu(
                        pids, lambda: asyncio.run(over_http(port, base_name(EMBEDDED), prompts, n))
                    ),
                },
            )
        finally:
            alone.close()
    finally:
        host.stop()


def _none() -> Figures:
    return {way: [] for way in WAYS}


def _interleave(figures: Figures, ways: Any, prompts: list[str], tokens: int, *, rounds: int, what: str) -> None:
    """As :func:`optiq_core.bench.harness.paired`, for several figures of a run."""
    for number in range(rounds):
        narrate(f"{what}: round {number + 1} of {rounds}")
        for way in WAYS[:: -1 if number % 2 else 1]:
            figures[way].append(ways[way](prompts, tokens))


def _with_cpu(pids: dict[str, int], load: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Run a load; also say how much processor time each process took, in milliseconds."""
    import psutil

    processes = {name: psutil.Process(pid) for name, pid in pids.items()}

    def spent() -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in processes.items()}
        return {name: (one.user + one.system) * 1000 for name, one in times.items()}

    before = spent()
    figures = load()
    return {**figures, **{f"cpu_ms_{name}": after - before[name] for name, after in spent().items()}}


def _costs(runs: list[dict[str, float]]) -> dict[str, float]:
    """Milliseconds of each process's time for each token."""
    tokens = sum(run["tokens"] for run in runs)
    names = [name for name in runs[0] if name.startswith("cpu_ms_")]
    return {name.removeprefix("cpu_ms_"): sum(run[name] for run in runs) / tokens for name in names}


def _median_difference(these: list[float], those: list[float]) -> float:
    return statistics.median(a - b for a, b in zip(these, those, strict=True))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
