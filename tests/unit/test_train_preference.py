from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.errors import DataError, TrainingError
from optiq_core.planner.ceilings import ceiling_of
from optiq_core.planner.planner import Planner
from optiq_core.planner.shape import largest_pairs_shape
from optiq_core.train.batches import BatchOrder, collate
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import Example, load_data
from optiq_core.train.events import Progress
from optiq_core.train.layers import apply_lora, find_targets, recomputed_blocks
from optiq_core.train.loss import to_inputs
from optiq_core.train.preference import preference_loss, preference_loss_for, without_adapters
from tests.unit.tiny import tiny_model
from tests.unit.train_lab import Lab, stop_after
from tests.unit.train_tiny import byte_tokenizer, chat, write_jsonl


def pairs(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)

    def answer(prompt: list[int], line: int) -> Example:
        tokens = rng.integers(1, 64, int(rng.integers(1, 9))).tolist()
        return Example((*prompt, *tokens), len(prompt), line)

    made = []
    for line in range(1, count + 1):
        prompt = rng.integers(1, 64, int(rng.integers(1, 9))).tolist()
        chosen, rejected = answer(prompt, line), answer(prompt, line)
        made.append(Example(chosen.tokens, chosen.start, line, rejected))
    return made


def adapted(seed: int = 0) -> Any:
    model = tiny_model()
    apply_lora(model, dict.fromkeys(find_targets(model, ("q_proj", "v_proj"), -1), 4), scale=2.0, dropout=0.0)
    rng = np.random.default_rng(seed)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.array(rng.normal(size=module.lora_b.shape).astype(np.float32) * 0.2)
    return model


def answer_logps(model: Any, example: Example) -> np.ndarray:
    """Log-probability of each token of an answer, one row at a time, in numpy float64."""
    logits = np.array(model(mx.array([example.tokens[:-1]])))[0].astype(np.float64)
    logps = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logps -= logits.max(-1, keepdims=True)
    return np.array([logps[i - 1, example.tokens[i]] for i in range(example.start, len(example.tokens))])


def reference_value(model: Any, data: list[Example], objective: str, beta: float) -> float:
    """The papers' formulas, written out in numpy."""
    chosen = [answer_logps(model, e) for e in data]
    rejected = [answer_logps(model, e.rejected) for e in data if e.rejected]

    def softplus(x: float) -> float:
        return float(np.log1p(np.exp(x)))

    if objective == "dpo":
        with without_adapters(model):
            base = [(answer_logps(model, e).sum(), answer_logps(model, e.rejected).sum()) for e in data if e.rejected]
        margins = [c.sum() - r.sum() - (bc - br) for c, r, (bc, br) in zip(chosen, rejected, base, strict=True)]
        return float(np.mean([softplus(-beta * m) for m in margins]))
    nll = -np.mean([c.mean() for c in chosen])

    def log_odds(logps: np.ndarray) -> float:
        p = np.exp(logps.mean())
        return float(np.log(p / (1 - p)))

    ratios = [log_odds(c) - log_odds(r) for c, r in zip(chosen, rejected, strict=True)]
    return float(nll + beta * np.mean([softplus(-r) for r in ratios]))


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
@pytest.mark.parametrize("split", [True, False])
def test_value_and_gradient_are_the_papers(objective: Any, split: bool) -> None:
    model, data, beta = adapted(), pairs(5), 0.3
    loss = preference_loss(split=split, objective=objective, beta=beta)
    inputs = to_inputs(collate(data))
    (value, count), grads = nn.value_and_grad(model, loss)(model, inputs)
    assert count.item() == 5
    assert value.item() == pytest.approx(reference_value(model, data, objective, beta), abs=1e-5)
    # The gradient against differences of the reference, in a few entries of every trained matrix.
    parameters = dict(tree_flatten(model.trainable_parameters()))
    rng = np.random.default_rng(1)
    for name, gradient in itertools.islice(tree_flatten(grads), 4):
        original = np.array(parameters[name])
        row, column = int(rng.integers(original.shape[0])), int(rng.integers(original.shape[1]))
        around = []
        for step in (1e-2, -1e-2):
            moved = original.copy()
            moved[row, column] += step
            model.load_weights([(name, mx.array(moved))], strict=False)
            around.append(reference_value(model, data, objective, beta))
        model.load_weights([(name, mx.array(original))], strict=False)
        assert gradient[row, column].item() == pytest.approx((around[0] - around[1]) / 2e-2, abs=2e-3), name


def test_recomputing_activations_changes_nothing() -> None:
    model, inputs = adapted(), to_inputs(collate(pairs(4)))
    loss = preference_loss_for(model, "dpo", 0.1)
    plain = nn.value_and_grad(model, loss)(model, inputs)
    with recomputed_blocks(model, True):
        again = nn.value_and_grad(model, loss)(model, inputs)
    for (name, a), (_, b) in zip(tree_flatten(plain[1]), tree_flatten(again[1]), strict=True):
        assert np.allclose(a, b, atol=1e-6), name


@pytest.mark.parametrize("objective", ["orpo", pytest.param("dpo", marks=pytest.mark.slow)])
def test_parts_of_a_batch_add_up_to_it(tmp_path: Path, objective: str) -> None:
    lab = Lab(tmp_path)
    write_jsonl(lab.data_path / "train.jsonl", preferences(12))
    (lab.data_path / "valid.jsonl").unlink()
    fields: dict[str, Any] = {"objective": objective, "iters": 3, "batch_size": 4, "optimizer": "sgd"}
    lab.run("whole", **fields)
    lab.run("parts", micro_batch_size=3, **fields)
    for name, value in lab.weights("whole").items():
        assert np.allclose(value, lab.weights("parts")[name], atol=1e-5), name


def preferences(count: int) -> list[Any]:
    """Always the sum is preferred to the difference."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 50, (count, 2)).tolist()
    return [{"prompt": f"{a}?{b}", "chosen": str(a + b), "rejected": f"{a - b} no"} for a, b in numbers]


@pytest.mark.parametrize("objective", ["dpo", pytest.param("orpo", marks=pytest.mark.slow)])
def test_runs_prefer_what_is_chosen_and_go_on_bitwise(tmp_path: Path, objective: str) -> None:
    lab = Lab(tmp_path)
    write_jsonl(lab.data_path / "train.jsonl", preferences(12))
    write_jsonl(lab.data_path / "valid.jsonl", preferences(4))
    fields: dict[str, Any] = {"objective": objective, "iters": 16, "learning_rate": 2e-3, "method": "dora"}
    lab.run("whole", **fields)
    reports: list[Progress] = lab.of(Progress)
    assert reports[-1].train_loss < reports[0].train_loss * 0.9
    assert reports[-1].valid_loss is not None
    lab.run("parts", control=stop_after(7), **fields)
    lab.run("parts", **fields)
    assert all(np.array_equal(value, lab.weights("parts")[name]) for name, value in lab.weights("whole").items())


def test_a_run_starts_where_policy_and_reference_are_one(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    write_jsonl(lab.data_path / "train.jsonl", preferences(8))
    (lab.data_path / "valid.jsonl").unlink()
    lab.run("adapter", objective="dpo", iters=1, steps_per_report=1)
    assert lab.of(Progress)[0].train_loss == pytest.approx(np.log(2), abs=1e-5)


def test_texts_and_messages_are_the_same_preferences(tmp_path: Path) -> None:
    as_messages = [
        {
            "prompt": [{"role": "user", "content": r["prompt"]}],
            "chosen": [{"role": "assistant", "content": r["chosen"]}],
            "rejected": [{"role": "assistant", "content": r["rejected"]}],
        }
        for r in preferences(3)
    ]
    config = TrainConfig(data_path="d", objective="dpo")
    found = []
    for name, records in (("a", preferences(3)), ("b", as_messages)):
        write_jsonl(tmp_path / name / "train.jsonl", records)
        found.append(load_data(tmp_path / name, byte_tokenizer(), config))
    assert found[0].train.examples == found[1].train.examples
    first = found[0].train.examples[0]
    assert first.rejected is not None
    assert first.tokens[: first.start] == first.rejected.tokens[: first.start]
    cut = first.cut(first.start + 1)
    assert (cut.length, cut.trainable) == (first.start + 1, 1)


@pytest.mark.parametrize(
    ("objective", "record", "said"),
    [
        ("dpo", chat("a", "b"), "train.jsonl line 1: objective dpo needs 'prompt', 'chosen' and 'rejected'"),
        ("sft", preferences(1)[0], "train.jsonl line 1: objective sft needs answers without a rejected one"),
        ("dpo", {"prompt": "a", "chosen": 1, "rejected": "b"}, "train.jsonl line 1: 'chosen' must be a string or mess"),
        ("orpo", {"prompt": "a", "chosen": [{}], "rejected": "b"}, r"'chosen\[0\]' must be an object with a 'role'"),
    ],
)
def test_records_of_another_objective_are_named(tmp_path: Path, objective: Any, record: Any, said: str) -> None:
    write_jsonl(tmp_path / "train.jsonl", [record])
    with pytest.raises(DataError, match=said):
        load_data(tmp_path, byte_tokenizer(), TrainConfig(data_path="d", objective=objective))


@pytest.mark.parametrize("fields", [{"pack_length": 64}, {"loss_chunk": 8}, {"mask_prompt": False}, {"beta": 0.0}])
def test_settings_that_pairs_cannot_have_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(TrainingError) as caught:
        TrainConfig(data_path="d", objective="dpo", **fields).validate()
    assert caught.value.field == next(iter(fields))


def test_the_planner_counts_both_answers(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    data = pairs(30)
    planner = Planner(lab.base_path, ceiling_of("cpu"), examples=data)
    sft, dpo = (planner.plan(lab.config(objective=o, batch_size=4)) for o in ("sft", "dpo"))
    assert (sft.rows, dpo.rows) == (4, 8)
    assert dpo.peak_bytes > sft.peak_bytes
    bound = largest_pairs_shape(data, 4)
    order = BatchOrder(data, batch_size=4, seed=0)
    for at in range(order.batches_per_epoch):
        batch = order[at]
        assert batch.tokens.shape[0] <= bound.rows
        assert batch.tokens.shape[1] - 1 <= bound.width
        assert len(batch.positions) <= bound.positions


def test_tools_reach_the_chat_template(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}" + str(tokenizer.chat_template)
    record = {**chat("a", "b"), "tools": [{"name": "adder"}]}
    write_jsonl(tmp_path / "train.jsonl", [record])
    config = TrainConfig(data_path="d")
    example = load_data(tmp_path, tokenizer, config).train.examples[0]
    assert tokenizer.decode(list(example.tokens[: example.start])).startswith("[adder]")
    assert tokenizer.decode(list(example.tokens[example.start :])).startswith("b")
    (tmp_path / "train.jsonl").write_text(json.dumps({**record, "tools": "adder"}) + "\n")
    with pytest.raises(DataError, match="line 1: 'tools' must be a list of tool descriptions, is a string"):
        load_data(tmp_path, tokenizer, config)
