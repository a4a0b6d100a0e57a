"""``optiq bench policies``: what each training policy leaves to requests and to the trainer."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optiq_core.bench.harness import describe_run, emit, narrate, percentile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from optiq_client import AsyncClient, Job

POLICIES = ("share", "pause-when-busy", "exclusive")
# Sharing trainers slow down when tokens come this much slower than without training.
_LIMIT = 1.5
_WARM_UP_S = 3.0
_TRAINER_STARTS_S = 120.0
_MAX_TOKENS = 64


@click.command(epilog="\b\nExamples:\n  optiq bench policies --json\n  optiq bench policies --streams 8 --seconds 40")
@click.option("--streams", type=click.IntRange(1, 64), default=4, show_default=True, help="Requests at a time.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Of each measurement.")
@click.option("--quick", is_flag=True, help="A short run, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def policies(*, streams: int, seconds: float, quick: bool, as_json: bool) -> None:
    """Measure serving and training beside each other under each policy, against either alone.

    One daemon for each policy: first requests alone, then a job alone, then both. A sharing trainer slows down when the
    time between two tokens is over one and a half times that without training.
    """
    emit(run(streams=2 if quick else streams, seconds=3.0 if quick else seconds), as_json=as_json)


def run(*, streams: int = 4, seconds: float = 20.0) -> dict[str, Any]:
    """Measure.

    Returns:
        by policy `serving` and `training`: tokens a second beside each other over those alone; the figures behind them,
        time between tokens in milliseconds, requests that were refused.
    """
    from optiq_core.base import EMBEDDED
    from optiq_daemon.demo.host import DaemonHost

    rows: dict[str, Any] = {}
    gap_ms = 250.0
    for policy in POLICIES:
        settings = {"training_policy": policy, "training_latency_ms": str(_LIMIT * gap_ms)}
        host = DaemonHost("--max-batch", str(max(streams, 2)), settings=settings)
        try:
            narrate(f"{policy}: start a daemon")
            host.start().close()
            rows[policy] = asyncio.run(_Bench(str(host.home), streams, seconds).measure(policy))
        finally:
            host.stop()
        if policy == "share":
            gap_ms = rows[policy]["alone"]["gap_p50_ms"]
    return {
        "serving": {policy: row["serving"] for policy, row in rows.items()},
        "training": {policy: row["training"] for policy, row in rows.items()},
        "streams": streams,
        "rows": rows,
        "run": {"model_argument": EMBEDDED, **describe_run()},
    }


class _Bench:
    def __init__(self, home: str, streams: int, seconds: float) -> None:
        self._home = home
        self._streams = streams
        self._seconds = seconds
        self._tokens = self._refused = 0
        self._gaps: list[float] = []

    async def measure(self, policy: str) -> dict[str, Any]:
        from optiq_client import AsyncClient

        async with AsyncClient(home=self._home) as client:
            with tempfile.TemporaryDirectory() as folder:
                narrate(f"{policy}: requests alone")
                async with self._load(client):
                    alone = await self._serving()
                job = await self._train(client, Path(folder))
                narrate(f"{policy}: training alone")
                training_alone = await self._training(client, job)
                narrate(f"{policy}: both")
                self._refused = 0
                async with self._load(client):
                    training, both = await asyncio.gather(self._training(client, job), self._serving())
                await client.training.cancel(job.id)
        return {
            "serving": both["tokens_per_second"] / alone["tokens_per_second"],
            "training": training / training_alone if training_alone else 0.0,
            "alone": alone,
            "both": both,
            "training_alone_tokens_per_second": training_alone,
            "training_tokens_per_second": training,
            "refused": self._refused,
        }

    async def _serving(self) -> dict[str, float]:
        await asyncio.sleep(_WARM_UP_S)
        self._gaps.clear()
        before = self._tokens
        await asyncio.sleep(self._seconds)
        gaps = [gap * 1000 for gap in self._gaps]
        return {
            "tokens_per_second": (self._tokens - before) / self._seconds,
            "gap_p50_ms": percentile(gaps, 50) if gaps else 0.0,
            "gap_p95_ms": percentile(gaps, 95) if gaps else 0.0,
        }

    async def _train(self, client: AsyncClient, folder: Path) -> Job:
        from optiq_client import TrainingConfig

        lines = [
            f'{{"text": "Boat {n} comes home before the storm, and its name is written down."}}\n' for n in range(64)
        ]
        (folder / "train.jsonl").write_text("".join(lines), "utf-8")
        config = TrainingConfig(data_path=str(folder), batch_size=2, iters=1_000_000, steps_per_report=1)
        job = await client.training.create("beside", config)
        async with client.training.watch(job.id, timeout=_TRAINER_STARTS_S) as updates:
            async for update in updates:
                if update.progress is not None:
                    break
        return job

    async def _training(self, client: AsyncClient, job: Job) -> float:
        """Tokens with loss a second; the same wait as serving has, so that both look at the same time."""
        await asyncio.sleep(_WARM_UP_S)
        before = await self._trained(client, job)
        await asyncio.sleep(self._seconds)
        return (await self._trained(client, job) - before) / self._seconds

    async def _trained(self, client: AsyncClient, job: Job) -> int:
        progress = (await client.training.get(job.id)).progress
        return progress.trained_tokens if progress is not None else 0

    @asynccontextmanager
    async def _load(self, client: AsyncClient) -> AsyncIterator[None]:
        """Keep the streams going."""
        tasks = [asyncio.create_task(self._keep(client, number)) for number in range(self._streams)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, client: AsyncClient, number: int) -> None:
        from optiq_client import Chunk, Unavailable

        for turn in itertools.count():
            last = 0.0
            try:
                async for event in client.generate(
                    f"Count from {number * 1000 + turn}:", max_tokens=_MAX_TOKENS
                ).events():
                    if isinstance(event, Chunk):
                        now = time.perf_counter()
                        if last:
                            self._gaps.append((now - last) / max(1, len(event.token_ids)))
                        last, self._tokens = now, self._tokens + len(event.token_ids)
            except Unavailable:
                self._refused += 1
                await asyncio.sleep(1.0)
