from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from optiq_core.train.cli import lora
from tests.unit.tiny import tiny_model, write_mlx_adapter
from tests.unit.train_tiny import write_tiny_base, write_tiny_data


def optiq_lora(*words: str | Path) -> Result:
    return CliRunner().invoke(lora, [str(word) for word in words])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    return write_tiny_base(tmp_path / "base"), write_tiny_data(tmp_path / "data"), tmp_path / "adapter"


def test_train_then_info_as_the_seed_documents_write_them(folders: tuple[Path, Path, Path]) -> None:
    base, data, out = folders
    seed_options = ["--max-seq-length", "1400", "--rank", "8", "--rank-scaling", "by_bits", "--num-layers", "16"]
    trained = optiq_lora("train", base, "--data", data, *seed_options, "--iters", "3", "-o", out)
    assert trained.exit_code == 0, trained.output
    assert trained.stdout.strip() == str(out)
    assert "rank 8: 2 modules, rank 16: 2 modules" in trained.stderr
    assert "step 3/3" in trained.stderr
    assert sorted(path.name for path in out.parent.iterdir()) == ["adapter", "base", "data"]

    shown = optiq_lora("info", out)
    assert shown.stdout.splitlines()[:5] == [
        "OptIQ LoRA adapter",
        "  base: base",
        "  rank: 8 (scaling: by_bits)",
        "  scale: 20.0  dropout: 0.0",
        "  rank distribution: {8: 2, 16: 2} across 4 adapted modules",
    ]
    content = json.loads(optiq_lora("info", out, "--json").stdout)
    assert content["rank_distribution"] == {"8": 2, "16": 2}
    assert content["optiq"]["training"]["steps"] == 3


def test_ranks_shows_an_allocation_before_training(folders: tuple[Path, Path, Path]) -> None:
    base, data, _ = folders
    shown = optiq_lora("ranks", base)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[-1] == "5,376 parameters across 4 modules, ranks {8: 2, 16: 2}"
    like = optiq_lora("ranks", base, "--rank-scaling", "pattern", "--rank-pattern", "q_proj=24", "--json")
    assert json.loads(like.stdout)["rank_distribution"] == {"8": 2, "24": 2}
    probed = optiq_lora("ranks", base, "--rank-scaling", "gradient", "--data", data, "--budget-like", "by_bits:8")
    assert probed.exit_code == 0, probed.output
    for words in (["--rank-scaling", "gradient"], ["--rank-pattern", "q_proj=4"], ["--rank-pattern", "q_proj:4"]):
        assert optiq_lora("ranks", base, *words).exit_code == 2
    refused = optiq_lora("ranks", base, "--rank-scaling", "by_kl")
    assert (refused.exit_code, "optiq convert --method kl" in refused.stderr) == (1, True)


def test_info_of_an_adapter_that_mlx_lm_wrote(tmp_path: Path) -> None:
    folder = write_mlx_adapter(tmp_path / "adapter", tiny_model(), rank=4, scale=10.0)
    assert optiq_lora("info", folder).stdout.splitlines()[:4] == [
        "mlx-lm lora adapter",
        "  base: not recorded",
        "  scale: 10",
        "  rank distribution: {4: 4} across 4 adapted modules",
    ]
    (folder / "adapters.safetensors").unlink()
    broken = optiq_lora("info", folder)
    assert broken.exit_code == 1
    assert "adapters.safetensors" in broken.stderr


def test_mistakes_are_told_apart_by_exit_code(folders: tuple[Path, Path, Path]) -> None:
    base, data, out = folders
    common = ["train", base, "--data", data, "-o", out]
    for words in (["--rank", "0"], ["--rank-scaling", "by_moon"], ["--target-modules", "nope"]):
        assert optiq_lora(*common, *words).exit_code == 2
    missing = optiq_lora("train", base, "--data", data / "none", "-o", out)
    assert (missing.exit_code, "no such folder" in missing.stderr) == (1, True)
    (data / "train.jsonl").write_text("{}\n")
    assert "train.jsonl line 1" in optiq_lora(*common).stderr
    assert optiq_lora("train", out, "--data", data, "-o", out).exit_code == 1
    out.mkdir()
    assert "--overwrite replaces it" in optiq_lora(*common).stderr
