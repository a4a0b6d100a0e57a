"""The joint search: its space, its one-shot solution, and a whole search on the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner

from optiq_core.base.metadata import read_metadata
from optiq_core.experiments.cli import experiment
from optiq_core.experiments.space import Assignment, Module, SearchError, Space
from optiq_core.experiments.spec import SpecError, load_experiment
from tests.unit.train_tiny import write_tiny_base


def module(name: str, group: str, size: int, kl: float, rank_cost: int = 0) -> Module:
    captured = [kl * part for part in (0.5, 1.0, 1.25, 1.5, 1.5, 1.6, 1.6, 1.6, 2.0)] if rank_cost else ()
    return Module(name, group, {4: 4 * size, 8: 8 * size}, {4: kl, 8: kl / 100}, rank_cost, captured)


SPACE = Space(
    (
        module("embed", "ends", 400, 0.4),
        module("a.q", "attention 0-0", 100, 0.9, 10),
        module("a.up", "ffn 0-0", 200, 0.1),
        module("b.q", "attention 1-1", 100, 0.2, 10),
        module("b.up", "ffn 1-1", 200, 0.3),
    ),
    bits=(4, 8),
    ranks=(2, 4, 8),
    other_bytes=50,
)


def test_bytes_divergence_and_captured_gradient_are_sums_over_the_modules() -> None:
    chosen = Assignment({"embed": 8, "a.q": 4, "a.up": 4, "b.q": 4, "b.up": 4}, {"a.q": 2, "b.q": 8})
    # 50 + 400 bytes of embeddings, 600 weights of half a byte, and (2 + 8) * 10 parameters of 4 bytes.
    assert SPACE.bytes(chosen) == 50 + 400 + 300 + 400
    assert SPACE.kl(chosen) == pytest.approx(0.004 + 0.9 + 0.1 + 0.2 + 0.3)
    assert SPACE.captured(chosen) == pytest.approx((0.9 + 1.6 * 0.2) / (2 * 1.1))


@pytest.mark.parametrize("budget", [900, 1000, 1300, 2000])
def test_the_one_shot_solution_fits_and_spends_bits_where_they_count(budget: int) -> None:
    chosen = SPACE.one_shot(budget, 2)
    assert SPACE.bytes(chosen) <= budget
    assert chosen.ranks == {path: chosen.bits[path] // 2 for path in ("a.q", "b.q")}
    if budget < 2000:
        assert any(bits == 4 for bits in chosen.bits.values())
        paths = [m.path for m in SPACE.modules]
        everything = [
            Assignment(bits, {path: bits[path] // 2 for path in chosen.ranks})
            for bits in (dict(zip(paths, values, strict=True)) for values in product((4, 8), repeat=len(paths)))
        ]
        cheapest = min(SPACE.kl(c) for c in everything if SPACE.bytes(c) <= budget)
        assert SPACE.kl(chosen) <= cheapest + 0.4
    else:
        assert set(chosen.bits.values()) == {8}


def test_a_choice_without_weights_is_the_one_shot_solution_and_others_move_bits_and_ranks() -> None:
    budget = 1100
    neutral = SPACE.neutral(2)
    assert neutral.keys() == SPACE.parameters.keys()
    assert all(value in SPACE.parameters[name] for name, value in neutral.items())
    plain = SPACE.assign(neutral, budget)
    assert plain == SPACE.one_shot(budget, 2)
    assert (plain.bits["embed"], plain.bits["b.up"]) == (4, 8)
    moved = SPACE.assign({**neutral, "weight ends": 4, "weight ffn 1-1": 0.25, "rank attention 1-1": 4}, budget)
    assert (moved.bits["embed"], moved.bits["b.up"]) == (8, 4)
    assert moved.ranks["b.q"] == moved.bits["b.q"]
    assert SPACE.bytes(moved) <= budget


def test_protected_modules_come_first_unless_their_group_weighs_less() -> None:
    space = replace(SPACE, protected=frozenset({"a.up"}))
    neutral = space.neutral(2)
    assert SPACE.one_shot(900, 2).bits["a.up"] == 4
    assert space.one_shot(900, 2).bits["a.up"] == 8
    assert space.assign({**neutral, "weight ffn 0-0": 0.5}, 900).bits["a.up"] == 4


def test_a_budget_that_is_too_small_says_what_it_takes() -> None:
    with pytest.raises(SearchError, match="the fewest bits with their adapter take"):
        SPACE.one_shot(300, 2)


SEARCH = """
name = "tiny"
seeds = [0]
max_tokens = 4
items = {{ source = "{items}", train = 8, valid = 2, test = 4 }}
train = {{ iters = 2, batch_size = 4, max_seq_length = 96, rank = 2 }}
configurations = [{{ name = "c" }}]
[bases.base]
model = "{base}"
[search]
group_size = 32
ranks = [1, 2, 4]
parts = 2
proxy_trials = 24
short_trials = 4
short_steps = 2
"""


def test_a_search_is_compared_with_the_one_shot_solution_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIQ_CACHE", str(tmp_path / "cache"))
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps({"prompt": f"{n}+1", "answer": str(n + 1)}) + "\n" for n in range(20)))
    file = tmp_path / "search.toml"
    file.write_text(SEARCH.format(items=items, base=write_tiny_base(tmp_path / "base", quantized=False)))
    words = ["search", str(file), "-o", str(tmp_path / "out")]
    ran = CliRunner().invoke(experiment, [*words, "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["proxy_trials"] == 24 and 1 <= found["proxy_front"] <= 24
    assert 1 <= len(found["short"]) <= 4
    assert all(trial["bytes"] <= found["budget_bytes"] for trial in (found["one_shot"], *found["short"]))
    losses = [trial["short_loss"] for trial in found["short"]]
    assert losses == sorted(losses)
    best = found["short"][0]
    assert best["name"] == "found-1"
    one_shot, searched = found["full"]["rows"]
    assert (one_shot["name"], searched["name"]) == ("one-shot", "found-1")

    # The base has the bits that decided its ranks, and its size is that which the search reckoned with.
    bits = read_metadata(tmp_path / "out/bases/found-1").layer_bits
    run = tmp_path / "out/full/runs/found-1/seed-0/run.json"
    for path, rank in json.loads(run.read_text())["train"]["rank_pattern"].items():
        part = path.split(".")[2]
        assert rank == best["groups"][f"rank attention {part}-{part}"] * bits[path] / 4
    whole = searched["base_bytes"] + searched["adapter_bytes"]
    assert best["bytes"] < whole < best["bytes"] + 12_000

    again = CliRunner().invoke(experiment, words)
    assert again.exit_code == 0, again.output
    assert "· training" not in again.stderr and "starting" not in again.stderr
    assert f"| found-1 | {best['bytes'] / 1e6:.2f} |" in again.stdout
    other = CliRunner().invoke(experiment, [*words, "--short-trials", "5"])
    assert other.exit_code == 1 and "holds a search with other settings" in other.stderr


def test_settings_of_a_search_that_make_no_sense_are_named() -> None:
    with pytest.raises(SpecError, match=r"search.bits: give two or more of 2, 3, 4, 5, 6, 8"):
        load_experiment("logic").with_search(bits=(4,))
    with pytest.raises(SpecError, match=r"search.finalists: must be at least 1, is 0"):
        load_experiment("logic").with_search(finalists=0)
    assert CliRunner().invoke(experiment, ["search", "-o", "out"]).exit_code == 2


def test_mlx_is_not_loaded_before_the_device_is_set_up() -> None:
    """On a CPU mlx would keep the slow BLAS that it came with."""
    code = "import sys, optiq_core.experiments.search; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
