"""``optiq bench evict``: more hot adapters than fit the engine, used in turn."""

from __future__ import annotations

import collections
import itertools
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import click

from optiq_client import Chunk, Client, OptiqClientError
from optiq_core.bench.harness import describe_run, emit, narrate, percentile
from optiq_daemon.bench.adapters import write_random
from optiq_daemon.demo.host import DaemonHost

RANK = 4
TARGETS = ("q_proj", "v_proj")
PROMPT = [1, 504, 2029, 28, 1230]


@click.command(epilog="\b\nExamples:\n  optiq bench evict --json\n  optiq bench evict --adapters 60 --budget 20 --json")
@click.option("--adapters", type=click.IntRange(2), default=300, show_default=True, help="Hot adapters.")
@click.option("--budget", type=click.IntRange(1), default=100, show_default=True, help="How many of them fit.")
@click.option("--clients", type=click.IntRange(1, 64), default=8, show_default=True, help="Requests at once.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Turns of every adapter.")
@click.option("--tokens", type=click.IntRange(1), default=4, show_default=True, help="Tokens of each request.")
@click.option("--quick", is_flag=True, help="A dozen adapters, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evict(*, adapters: int, budget: int, clients: int, rounds: int, tokens: int, quick: bool, as_json: bool) -> None:
    """Use more adapters in turn than fit the engine.

    Round robin is the worst case of a least-recently-used cache: every request needs a load. The same clients first use
    only as many adapters as fit, which is the baseline. Every adapter is used once before it is measured.
    """
    if quick:
        adapters, budget, clients, rounds = 12, 4, 4, 1
    emit(run(adapters=adapters, budget=budget, clients=clients, rounds=rounds, tokens=tokens), as_json=as_json)


def run(*, adapters: int, budget: int, clients: int = 8, rounds: int = 2, tokens: int = 4) -> dict[str, Any]:
    """Measure.

    Returns:
        ``errors``, ``p99_over_p50`` of the times to first token, ``swaps`` (evictions), the same for the baseline that
        fits, and ``slowdown``: median time of a request over the baseline's.
    """
    from optiq_core.base import EMBEDDED, resolve_base

    base = resolve_base(EMBEDDED)
    probe = DaemonHost()
    size = write_random(probe.home / "probe", base, rank=RANK, seed=0, targets=TARGETS)
    probe.stop()
    host = DaemonHost("--adapter-budget-mb", f"{(budget + 0.5) * size / 1e6:.6f}", "--max-queue", str(2 * clients))
    try:
        client = host.start()
        _install(client, host, base, adapters)
        names = [f"hot-{number:04}" for number in range(adapters)]
        fits = min(budget, adapters)
        _use(client, names[:fits], clients, 1, tokens)
        narrate(f"{fits} adapters in turn, all of which fit")
        baseline = _use(client, names[:fits], clients, rounds, tokens)
        # The first load of an adapter is followed by a probe of what it does, once: that is part of its installation.
        narrate(f"{adapters} adapters in turn, {budget} fit: once before, then measured")
        _use(client, names, clients, 1, tokens)
        before = client.runtime.status().engine.adapter_evictions
        hot = _use(client, names, clients, rounds, tokens)
        engine = client.runtime.status().engine
        client.close()
    finally:
        host.stop()
    return {
        "errors": len(hot["errors"]),
        "p99_over_p50": percentile(hot["first_ms"], 99) / statistics.median(hot["first_ms"]),
        "swaps": engine.adapter_evictions - before,
        "slowdown": statistics.median(hot["total_ms"]) / statistics.median(baseline["total_ms"]),
        "hot": _summary(hot),
        "fits": _summary(baseline),
        "error_kinds": dict(collections.Counter(hot["errors"])),
        "adapters": adapters,
        "budget": budget,
        "adapter_bytes": size,
        "budget_bytes": engine.adapter_budget_bytes,
        "clients": clients,
        "run": describe_run(),
    }


def _install(client: Client, host: DaemonHost, base: Path, adapters: int) -> None:
    narrate(f"install {adapters} adapters")
    for number in range(adapters):
        folder = host.home / "sources" / f"hot-{number:04}"
        write_random(folder, base, rank=RANK, seed=number, targets=TARGETS)
        folder.rename(host.drop_folder / folder.name)
    until = time.monotonic() + 300
    while sum(bool(adapter.digest) for adapter in client.adapters.list()) < adapters:
        if time.monotonic() > until:
            raise click.ClickException("the adapters were not installed within five minutes")
        time.sleep(0.2)
    shutil.rmtree(host.home / "sources")


def _use(client: Client, names: list[str], clients: int, rounds: int, tokens: int) -> dict[str, Any]:
    """Clients take the next adapter in turn; milliseconds of every request, and what went wrong."""
    queue = iter(itertools.chain.from_iterable(itertools.repeat(names, rounds)))
    lock = threading.Lock()
    figures: dict[str, Any] = {"first_ms": [], "total_ms": [], "errors": []}

    def work() -> None:
        while True:
            with lock:
                name = next(queue, None)
            if name is None:
                return
            began = time.perf_counter()
            try:
                generation = client.generate(PROMPT, adapter=name, max_tokens=tokens, timeout=120)
                first = 0.0
                for event in generation.events():
                    if not first and isinstance(event, Chunk):
                        first = time.perf_counter()
                ended = time.perf_counter()
            except OptiqClientError as error:
                with lock:
                    figures["errors"].append(f"{type(error).__name__} {error}")
                continue
            with lock:
                figures["first_ms"].append(((first or ended) - began) * 1000)
                figures["total_ms"].append((ended - began) * 1000)

    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figures["seconds"] = time.perf_counter() - began
    return figures


def _summary(figures: dict[str, Any]) -> dict[str, float]:
    first = figures["first_ms"]
    return {
        "p50_first_token_ms": statistics.median(first),
        "p99_first_token_ms": percentile(first, 99),
        "max_first_token_ms": max(first),
        "requests_per_second": len(first) / figures["seconds"],
    }
