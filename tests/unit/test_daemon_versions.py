"""Which versions a name keeps: by count, by age, and what something else names."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from optiq_daemon.blobs import Blobs
from optiq_daemon.events import EventLog
from optiq_daemon.names import AdapterKey
from optiq_daemon.records import AdapterRecord
from optiq_daemon.registry import Registry
from optiq_daemon.store import Store
from optiq_daemon.version_catalog import Retention

KEY = AdapterKey("default", "support")
DAY_S = 86_400.0


@pytest.fixture
async def registry(tmp_path: Path) -> Registry:
    store = Store(tmp_path / "optiq.sqlite3")
    return Registry(store, EventLog(store), Blobs(tmp_path / "store"), Retention(5, keep_version_s=7 * DAY_S))


def publish(registry: Registry, number: int, *, days_ago: float = 0.0) -> None:
    found = registry.find(KEY)
    last = found.last_number if found else 0
    registry.publish(AdapterRecord(tenant=KEY.tenant, adapter=KEY.adapter, digest=f"{number:064x}", last_number=last))
    registry.history.of(KEY)[0].publish_time = time.time() - days_ago * DAY_S


def numbers(registry: Registry) -> list[int]:
    return [version.number for version in registry.history.of(KEY)]


async def test_a_version_is_as_old_as_the_one_that_took_its_place(registry: Registry) -> None:
    for number, days in ((1, 100), (2, 90), (3, 10), (4, 8), (5, 6)):
        publish(registry, number, days_ago=days)
    # v3 was served until eight days ago, v4 until six.
    publish(registry, 6)
    assert numbers(registry) == [6, 5, 4]


async def test_the_count_holds_beside_the_age(registry: Registry) -> None:
    for number in range(1, 9):
        publish(registry, number)
    assert numbers(registry) == [8, 7, 6, 5, 4]


async def test_what_is_served_and_what_is_held_has_no_age(registry: Registry) -> None:
    for number in (1, 2, 3):
        publish(registry, number, days_ago=100 - number)
    registry.history.is_held = lambda version: version.number == 2
    assert registry.history.prune(registry.record(KEY), 5, 7 * DAY_S) == []
    assert numbers(registry) == [3, 2], "v1 went when v3 came"


async def test_versions_come_of_age_while_nothing_is_published(tmp_path: Path) -> None:
    store = Store(tmp_path / "aging.sqlite3")
    blobs = Blobs(tmp_path / "aging")
    for number in (1, 2):
        blobs.path(f"{number:064x}").mkdir()
    registry = Registry(store, EventLog(store), blobs, Retention(5, keep_version_s=0.05))
    registry.restore()
    for number in (1, 2):
        blobs.path(f"{number:064x}").mkdir(exist_ok=True)
        publish(registry, number)
    assert numbers(registry) == [2, 1]
    for _ in range(200):
        await asyncio.sleep(0.02)
        if not blobs.has(f"{1:064x}"):
            break
    assert numbers(registry) == [2]
    assert not blobs.has(f"{1:064x}")
    assert blobs.has(f"{2:064x}"), "what is served stays"
    await registry.close()
