"""``optiq bench fairness``: what one tenant feels of another's flood, and whether shares follow weights."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from optiq_core.bench.harness import describe_run, emit, narrate, percentile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from optiq_client import AsyncClient

WEIGHTS = {"heavy": 3.0, "light": 1.0}
WARM_UP_S = 120.0
# Numbered words: every prompt begins with its own, so that none takes a prefix from the cache.
_SENTENCE = "The harbour master counts the boats that come home before the storm and writes their names down. "


@click.command(epilog="\b\nExamples:\n  optiq bench fairness --json\n  optiq bench fairness --streams 64 --requests 30")
@click.option("--streams", type=click.IntRange(1, 256), default=64, show_default=True, help="Of the flooding tenant.")
@click.option("--requests", type=click.IntRange(1), default=20, show_default=True, help="One by one, idle and flooded.")
@click.option("--rows", type=click.IntRange(2, 128), default=16, show_default=True, help="Of the engine's batch.")
@click.option("--sentences", type=click.IntRange(1, 60), default=12, show_default=True, help="Of a prompt; 20 tokens.")
@click.option("--share-seconds", type=float, default=60.0, show_default=True, help="Both tenants saturate this long.")
@click.option("--quick", is_flag=True, help="A short run, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fairness(
    *, streams: int, requests: int, rows: int, sentences: int, share_seconds: float, quick: bool, as_json: bool
) -> None:
    """Measure a tenant's first-token time under another's flood, and the shares of two that saturate.

    First, a tenant sends one request after the other to an idle daemon, then the same while another tenant keeps all of
    its streams busy. Then two tenants with weights 3 and 1 saturate the engine.
    """
    if quick:
        streams, requests, rows, sentences, share_seconds = 8, 2, 4, 2, 4.0
    result = run(streams=streams, requests=requests, rows=rows, sentences=sentences, share_seconds=share_seconds)
    emit(result, as_json=as_json)


def run(
    *, streams: int = 64, requests: int = 20, rows: int = 16, sentences: int = 12, share_seconds: float = 60.0
) -> dict[str, Any]:
    """Measure.

    Returns:
        ``p99_ratio`` (99th percentile of the time to first token, flooded over idle), ``share_error`` (largest relative
        distance of a tenant's tokens from its weight's share), and the figures behind them; times in milliseconds.
    """
    from optiq_core.base import EMBEDDED
    from optiq_daemon.demo.host import DaemonHost

    host = DaemonHost("--max-batch", str(rows))
    try:
        narrate("start a daemon")
        with host.start() as owner:
            for tenant, weight in (("flood", 1.0), ("single", 1.0), *WEIGHTS.items()):
                owner.tenants.create(tenant, weight=weight)
        bench = _Bench(str(host.home), sentences)
        result = asyncio.run(bench.measure(streams, requests, rows, share_seconds))
    finally:
        host.stop()
    return {**result, "run": {"model_argument": EMBEDDED, **describe_run()}}


class _Bench:
    def __init__(self, home: str, sentences: int) -> None:
        self._home = home
        self._prompts: Iterator[str] = (f"{number}. {_SENTENCE * sentences}" for number in itertools.count(1000))
        self.tokens: Counter[str] = Counter()

    async def measure(self, streams: int, requests: int, rows: int, share_seconds: float) -> dict[str, Any]:
        from optiq_client import AsyncClient

        async with AsyncClient(home=self._home, tenant="single") as single:
            narrate("idle")
            await self._one_by_one(single, 2)
            idle = await self._one_by_one(single, requests)
            async with self._flood("flood", streams, tokens=48):
                await asyncio.sleep(2.0)
                narrate(f"{streams} streams of another tenant")
                before, began = self.tokens["flood"], time.perf_counter()
                flooded = await self._one_by_one(single, requests)
                rate = (self.tokens["flood"] - before) / (time.perf_counter() - began)
        shares = await self._shares(rows, share_seconds)
        total = sum(shares.values()) or 1
        weights = sum(WEIGHTS.values())
        errors = {t: abs(shares[t] / total / (WEIGHTS[t] / weights) - 1) for t in WEIGHTS}
        return {
            "p99_ratio": percentile(flooded, 99) / percentile(idle, 99),
            "share_error": max(errors.values()),
            "p50_ratio": percentile(flooded, 50) / percentile(idle, 50),
            "idle_ms": _spread(idle),
            "flooded_ms": _spread(flooded),
            "flood_tokens_per_second": rate,
            "tokens": dict(shares),
            "shares": {tenant: shares[tenant] / total for tenant in WEIGHTS},
            "weights": WEIGHTS,
            "streams": streams,
            "requests": requests,
            "rows": rows,
        }

    async def _one_by_one(self, client: AsyncClient, requests: int) -> list[float]:
        """Milliseconds to the first token of each, as the client sees it."""
        from optiq_client import Chunk

        times = []
        for _ in range(requests):
            began = time.perf_counter()
            async for event in client.generate(next(self._prompts), max_tokens=2).events():
                if isinstance(event, Chunk):
                    times.append((time.perf_counter() - began) * 1000)
                    break
            await asyncio.sleep(0.2)
        return times

    async def _shares(self, rows: int, seconds: float) -> Counter[str]:
        """Tokens of each in `seconds`, once the head start of the tenant that came first has been evened out."""
        async with self._flood("heavy", 2 * rows, tokens=24), self._flood("light", 2 * rows, tokens=24):
            narrate("two tenants saturate the engine: warm up")
            deadline = time.perf_counter() + WARM_UP_S
            while self.tokens["light"] < 2 * rows * 24 and time.perf_counter() < deadline:  # noqa: ASYNC110 - a count
                await asyncio.sleep(0.1)
            narrate("two tenants saturate the engine")
            before = Counter(self.tokens)
            await asyncio.sleep(seconds)
            after = Counter(self.tokens)
        return Counter({tenant: after[tenant] - before[tenant] for tenant in WEIGHTS})

    @asynccontextmanager
    async def _flood(self, tenant: str, streams: int, *, tokens: int) -> AsyncIterator[None]:
        """Keep so many requests of a tenant going."""
        from optiq_client import AsyncClient, Chunk

        async def keep(client: AsyncClient, number: int) -> None:
            for turn in itertools.count():
                prompt = f"Count from {number * 1000 + turn}:"
                async for event in client.generate(prompt, max_tokens=tokens).events():
                    if isinstance(event, Chunk):
                        self.tokens[tenant] += len(event.token_ids)

        async with AsyncClient(home=self._home, tenant=tenant) as client:
            tasks = [asyncio.create_task(keep(client, number)) for number in range(streams)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _spread(times: list[float]) -> dict[str, float]:
    return {"p50": percentile(times, 50), "p99": percentile(times, 99), "max": max(times)}
