"""``optiq bench drop``: how soon a copied folder can be used, and what running streams notice of it."""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import click

from optiq_client import Client
from optiq_core.bench.harness import describe_run, emit, narrate
from optiq_daemon.bench.adapters import write_random
from optiq_daemon.demo.host import DaemonHost

SETTLE_MS = 250
# All linear modules of SmolLM2-135M at this rank are 4.9 MB in float32.
RANK = 4
PROMPT = "Count to a thousand: one, two,"


@click.command(epilog="\b\nExamples:\n  optiq bench drop --json\n  optiq bench drop --counts 1,10 --rounds 3")
@click.option("--counts", default="1,10,100", show_default=True, help="Folders copied together.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Drops of one folder.")
@click.option(
    "--streams", type=click.IntRange(0, 16), default=4, show_default=True, help="Streams beside the largest drop."
)
@click.option("--quick", is_flag=True, help="One and two folders, once, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def drop(*, counts: str, rounds: int, streams: int, quick: bool, as_json: bool) -> None:
    """Time from the end of a copy to routable, for 1, 10 and 100 folders.

    Each folder is an adapter of about 5 MB on all linear modules. The time includes the settle time. The goal for one
    folder is the settle time and 150 ms. Then as many folders as the most of these are dropped beside running streams,
    whose tokens a second are compared with those just before and after.
    """
    numbers = [int(part) for part in counts.split(",")]
    if quick:
        numbers, rounds, streams = [1, 2], 1, 1
    emit(run(counts=numbers, rounds=rounds, streams=streams), as_json=as_json)


def run(*, counts: list[int], rounds: int = 5, streams: int = 4) -> dict[str, Any]:
    """Measure.

    Returns:
        ``settle_ms``, ``drop_to_routable_ms`` by number of folders (the median over rounds of the last folder's time),
        and with streams ``stream_ratio``: tokens a second during a drop over those around it.
    """
    host = DaemonHost("--settle-ms", str(SETTLE_MS), "--max-queue", "64")
    sources = host.home / "sources"
    try:
        client = host.start()
        base = Path(client.runtime.status().base.path)
        size = 0
        for number in range(max(counts)):
            size = write_random(sources / f"drop-{number}", base, rank=RANK, seed=number)
        times: dict[str, list[float]] = {}
        for count in counts:
            for round_ in range(rounds if count == 1 else 1):
                narrate(f"{count} folders, round {round_ + 1}")
                times.setdefault(str(count), []).append(_drop(client, host, sources, count))
                _clear(client, host)
        result: dict[str, Any] = {
            "settle_ms": SETTLE_MS,
            "drop_to_routable_ms": {count: round(statistics.median(found), 1) for count, found in times.items()},
            "rounds_ms": {count: [round(value, 1) for value in found] for count, found in times.items()},
            "adapter_bytes": size,
        }
        if streams:
            result |= _beside_streams(client, host, sources, streams, max(counts))
        client.close()
    finally:
        host.stop()
    return {**result, "run": describe_run()}


def _drop(client: Client, host: DaemonHost, sources: Path, count: int) -> float:
    """Copy folders; milliseconds from the end of the copy until the last one is routable."""
    missing = {f"drop-{number}" for number in range(count)}
    done = threading.Event()
    last = 0.0
    with client.adapters.watch() as changes:

        def follow() -> None:
            nonlocal last
            for change in changes:
                if change.adapter is not None and change.adapter.digest and change.adapter.id in missing:
                    missing.discard(change.adapter.id)
                    last = time.perf_counter()
                    if not missing:
                        break
            done.set()

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        for name in sorted(missing):
            shutil.copytree(sources / name, host.drop_folder / name)
        ended = time.perf_counter()
        if not done.wait(120):
            raise click.ClickException(f"not routable after two minutes: {', '.join(sorted(missing))}")
    return (last - ended) * 1000


def _clear(client: Client, host: DaemonHost) -> None:
    for folder in list(host.drop_folder.iterdir()):
        shutil.rmtree(folder)
    while client.adapters.list():
        time.sleep(0.05)


def _beside_streams(client: Client, host: DaemonHost, sources: Path, streams: int, count: int) -> dict[str, Any]:
    """Tokens a second of running streams before, during and after a drop."""
    stamps: list[float] = []
    running = [client.generate(PROMPT, max_tokens=2000, raw=True) for _ in range(streams)]

    def read(number: int) -> None:
        for _ in running[number]:
            stamps.append(time.perf_counter())

    threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(streams)]
    for thread in threads:
        thread.start()
    while len(stamps) < 2 * streams:
        time.sleep(0.05)
    narrate(f"{count} folders beside {streams} streams")
    window = 8.0
    begin = time.perf_counter()
    time.sleep(window)
    dropped = time.perf_counter()
    milliseconds = _drop(client, host, sources, count)
    time.sleep(max(0.0, dropped + window - time.perf_counter()))
    after = time.perf_counter()
    time.sleep(window)
    end = time.perf_counter()
    for generation in running:
        generation.cancel()
    for thread in threads:
        thread.join(10)
    rates = [
        sum(start <= stamp < stop for stamp in stamps) / (stop - start)
        for start, stop in ((begin, dropped), (dropped, after), (after, end))
    ]
    return {
        "stream_ratio": rates[1] / statistics.mean((rates[0], rates[2])),
        "stream_tokens_per_second": {"before": rates[0], "during": rates[1], "after": rates[2]},
        "beside_streams_ms": round(milliseconds, 1),
        "streams": streams,
    }
