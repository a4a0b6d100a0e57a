"""`optiq convert` and `optiq eval` on a tiny model: the folder, its metadata, and stock mlx-lm's loader."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from click.testing import CliRunner, Result
from mlx_lm.utils import load_model

from optiq_core.base import load_base, read_metadata, resolve_base
from optiq_core.quant.cli import convert, evaluate
from tests.unit.quant_tiny import save_tiny, write_text


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_CACHE", str(tmp_path / "cache"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(convert, [str(a) for a in arguments])


def converted(tmp_path: Path, *arguments: object) -> dict[str, object]:
    result = run(tmp_path / "m", "--calibration", write_text(tmp_path), "-o", tmp_path / "out", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("method", ["kl", "gradient", "static"])
def test_the_result_loads_in_stock_mlx_lm_and_keeps_the_target(tmp_path: Path, method: str) -> None:
    save_tiny(tmp_path / "m", tied=False)
    result = converted(tmp_path, "--target-bpw", 6, "--candidate-bits", "4,8", "--method", method)
    assert abs(float(str(result["achieved_bpw"])) - 6) <= 0.05

    model, config = load_model(tmp_path / "out")
    metadata = read_metadata(tmp_path / "out")
    modules = dict(model.named_modules())
    counts = {4: 0, 8: 0}
    for path, told in metadata.modules.items():
        module = modules[path]
        assert (module.bits, module.group_size) == (told.bits, told.group_size)
        counts[told.bits] += 1
        assert set(told.kl) == {"4g64", "8g64"}
        assert (metadata.kl_of(path) is None) == (method == "static")
    assert min(counts.values()) > 0
    assert metadata.bits_per_weight == pytest.approx(mlx_lm_bpw(model), abs=1e-3)
    assert config["quantization"]["bits"] in (4, 8)
    conversion = metadata.conversion
    assert conversion is not None
    assert conversion.method == method
    assert bool(conversion.calibration) == (method != "static")

    tokens = mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    ours = load_base(resolve_base(str(tmp_path / "out")))
    assert mx.abs(ours.model(tokens) - model(tokens)).max().item() < 2e-2
    assert ours.tokenizer.encode("12") == [1, 2]


def mlx_lm_bpw(model: nn.Module) -> float:
    from mlx_lm.utils import compute_bits_per_weight

    return float(compute_bits_per_weight(model))


def test_protected_modules_get_the_best_candidate(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", tied=False)
    converted(tmp_path, "--target-bpw", 6.5, "--protect", "lm_head", "--protect", "*.k_proj", "--method", "static")
    bits = read_metadata(tmp_path / "out").layer_bits
    assert bits["lm_head"] == 8
    assert {b for path, b in bits.items() if path.endswith("k_proj")} == {8}


def test_mxfp4_and_mixed_group_sizes_come_back_as_written(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m")
    converted(
        tmp_path, "--target-bpw", 4.6, "--candidate-bits", "mxfp4,3,6", "--group-size", "32,64", "--protect", "none",
        "--allocator", "exact", "--method", "gradient",
    )  # fmt: skip
    metadata = read_metadata(tmp_path / "out")
    told = {(m.bits, m.group_size, m.mode) for m in metadata.modules.values()}
    assert len(told) > 1
    model, _ = load_model(tmp_path / "out")
    for path, module in model.named_modules():
        if path in metadata.modules:
            expected = metadata.modules[path]
            assert (module.bits, module.group_size, module.mode) == (
                expected.bits, expected.group_size, expected.mode,
            )  # fmt: skip
    tokens = mx.array([[3, 1, 4, 1, 5]])
    ours = load_base(tmp_path / "out")
    assert mx.abs(ours.model(tokens) - model(tokens)).max().item() < 2e-2


def test_a_target_at_the_floor_says_what_is_missing(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m")
    result = converted(tmp_path, "--target-bpw", 4.55, "--candidate-bits", "4,8", "--method", "static")
    notes = " ".join(str(n) for n in result["notes"])  # type: ignore[attr-defined]
    assert "protected modules do not fit" in notes
    assert "4g128" in notes
    assert abs(float(str(result["achieved_bpw"])) - 4.55) <= 0.05
    refused = run(tmp_path / "m", "--target-bpw", 3, "-o", tmp_path / "no", "--method", "static")
    assert refused.exit_code == 1
    assert "--target-bpw 3" in refused.output
    assert not (tmp_path / "no").exists()


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m")
    (tmp_path / "out").mkdir()
    result = run(tmp_path / "m", "--target-bpw", 5, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert list((tmp_path / "out").iterdir()) == []


def test_a_quantized_base_can_be_converted_and_scored_against_its_source(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m")
    converted(tmp_path, "--target-bpw", 8.7, "--candidate-bits", "8", "--method", "static")
    (tmp_path / "out").rename(tmp_path / "eight")
    text = write_text(tmp_path)
    again = run(
        tmp_path / "eight", "--target-bpw", 4.7, "--candidate-bits", "4", "--calibration", text,
        "-o", tmp_path / "four",
        "--method", "gradient", "--json",
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert "already quantized" in json.loads(again.stdout)["notes"][0]
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"prompt": "12", "answer": "nothing of the kind"}\n{"text": "34", "answer": "5"}\n')
    kl = {}
    for name in ("eight", "four"):
        arguments = [str(tmp_path / name), "--reference", str(tmp_path / "m"), "--text", str(text)]
        arguments += ["--tasks", str(questions), "--max-tokens", "3", "--json"]
        scored = CliRunner().invoke(evaluate, arguments)
        assert scored.exit_code == 0, scored.output
        result = json.loads(scored.stdout)
        kl[name] = result["kl"]
        assert result["perplexity"] > 1
        assert result["questions"] == 2
        assert 0 <= result["accuracy"] <= 0.5
    assert 0 < kl["eight"] < kl["four"]


@pytest.mark.parametrize(
    "line", ["{", '{"prompt": "a"}', '{"prompt": 1, "answer": "b"}', '{"messages": [{"role": "user", "content": "a"}]}']
)
def test_a_question_that_cannot_be_read_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    save_tiny(tmp_path / "m")
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    result = CliRunner().invoke(evaluate, [str(tmp_path / "m"), "--tasks", str(file)])
    assert result.exit_code == 1
    assert "q.jsonl: line 2" in result.output


def test_the_target_that_it_names_is_enough_to_protect_all(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m")
    result = converted(tmp_path, "--target-bpw", 5, "--candidate-bits", "4,8", "--method", "static")
    notes = " ".join(str(n) for n in result["notes"])  # type: ignore[attr-defined]
    enough = float(notes.split("all of them fit from ")[1].split()[0])
    again = converted(tmp_path, "--target-bpw", enough, "--method", "static", "--overwrite")
    assert again["unprotected"] == []
