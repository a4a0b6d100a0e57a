"""Pages: what rows use is written once, in place, beside what others use."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from optiq_core.adapters.bank import BASE, AdapterBank, active
from optiq_core.adapters.pages import PagePool, PageRun
from optiq_core.adapters.tensors import DeltaTensors
from tests.unit.tiny import tiny_model


def adapter(bank: AdapterBank, rank: int, seed: int) -> dict[str, DeltaTensors]:
    rng = np.random.default_rng(seed)
    return {
        path: DeltaTensors(
            mx.array(rng.normal(size=(dims[0], rank)).astype(np.float32) * 0.1),
            mx.array(rng.normal(size=(rank, dims[1])).astype(np.float32) * 0.1),
            None,
        )
        for path, dims in bank.modules.items()
    }


def test_a_pool_gives_neighbouring_pages_and_takes_them_back() -> None:
    pool = PagePool(4, mx.float32)
    first, second = pool.take(8, grow=False), pool.take(17, grow=False)
    assert (first, second) == (PageRun(0, 1), PageRun(1, 3))
    pool.give_back(first)
    assert pool.take(9, grow=False) == PageRun(4, 2), "a gap of one page does not hold two"
    assert pool.take(1, grow=False) == PageRun(0, 1)
    assert pool.take(256, grow=False) is None
    grown = pool.take(256, grow=True)
    assert grown == PageRun(6, 32)
    assert len(pool) >= 38


@pytest.mark.parametrize("experts", [0, 3])
def test_a_pool_shrinks_to_what_is_used_and_moves_nothing(experts: int) -> None:
    pool = PagePool(4, mx.float32, experts=experts)
    shape = (experts, 8, 4) if experts else (8, 4)
    runs = [pool.take(8, grow=True) for _ in range(200)]
    assert all(runs)
    before = mx.random.normal(shape)
    pool.write(runs[1], before)
    full = pool.nbytes
    for run in runs[50:]:
        pool.give_back(run)
    assert pool.shrink()
    mx.eval(pool.pages)
    assert 50 <= len(pool) <= 100 and pool.nbytes < full / 2
    assert mx.array_equal(pool.matrix(runs[1]), before).item()
    assert not pool.shrink(), "half of it is in use"
    for run in runs[2:50]:
        pool.give_back(run)
    assert pool.shrink()
    assert mx.array_equal(pool.matrix(runs[1]), before).item()


def test_writing_an_adapter_copies_no_pool() -> None:
    pool = PagePool(2048, mx.float32)
    mx.eval(pool.pages)
    run = pool.take(8, grow=False)
    assert run is not None
    matrix = mx.ones((8, 2048))
    mx.eval(matrix)
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    pool.write(run, matrix)
    mx.eval(pool.pages)
    assert mx.get_peak_memory() - before < pool.nbytes // 8
    assert pool.pages[run.first].sum().item() == 8 * 2048


def test_the_bank_shrinks_as_adapters_leave_and_rows_in_flight_are_not_touched() -> None:
    model = tiny_model()
    bank = AdapterBank(model)
    tokens = mx.array([[4, 5, 6]])
    names = [f"a{i}" for i in range(40)]
    for i, name in enumerate(names):
        bank.load(name, adapter(bank, 24, i))
    kept = bank.rows([bank.handle("a0")], [1.0])
    every = bank.rows([bank.handle(name) for name in names], [1.0] * len(names))
    assert kept is not None and every is not None

    def logits() -> mx.array:
        token = active.set(kept)
        try:
            out: mx.array = model(tokens)
            mx.eval(out)
            return out
        finally:
            active.reset(token)

    before, grown = logits(), bank.page_nbytes
    del every
    for name in names[1:]:
        bank.unload(name)
    assert bank.page_nbytes < grown / 2
    assert mx.array_equal(logits(), before).item()
    again = bank.rows([bank.handle("a0"), BASE], [1.0, 1.0])
    assert again is not None


def test_residents_cost_their_bytes_and_a_batch_its_own_pages_only() -> None:
    bank = AdapterBank(tiny_model())
    for i in range(60):
        bank.load(f"a{i}", adapter(bank, 8, i))
    assert bank.nbytes - bank.page_nbytes == 60 * bank.bytes_of("a0")
    before = bank.page_nbytes
    for i in range(0, 60, 4):
        rows = bank.rows([bank.handle(f"a{i + j}") for j in range(4)], [1.0] * 4)
        assert rows is not None
        del rows
    assert bank.page_nbytes == before, "pages of adapters that no batch uses are used again"


def test_pages_of_a_live_batch_are_never_used_again() -> None:
    model = tiny_model()
    bank = AdapterBank(model)
    tokens = mx.array([[1, 2, 3]] * 2)
    for i in range(40):
        bank.load(f"a{i}", adapter(bank, 16, i))
    kept = bank.rows([bank.handle("a0"), BASE], [1.0, 1.0])

    def logits() -> mx.array:
        token = active.set(kept)
        try:
            out = model(tokens)
            mx.eval(out)
            return out
        finally:
            active.reset(token)

    before = logits()
    for i in range(1, 40):
        bank.rows([bank.handle(f"a{i}")], [1.0])
    assert mx.array_equal(logits(), before).item()


@pytest.mark.parametrize("length", [1, 5])
def test_rank_256_beside_rank_1_equals_each_alone(length: int) -> None:
    model = tiny_model()
    bank = AdapterBank(model)
    bank.load("wide", adapter(bank, 256, 1))
    bank.load("thin", adapter(bank, 1, 2))
    tokens = mx.array([[7, 3, 9, 2, 4][:length]] * 3)

    def run(keys: list[str]) -> mx.array:
        token = active.set(bank.rows([bank.handle(k) if k else BASE for k in keys], [1.0] * len(keys)))
        try:
            out = model(tokens[: len(keys)])
            mx.eval(out)
            return out
        finally:
            active.reset(token)

    together = run(["wide", "", "thin"])
    for i, key in enumerate(["wide", "", "thin"]):
        assert mx.abs(together[i] - run([key])[0]).max().item() < 1e-4
