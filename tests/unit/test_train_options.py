from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from optiq_core.train.cli import lora
from tests.unit.train_tiny import write_tiny_base, write_tiny_data

YAML = """
data: {data}
iters: 4
rank: 2
rank_scaling: pattern
rank_pattern: {{q_proj: 3}}
target-modules: [q_proj, o_proj]
learning-rate: 1e-3
lr_schedule: cosine
steps_per_report: 2
"""


def train(*words: str | Path) -> Result:
    return CliRunner().invoke(lora, ["train", *(str(word) for word in words)])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny_data(tmp_path / "data")


def test_a_file_configures_a_run_and_flags_win(tmp_path: Path, base: Path, data: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(YAML.format(data=data))
    out = tmp_path / "adapter"
    plot, metrics = tmp_path / "loss.png", tmp_path / "metrics.jsonl"
    result = train(base, "--config", config, "--rank", "4", "-o", out, "--plot", plot, "--metrics", metrics)
    assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(lora, ["info", str(out), "--full"]).stdout
    for line in (
        '    target_modules: ["q_proj", "o_proj"]',
        "    rank: 4",
        '    lr_schedule: "cosine"',
        "    learning_rate: 0.001",
        "  rank   3  model.layers.0.self_attn.q_proj",
        "  rank   4  model.layers.0.self_attn.o_proj",
    ):
        assert line in shown.splitlines(), line
    for word in ("base_digest: ", "data_digest: ", "versions: optiq", "seed: 0"):
        assert word in shown, word
    assert str(data) not in (out / "optiq_lora_config.json").read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [2, 4]


def test_toml_has_the_same_keys(tmp_path: Path, base: Path, data: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'data = "{data}"\niters = 1\nrank_scaling = "constant"\nmask_prompt = true\nkeep_best = true\n')
    result = train(base, "--config", config, "-o", tmp_path / "adapter")
    assert result.exit_code == 0, result.output
    assert "rank 8: 4 modules" in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "rnak: 4", "a.yaml: 'rnak' is no option of this command; they are base, batch_size, "),
        ("a.yaml", "rank: many", "a.yaml: 'rank': 'many' is not a valid integer"),
        ("a.yaml", "optimizer: lion", "a.yaml: 'optimizer': 'lion' is not one of 'adam'"),
        ("a.yaml", "keep_best: 7", "a.yaml: 'keep_best': must be true or false, is 7"),
        ("a.yaml", "- 1", "a.yaml: must be keys with values"),
        ("a.yaml", "a: [", "a.yaml: cannot be read"),
        ("a.toml", "rank = ", "a.toml: cannot be read"),
        ("a.yaml", "weight_decay: 0.1", "weight_decay: must be 0 with adam, which has none; adamw has"),
        ("a.yaml", "warmup_steps: 100", "warmup_steps: must be below iters, which is 100"),
        ("a.yaml", "{lr_schedule: exponential}", "lr_end: must be above 0 with the exponential schedule"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file_and_the_key(
    tmp_path: Path, data: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    result = train(tmp_path, "--config", tmp_path / name, "--data", data, "-o", tmp_path / "adapter")
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_run(tmp_path: Path, base: Path, data: Path) -> None:
    result = train(base, "--data", data, "-o", tmp_path / "a", "--plot", tmp_path / "loss.doc")
    assert (result.exit_code, "plot: must end in .png, .svg or .pdf" in result.stderr) == (2, True)
