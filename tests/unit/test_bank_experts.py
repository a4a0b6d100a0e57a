"""Adapters on stacks of experts: equal to mlx-lm's own layers, and rows of a mixed batch equal to rows alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from safetensors.numpy import load_file, save_file

from optiq_core.adapters import experts
from optiq_core.adapters.bank import BASE, AdapterBank, active
from optiq_core.adapters.export import export_adapter
from optiq_core.adapters.format import read_manifest, validate_against_base
from optiq_core.adapters.manifest import EXPERTS as STACK
from optiq_core.adapters.mount import AdapterActivation, mount_adapter_on_model
from optiq_core.adapters.tensors import DeltaTensors
from optiq_core.errors import AdapterError
from tests.unit.moe import EXPERTS, KINDS, moe_model, write_moe_adapter

TOLERANCE = 5e-5
LEAVES = ("gate_proj", "up_proj", "down_proj", "q_proj")
STACK_PATH = "model.layers.1.mlp.switch_mlp.up_proj"


def load_random(bank: AdapterBank, key: str, rank: int, seed: int, *, leaves: tuple[str, ...] = LEAVES) -> None:
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> mx.array:
        return mx.array(rng.normal(size=shape).astype(np.float32) * 0.3)

    deltas = {}
    for path, shape in bank.modules.items():
        if path.endswith(leaves):
            stack = (shape.experts,) if shape.experts else ()
            deltas[path] = DeltaTensors(
                random(*stack, shape.input_dims, rank), random(*stack, rank, shape.output_dims), None
            )
    bank.load(key, deltas)


def logits(
    model: Any, tokens: mx.array, bank: AdapterBank, keys: list[str], factors: list[float], *, cache: Any = None
) -> mx.array:
    token = active.set(bank.rows([bank.handle(k) if k else BASE for k in keys], factors))
    try:
        out: mx.array = model(tokens, cache=cache)
        mx.eval(out)
        return out
    finally:
        active.reset(token)


@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mounted_folder_equals_stock_mlx_lm(tmp_path: Path, kind: str, quantized: bool, length: int) -> None:
    """40 tokens have 80 (token, expert) pairs, which mlx-lm sorts; 5 have 10, which it does not."""

    def made() -> Any:
        model = moe_model(kind)
        if quantized:
            nn.quantize(model, group_size=32, bits=4)
        return model

    folder = write_moe_adapter(tmp_path / "a", made(), EXPERTS.get(kind, LEAVES), rank=3)
    reference = made()
    load_adapters(reference, str(folder))
    model = made()
    tokens = mx.array(np.random.default_rng(0).integers(0, 64, (2, length)))
    plain = model(tokens)
    mount_adapter_on_model(model, "agent", folder)
    with AdapterActivation("agent", model):
        ours = model(tokens)
    assert mx.abs(ours - reference(tokens)).max().item() < 1e-4
    assert mx.abs(ours - plain).max().item() > 1e-2
    assert mx.array_equal(model(tokens), plain).item()


@pytest.mark.parametrize("limit", [1 << 40, 0])
def test_mixed_rows_equal_rows_alone_in_prefill_and_decode(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Decode of 40 rows has 80 pairs, which are sorted, that of one row two; with no limit and in a loop over rows."""
    monkeypatch.setattr(experts, "_GATHER_LIMIT", limit)
    model = moe_model()
    bank = AdapterBank(model)
    ranks = [1, 8, 9, 40]
    for i, rank in enumerate(ranks):
        load_random(bank, f"r{rank}", rank, 100 * i, leaves=("up_proj",) if i == 2 else LEAVES)
    keys = ["", *[f"r{r}" for r in ranks]] * 8
    factors = [1.0, 0.5, 1.0, 2.0, 0.0] * 8
    prompts = mx.array(np.random.default_rng(1).integers(0, 64, (len(keys), 9)))
    following = mx.array(np.random.default_rng(2).integers(0, 64, (len(keys), 1)))
    cache = make_prompt_cache(model)
    mixed = [logits(model, tokens, bank, keys, factors, cache=cache) for tokens in (prompts, following)]
    for i in range(0, len(keys), 3):
        cache = make_prompt_cache(model)
        for together, tokens in zip(mixed, (prompts, following), strict=True):
            alone = logits(model, tokens[i : i + 1], bank, [keys[i]], [factors[i]], cache=cache)
            assert mx.abs(together[i] - alone[0]).max().item() < TOLERANCE, (i, keys[i])
    differs = mx.abs(mixed[1] - model(following, cache=None)).max(axis=(1, 2))
    assert (differs > 1e-2).all().item()


def test_a_blend_over_experts_adds_the_weighted_sum() -> None:
    model = moe_model()
    bank = AdapterBank(model)
    for i, key in enumerate(("a", "b")):
        load_random(bank, key, 3 + 6 * i, i)
    blend = bank.blend([("a", 0.5), ("b", -0.25)])
    module = bank._banked[STACK_PATH]
    x, chosen = mx.random.normal((1, 4, 1, 1, 64)), mx.array([[[0, 1], [1, 2], [2, 3], [3, 0]]])

    def added(key: str) -> mx.array:
        token = active.set(bank.rows([bank.handle(key)], [1.0]))
        try:
            return module(x, chosen) - module.base(x, chosen)
        finally:
            active.reset(token)

    assert mx.abs(added(blend) - (0.5 * added("a") - 0.25 * added("b"))).max().item() < TOLERANCE
    assert mx.abs(added(blend)).max().item() > 0.1


def test_pages_of_stacks_grow_and_their_bytes_are_counted() -> None:
    model = moe_model()
    bank = AdapterBank(model)
    assert bank.modules[STACK_PATH] == (64, 96, STACK, 4)
    load_random(bank, "first", 8, 1, leaves=("up_proj",))
    assert bank.bytes_of("first") == 2 * 4 * 8 * (64 + 96) * 4
    tokens = mx.array([[5, 6, 7]])
    before = logits(model, tokens, bank, ["first"], [1.0])
    for i in range(5):
        load_random(bank, f"more{i}", 20, 10 + i)
    keys = ["first", *[f"more{i}" for i in range(5)]]
    mixed = logits(model, mx.broadcast_to(tokens, (6, 3)), bank, keys, [1.0] * 6)
    assert mx.abs(mixed[0] - before[0]).max().item() < TOLERANCE


def test_what_cannot_be_mounted_on_experts_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = moe_model()
    modules = AdapterBank(model).modules
    folder = write_moe_adapter(tmp_path / "a", moe_model(), ("up_proj",))
    manifest = read_manifest(folder)
    validate_against_base(manifest, modules)
    assert manifest.parameter_count == 2 * 4 * 4 * (64 + 96)
    with pytest.raises(AdapterError) as caught:
        validate_against_base(manifest, {**modules, STACK_PATH: modules[STACK_PATH]._replace(experts=8)})
    assert (caught.value.expected, caught.value.found) == ("[8, 4, 64]", "[4, 4, 64]")
    with pytest.raises(AdapterError, match="expert"):
        validate_against_base(manifest, {**modules, STACK_PATH: modules["model.layers.0.self_attn.q_proj"]})
    with pytest.raises(AdapterError) as caught:
        validate_against_base(manifest, {p: s for p, s in modules.items() if "switch_mlp" not in p})
    assert caught.value.code == "UNKNOWN_MODULE"
    with pytest.raises(AdapterError, match="linear"):
        export_adapter(folder, tmp_path / "b", "peft")

    tensors = load_file(folder / "adapters.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "fine_tune_type": "dora"}))
    save_file(tensors | {f"{STACK_PATH}.m": np.ones((4, 96), np.float32)}, folder / "adapters.safetensors")
    with pytest.raises(AdapterError, match="DoRA"):
        read_manifest(folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({**tensors, f"{STACK_PATH}.lora_b": tensors[f"{STACK_PATH}.lora_b"][:2]}, folder / "adapters.safetensors")
    with pytest.raises(AdapterError, match="numbers of experts"):
        read_manifest(folder)


def test_peft_adapters_of_single_experts_are_refused_with_what_would_be_served(tmp_path: Path) -> None:
    path = "base_model.model.model.layers.0.mlp.experts.2.up_proj"
    save_file(
        {
            f"{path}.lora_A.weight": np.ones((4, 64), np.float32),
            f"{path}.lora_B.weight": np.ones((96, 4), np.float32),
        },
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    with pytest.raises(AdapterError, match="stacks") as caught:
        validate_against_base(read_manifest(tmp_path), AdapterBank(moe_model()).modules)
    assert caught.value.code == "UNKNOWN_MODULE"
