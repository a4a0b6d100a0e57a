"""Loading an adapter beside running rows rests between its parts."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from optiq_core.adapters import tensors
from optiq_core.adapters.bank import AdapterBank
from optiq_core.adapters.format import read_manifest
from optiq_core.engine.give_way import GiveWay
from tests.unit.tiny import tiny_model, write_mlx_adapter


def test_rests_follow_the_work_and_only_while_rows_run() -> None:
    now, rests, busy = [10.0], list[float](), [True]
    give_way = GiveWay(lambda: busy[0], clock=lambda: now[0], sleep=rests.append)
    now[0] += 0.004
    give_way()
    now[0] += 3.0
    give_way()
    busy[0] = False
    give_way()
    assert rests == pytest.approx([0.008, 0.05])


def test_an_adapter_that_is_read_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    folder = write_mlx_adapter(tmp_path / "a", model, rank=4, scale=2.0, seed=1, dora=True)
    targets, manifest = AdapterBank(model).targets, read_manifest(folder)
    parts = []
    loaded = []
    for size in (1, 1000):
        monkeypatch.setattr(tensors, "_SLICE", size)
        calls: list[None] = []
        loaded.append(
            tensors.load_tensors(folder, manifest, targets, mx.float32, between=lambda calls=calls: calls.append(None))
        )
        parts.append(len(calls))
    assert parts == [len(manifest.modules), 1] and parts[0] > 3
    assert loaded[0].keys() == loaded[1].keys()
    for path, delta in loaded[0].items():
        other = loaded[1][path]
        assert all(mx.array_equal(a, b).item() for a, b in ((delta.a, other.a), (delta.b, other.b))), path
