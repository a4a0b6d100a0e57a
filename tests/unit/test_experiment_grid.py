"""A whole small experiment with the real trainer and engine, a process for each run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from optiq_core import experiments
from optiq_core.experiments.cli import experiment
from optiq_core.experiments.grid import RunFailedError, read_grid, run_grid
from optiq_core.experiments.spec import load_experiment
from tests.unit.train_tiny import write_tiny_base

GRID = """
name = "tiny"
seeds = [0]
max_tokens = 4
[items]
source = "{items}"
train = 8
valid = 2
test = 4
[bases.base]
model = "{base}"
[train]
iters = 3
batch_size = 4
max_seq_length = 96
steps_per_report = 1
[[configurations]]
name = "bare"
kind = "bare"
[[configurations]]
name = "by-bits"
"""


def optiq_experiment(*words: str | Path) -> Result:
    return CliRunner().invoke(experiment, [str(word) for word in words])


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    items = tmp_path / "items.jsonl"
    lines = [{"prompt": f"{n}+1", "answer": str(n + 1), "category": "ab"[n % 2]} for n in range(20)]
    items.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = tmp_path / "grid.toml"
    file.write_text(GRID.format(items=items, base=write_tiny_base(tmp_path / "base")))
    return file


def test_a_grid_runs_is_reported_and_is_not_run_twice(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = optiq_experiment("run", grid, "-o", out, "--json")
    assert ran.exit_code == 0, ran.output
    bare, by_bits = json.loads(ran.stdout)["rows"]
    assert (bare["parameters"], bare["against"], bare["seeds"]) == (0, None, 1)
    assert by_bits["parameters"] == 5376
    assert by_bits["adapter_bytes"] > 0
    assert by_bits["by_category"].keys() == {"a", "b"}
    assert sum(of for _, of in by_bits["by_category"].values()) == 4
    predictions = (out / "runs/by-bits/seed-0/predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 4
    assert json.loads((out / "runs/by-bits/seed-0/result.json").read_text())["described"]["versions"]["mlx"]

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    (out / "runs/bare/seed-0/result.json").unlink()
    again = optiq_experiment("run", grid, "-o", out)
    assert again.exit_code == 0, again.output
    assert "bare seed 0" in again.stderr and "by-bits seed 0" not in again.stderr
    after = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert [path.parent.parent.name for path in after if after[path] != stamps[path]] == ["bare"]

    shown = optiq_experiment("report", out, "--plots", tmp_path / "figures", "--chart", "--against", "by-bits")
    assert shown.exit_code == 0, shown.output
    assert "vs by-bits" in shown.stdout and "accuracy, % (o) with its 95 % interval" in shown.stdout
    assert "| by-bits | 5,376 |" in shown.stdout
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".svg"}


PRECISIONS = """
name = "precisions"
seeds = [0]
max_tokens = 4
text = "evaluation"
items = {{ source = "{items}", train = 8, valid = 2, test = 4 }}
train = {{ iters = 2, batch_size = 4, max_seq_length = 96, rank_scaling = "constant" }}
[bases.four]
model = "{base}"
convert = {{ fixed = ["*=4"], group_size = 32 }}
[bases.loaded]
model = "{base}"
load_in = "4bit"
[[configurations]]
name = "merged"
base = "four"
kind = "merged"
train = {{ method = "qalora" }}
[[configurations]]
name = "loftq"
base = "loaded"
train = {{ init = "loftq" }}
[[configurations]]
name = "pruned"
base = "four"
train = {{ rank_scaling = "adalora", iters = 10 }}
"""


def test_bits_by_rule_a_merge_and_a_base_quantized_at_load(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIQ_CACHE", str(tmp_path / "cache"))
    base = write_tiny_base(tmp_path / "float", quantized=False)
    grid.write_text(PRECISIONS.format(items=tmp_path / "items.jsonl", base=base))
    ran = optiq_experiment("run", grid, "-o", tmp_path / "out", "--json")
    assert ran.exit_code == 0, ran.output
    merged, loftq, pruned = json.loads(ran.stdout)["rows"]
    # QA-LoRA's change is one number for each group: nothing of it is lost in the merge.
    assert merged["merged_cosine"] == pytest.approx(1, abs=1e-4)
    assert loftq["merged_cosine"] is None
    # AdaLoRA begins with half as many again, and counts what it ends with.
    assert 0 < pruned["parameters"] <= loftq["parameters"]
    assert merged["perplexity"] > 1 and loftq["perplexity"] > 1
    whole = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    assert merged["base_bytes"] < whole / 4
    assert whole / 8 < loftq["base_bytes"] < whole / 5
    assert not (tmp_path / "out/runs/merged/seed-0/merged").exists()


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_settings_that_changed_run_anew(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid.write_text(grid.read_text() + 'train = { target_modules = ["nope"] }\n')
    chosen = load_experiment(grid)
    base = Path(chosen.bases["base"].model)
    with pytest.raises(RunFailedError, match="by-bits/seed-0: exit code 1: target_modules: 'nope'"):
        run_grid(chosen, out, locate_base=lambda name: base)
    assert [result.configuration for result in read_grid(out)[1]] == ["bare"]
    grid.write_text(grid.read_text().replace("nope", "q_proj"))
    results = run_grid(load_experiment(grid), out, locate_base=lambda name: base)
    assert [result.configuration for result in results] == ["bare", "by-bits"]


def test_mistakes_say_what_would_be_right(tmp_path: Path) -> None:
    assert optiq_experiment("run", "-o", tmp_path / "out").exit_code == 2
    missing = optiq_experiment("run", tmp_path / "none.toml", "-o", tmp_path / "out")
    assert (missing.exit_code, "presets are logic" in missing.stderr) == (1, True)
    empty = optiq_experiment("report", tmp_path)
    assert (empty.exit_code, "optiq experiment run" in empty.stderr) == (1, True)


def test_the_guides_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (Path(experiments.__file__).parent / "README.md").read_text(encoding="utf-8")
    code = guide.partition("```python\n")[2].partition("```")[0]
    write_tiny_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "2 2 finished" in shown and "| by-bits |" in shown
    grid = guide.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "mine.toml").write_text(grid)
    assert [c.kind for c in load_experiment(tmp_path / "mine.toml").configurations] == ["adapter", "merged"]
