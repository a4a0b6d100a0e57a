"""Decode steps by segments: shared runs, factors, modules that read the same input, on one stream or two."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from optiq_core.adapters import banked
from optiq_core.adapters.bank import BASE, ActiveRows, AdapterBank, active
from optiq_core.adapters.banked import single_pages
from optiq_core.adapters.pages import ModulePages
from optiq_core.adapters.tensors import DeltaTensors
from tests.unit.tiny import tiny_model

TOLERANCE = 2e-5
# Different modules in different layers; none has all of a group.
TARGETS = {"a": ("q_proj", "v_proj", "up_proj"), "b": ("k_proj", "gate_proj", "down_proj"), "c": ("_proj",)}
RANKS = {"a": 3, "b": 20, "c": 8}


def bank_of_three(model: nn.Module, *, dora: str = "c") -> AdapterBank:
    bank = AdapterBank(model)
    for seed, (key, leaves) in enumerate(TARGETS.items()):
        rng = np.random.default_rng(seed)

        def random(*shape: int, rng: np.random.Generator = rng) -> mx.array:
            return mx.array(rng.normal(size=shape).astype(np.float32) * 0.3)

        bank.load(
            key,
            {
                path: DeltaTensors(
                    random(shape.input_dims, RANKS[key]),
                    random(RANKS[key], shape.output_dims),
                    random(shape.output_dims) * 0.3 if key == dora else None,
                )
                for path, shape in bank.modules.items()
                if path.endswith(leaves)
            },
        )
    return bank


def steps(model: nn.Module, bank: AdapterBank, keys: list[str], factors: list[float], tokens: mx.array) -> mx.array:
    """Logits of decode steps, one token of every row each."""
    rows = bank.rows([bank.handle(k) if k else BASE for k in keys], factors)
    token = active.set(rows)
    try:
        cache = make_prompt_cache(model)
        out = mx.concatenate([model(tokens[:, i : i + 1], cache=cache) for i in range(tokens.shape[1])], axis=1)
        mx.eval(out)
        return out
    finally:
        active.reset(token)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "keys",
    [["a", "", "b", "c"], ["a", "a", "b", "a", "", "b"], ["c"] * 3, ["a"] + [""] * 20, ["c", "b"] * 8],
    ids=["different", "shared", "one", "mostly-bare", "two"],
)
def test_rows_that_decode_together_equal_rows_alone(keys: list[str], overlap: bool) -> None:
    model = tiny_model()
    bank = bank_of_three(model)
    if overlap:
        bank.overlap()
    factors = [(1.0, 0.5, -1.5, 0.0)[i % 4] for i in range(len(keys))]
    tokens = mx.array(np.random.default_rng(4).integers(0, 64, (len(keys), 3)))
    together = steps(model, bank, keys, factors, tokens)
    for i, key in enumerate(keys):
        alone = steps(model, bank, [key], [factors[i]], tokens[i : i + 1])
        assert mx.abs(together[i] - alone[0]).max().item() < TOLERANCE, (i, key)
    plain = steps(model, bank, [""] * len(keys), factors, tokens)
    for i, (key, factor) in enumerate(zip(keys, factors, strict=True)):
        same = mx.abs(together[i] - plain[i]).max().item() < TOLERANCE
        assert same == (not key or not factor)


def test_modules_that_read_the_same_input_are_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    bank = bank_of_three(model)
    gathers = 0
    real = mx.gather_mm

    def counted(*args: mx.array, **kwargs: mx.array) -> mx.array:
        nonlocal gathers
        gathers += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(mx, "gather_mm", counted)
    steps(model, bank, ["a", "b", "c"], [1.0] * 3, mx.array([[1], [2], [3]]))
    assert gathers == 2 * 4, "two layers, each q/k/v, o, gate/up, down"


def test_modules_that_are_called_with_other_inputs_share_nothing() -> None:
    model = tiny_model()
    bank = bank_of_three(model)
    attention = model.layers[0].self_attn
    x = mx.random.normal((4, 3, 1, 64))
    token = active.set(bank.rows([bank.handle(key) for key in ("a", "b", "c")], [1.0] * 3))
    try:
        together = [attention.q_proj(x[0]), attention.k_proj(x[1]), attention.v_proj(x[2]), attention.k_proj(x[3])]
    finally:
        active.reset(token)
    for i, key in enumerate(("a", "b", "c")):
        token = active.set(bank.rows([bank.handle(key)], [1.0]))
        try:
            modules = (attention.q_proj, attention.k_proj, attention.v_proj, attention.k_proj)
            for j, (module, y) in enumerate(zip(modules, together, strict=True)):
                assert mx.abs(module(x[j, i : i + 1])[0] - y[i]).max().item() < TOLERANCE
        finally:
            active.reset(token)


def test_a_pool_that_grows_and_shrinks_leaves_a_running_batch_alone() -> None:
    model = tiny_model()
    bank = bank_of_three(model)
    rows = bank.rows([bank.handle(key) for key in ("a", "b", "c")], [1.0] * 3)
    tokens = mx.array([[1], [2], [3]])

    def step() -> mx.array:
        token = active.set(rows)
        try:
            out: mx.array = model(tokens)
            mx.eval(out)
            return out
        finally:
            active.reset(token)

    before = step()
    shapes = bank.modules
    for i in range(12):
        wide = {
            path: DeltaTensors(mx.ones((shape.input_dims, 64)), mx.ones((64, shape.output_dims)), None)
            for path, shape in shapes.items()
            if path.endswith("_proj")
        }
        bank.load(f"w{i}", wide)
    others = bank.rows([bank.handle(f"w{i}") for i in range(12)], [1.0] * 12)
    grown = bank.page_nbytes
    assert mx.array_equal(step(), before).item()
    del others
    for i in range(12):
        bank.unload(f"w{i}")
    assert bank.page_nbytes < grown / 2
    assert mx.array_equal(step(), before).item()


def test_rows_that_share_runs_unevenly_are_gathered_by_pages() -> None:
    """Products by segments would hold 41 runs times 40 rows."""
    model = tiny_model()
    bank = bank_of_three(model)
    for i in range(40):
        bank.blend([("a", 1.0), ("b", 0.01 * i)])
    keys = ["c"] * 40 + [bank.blend([("a", 1.0), ("b", 0.01 * i)]) for i in range(40)]
    tokens = mx.array(np.random.default_rng(5).integers(0, 64, (len(keys), 1)))
    together = steps(model, bank, keys, [1.0] * len(keys), tokens)
    for i in (0, 39, 40, 63):
        alone = steps(model, bank, [keys[i]], [1.0], tokens[i : i + 1])
        assert mx.abs(together[i] - alone[0]).max().item() < TOLERANCE, i


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("keys", [["a", "c", "c", "a"], ["a", "b", "c"]], ids=["all-small", "one-large"])
def test_modules_where_every_row_has_one_page_gather_it(
    keys: list[str], overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = []

    def spy(pages: ModulePages, path: str, rows: ActiveRows, x: mx.array) -> mx.array | None:
        gathered.append(path.rpartition(".")[2])
        return single_pages(pages, path, rows, x)

    model = tiny_model()
    bank = bank_of_three(model)
    # Another adapter of rank 8 on the modules that "b" leaves alone, so that these have a page in every row.
    small = bank._loaded["c"].tensors
    bank.load("b+", {**small, **bank._loaded["b"].tensors})
    keys = [key.replace("b", "b+") for key in keys]
    if overlap:
        bank.overlap()
    tokens = mx.array(np.random.default_rng(6).integers(0, 64, (len(keys), 3)))
    alone = [steps(model, bank, [key], [1.0], tokens[i : i + 1]) for i, key in enumerate(keys)]
    monkeypatch.setattr(banked, "single_pages", spy)
    together = steps(model, bank, keys, [1.0] * len(keys), tokens)
    assert set(gathered) == {"q_proj", "v_proj", "up_proj"}
    for i, row in enumerate(alone):
        assert mx.abs(together[i] - row[0]).max().item() < TOLERANCE, (i, keys[i])
