"""``optiq bench tui``: how long a key takes on a dashboard that thousands of adapters and events pour into."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optiq_tui.bench.probe import ProbedApp

LAG_SECONDS = 0.005
BETWEEN_SECONDS = 0.03
SIZE = (200, 60)
SCREENS = {"2": "adapters", "3": "routing", "6": "events"}


@click.command(epilog="\b\nExamples:\n  optiq bench tui --json\n  optiq bench tui --adapters 5000 --events 500")
@click.option("--adapters", type=click.IntRange(1), default=2000, show_default=True, help="That the daemon has.")
@click.option(
    "--events", type=click.IntRange(1), default=300, show_default=True, help="A second; half change adapters."
)
@click.option("--requests", type=click.IntRange(0), default=200, show_default=True, help="Live ones in every status.")
@click.option("--keys", type=click.IntRange(1), default=100, show_default=True, help="Pressed on each screen.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tui(*, adapters: int, events: int, requests: int, keys: int, as_json: bool) -> None:
    """Measure the dashboard's input latency under load.

    The dashboard runs without a terminal at 200 x 60, against a server in its own process. A key's time goes from
    sending it to the end of the paint that shows the cursor moved; the loop's lag is how late a timer of 5 ms fires.
    """
    result = run(adapters=adapters, events=events, requests=requests, keys=keys)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for name in ("input_ms", "lag_ms"):
        click.echo(f"{name:<10} p50 {result[name]['p50']:.1f}  p99 {result[name]['p99']:.1f}")
    click.echo(f"{'frames':<10} {result['frames']} in {result['seconds']:.1f} s")


def run(*, adapters: int = 2000, events: int = 300, requests: int = 200, keys: int = 100) -> dict[str, Any]:
    """Measure.

    Returns:
        ``input_ms`` (p50 and p99, over all screens, and for each), ``lag_ms`` of the event loop, ``frames`` drawn,
        ``lost_views`` that came without a connection (0, or it was not the load that was measured), ``seconds``
        measured, and what it was measured with; times in milliseconds.
    """
    with tempfile.TemporaryDirectory() as folder, _server(folder, adapters, events, requests) as address:
        measured = asyncio.run(_measure(address, adapters, keys))
    return {
        **measured,
        "adapters": adapters,
        "events_per_second": events,
        "live_requests": requests,
        "size": f"{SIZE[0]}x{SIZE[1]}",
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


@contextmanager
def _server(folder: str, adapters: int, events: int, requests: int) -> Iterator[str]:
    address = f"unix:{Path(folder) / 's'}"
    command = [sys.executable, "-m", "optiq_tui.bench.server", address, str(adapters), str(events), str(requests)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield address
        finally:
            process.terminate()


async def _measure(address: str, adapters: int, keys: int) -> dict[str, Any]:
    from optiq_tui.bench.probe import ProbedApp
    from optiq_tui.garbage import collect_rarely

    collect_rarely()
    app = ProbedApp(address, readonly=True)
    async with app.run_test(size=SIZE) as pilot:
        while len(app.view.adapters) < adapters or not app.view.events:
            await pilot.pause(0.05)
        lags: list[float] = []
        by_screen: dict[str, list[float]] = {}
        ticker = asyncio.create_task(_lag(lags))
        began, before, lost = time.perf_counter(), app.frames, app.lost
        for key, name in SCREENS.items():
            await pilot.press(key)
            await pilot.pause(0.5)
            by_screen[name] = await _press(app, keys)
        seconds, frames = time.perf_counter() - began, app.frames - before
        lost = app.lost - lost
        ticker.cancel()
    return {
        "input_ms": _percentiles([latency for latencies in by_screen.values() for latency in latencies]),
        "input_ms_by_screen": {name: _percentiles(latencies) for name, latencies in by_screen.items()},
        "lag_ms": _percentiles(lags),
        "frames": frames,
        "lost_views": lost,
        "seconds": round(seconds, 2),
    }


async def _press(app: ProbedApp, keys: int) -> list[float]:
    """Move the cursor ``keys`` times; milliseconds until each move has been painted."""
    app.probe()
    latencies = []
    for number in range(keys):
        began = time.perf_counter()
        painted = await app.move("down" if number % 10 < 7 else "up")
        latencies.append((painted - began) * 1000)
        await asyncio.sleep(BETWEEN_SECONDS)
    return latencies


async def _lag(lags: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(LAG_SECONDS)
        lags.append((time.perf_counter() - began - LAG_SECONDS) * 1000)


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [*values] * 99
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "max": round(max(values), 2)}
