"""Sensitivity: the KL measure against float64, replayed blocks against whole passes, resuming, and the estimates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from optiq_core.errors import QuantizationError
from optiq_core.quant.calibration import CALIBRATION, EVALUATION, read_tokens
from optiq_core.quant.divergence import Reference
from optiq_core.quant.gradient import estimate_kl
from optiq_core.quant.modules import find_quant_targets, protected_paths, quantize_dequantize
from optiq_core.quant.options import Option, parse_candidates
from optiq_core.quant.partial import PartialResults
from optiq_core.quant.replay import Replay
from optiq_core.quant.sensitivity import measure_kl
from optiq_core.quant.static import rate
from tests.unit.quant_tiny import tiny_source, write_text

FOUR, EIGHT = Option(4, 64), Option(8, 64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
def test_kl_agrees_with_float64_down_to_small_changes(size: float) -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(70, 500)) * 3
    after = (before + size * rng.normal(size=before.shape)).astype(np.float32)
    before = before.astype(np.float32)

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    expected = (np.exp(log_softmax(before)) * (log_softmax(before) - log_softmax(after))).sum(-1)
    found = np.array(Reference.of(mx.array(before)).kl(mx.array(after)))
    assert found.shape == (70,)
    # Single positions carry the rounding of float32 logits, which is relative to their size, not to the change.
    assert found.mean() == pytest.approx(expected.mean(), rel=2e-2 if size < 1e-3 else 1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_replayed_blocks_give_what_a_whole_pass_gives(tmp_path: Path, tied: bool) -> None:
    source = tiny_source(tmp_path / "m", tied=tied)
    tokens = mx.array([[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3, 2]])
    replay = Replay(source.model, tokens)
    assert replay.exact
    assert replay.blocks == 3
    for target in find_quant_targets(source.model, (Option(2, 64),)):
        original = target.module.weight
        target.module.weight = quantize_dequantize(original, Option(2, 64), mx.float16)
        whole = source.model(tokens)
        assert mx.abs(whole - replay.logits).max().item() > 1e-4, f"{target.path} changes nothing"
        assert mx.allclose(replay.run(target.block), whole, atol=1e-5).item()
        target.module.weight = original
    assert mx.array_equal(source.model(tokens), replay.logits).item()


def test_a_pass_measures_each_module_alone_and_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "m")
    text = read_tokens(source.tokenizer, write_text(tmp_path), most=128, length=32)
    targets = find_quant_targets(source.model, (FOUR, EIGHT))
    assert len(targets) == 3 * 7 + 1
    seen: list[str] = []
    partial = PartialResults("test")

    def interrupt(share: float, what: str) -> None:
        assert 0 <= share <= 1
        seen.append(what)
        if len(seen) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_kl(source.model, targets, text, store=mx.float16, partial=partial, progress=interrupt)
    again: list[str] = []
    found = measure_kl(
        source.model, targets, text, store=mx.float16, partial=PartialResults("test"),
        progress=lambda share, what: again.append(what),
    )  # fmt: skip
    assert not set(seen[1:-1]) & set(again), "a module was measured twice"
    fresh = measure_kl(source.model, targets, text, store=mx.float16)
    assert found == fresh
    for kl in found.values():
        assert 0 < kl["8g64"] < kl["4g64"]

    path = "model.layers.1.mlp.down_proj"
    target = next(t for t in targets if t.path == path)
    before = source.model(text.tokens)
    target.module.weight = quantize_dequantize(target.module.weight, FOUR, mx.float16)
    expected = Reference.of(before).kl(source.model(text.tokens)).mean().item()
    assert found[path]["4g64"] == pytest.approx(expected, rel=1e-3)


def test_the_gradient_estimates_what_is_measured(tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "m")
    text = read_tokens(source.tokenizer, write_text(tmp_path), length=16)
    targets = find_quant_targets(source.model, (FOUR,))
    measured = measure_kl(source.model, targets, text, store=mx.float16)
    estimated = estimate_kl(source.model, targets, text, store=mx.float16)
    a = np.log([measured[t.path]["4g64"] for t in targets])
    b = np.log([estimated[t.path]["4g64"] for t in targets])
    assert np.corrcoef(a, b)[0, 1] > 0.8
    # In nats, not only in order.
    assert abs(np.median(a - b)) < np.log(2)


def test_the_rule_needs_no_pass_and_rates_fewer_bits_worse(tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "m")
    targets = find_quant_targets(source.model, (FOUR, EIGHT))
    rated = rate(targets, store=mx.float16)
    assert all(0 < r["8g64"] < r["4g64"] for r in rated.values())
    assert rated["model.layers.1.self_attn.v_proj"]["4g64"] > rated["model.layers.1.self_attn.k_proj"]["4g64"]


def test_modules_are_protected_by_kind_and_by_pattern(tmp_path: Path) -> None:
    targets = find_quant_targets(tiny_source(tmp_path / "m", tied=False).model, (FOUR,))
    assert protected_paths(targets, ["embeddings", "lm_head"]) == {"model.embed_tokens", "lm_head"}
    assert len(protected_paths(targets, ["first", "last"])) == 14
    assert protected_paths(targets, ["*.1.*.v_proj"]) == {"model.layers.1.self_attn.v_proj"}
    with pytest.raises(QuantizationError, match=r"\*\.z_proj"):
        protected_paths(targets, ["*.z_proj"])


def test_options_whose_groups_do_not_divide_a_row_are_left_out(tmp_path: Path) -> None:
    model = tiny_source(tmp_path / "m").model
    targets = {t.path: t for t in find_quant_targets(model, parse_candidates("4", (64, 128)))}
    # 64 inputs there, 128 here.
    assert [o.label for o in targets["model.layers.0.mlp.up_proj"].options] == ["4g64"]
    assert [o.label for o in targets["model.layers.0.mlp.down_proj"].options] == ["4g128", "4g64"]


def test_calibration_and_evaluation_share_no_sentence() -> None:
    def sentences(file: Path) -> set[str]:
        return {s.strip() for s in file.read_text().replace("\n", " ").split(".") if len(s.strip()) > 20}

    assert len(sentences(CALIBRATION)) > 80
    assert not sentences(CALIBRATION) & sentences(EVALUATION)


def test_a_text_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_source(tmp_path / "m").tokenizer
    (tmp_path / "short.txt").write_text("123")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("short.txt", "binary.txt", "none.txt"):
        with pytest.raises(QuantizationError, match=name):
            read_tokens(tokenizer, tmp_path / name)
    text = read_tokens(tokenizer, write_text(tmp_path), most=64, length=32)
    assert text.tokens.shape == (2, 32)
    assert dataclasses.replace(text).digest == read_tokens(tokenizer, write_text(tmp_path), most=64, length=32).digest
