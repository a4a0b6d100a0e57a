"""Rank allocation: every scheme by its rule and under a parameter budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq_core.errors import TrainingError
from optiq_core.train.config import TrainConfig
from optiq_core.train.ranks import MAX_RANK, Target, allocate_ranks, distribution, fit_budget
from optiq_core.train.schemes import RANK_SCALINGS, RankScaling


def modules(*bits: int | None) -> list[Target]:
    return [Target(f"model.layers.{i}.self_attn.q_proj", 64, 64, bits=b) for i, b in enumerate(bits)]


def ranks(targets: list[Target], scaling: RankScaling, rank: int = 8) -> list[int]:
    return list(allocate_ranks(targets, rank=rank, scaling=scaling).values())


def test_by_bits_gives_rank_times_bits_over_four_rounded_up() -> None:
    assert ranks(modules(4, 8, 3, 5), "by_bits") == [8, 16, 6, 10]
    assert distribution(allocate_ranks(modules(4, 8, 4), rank=8, scaling="by_bits")) == {8: 2, 16: 1}
    assert ranks(modules(4, 8, 3, 5), "constant") == [8] * 4


def test_float_modules_get_the_base_rank_alone_and_twice_it_beside_quantized_ones() -> None:
    assert ranks(modules(16, 32, None), "by_bits") == [8, 8, 8]
    assert ranks(modules(16, 4), "by_bits") == [16, 8]


def test_by_kl_follows_the_median_within_half_and_twice() -> None:
    targets = [Target(f"m.{i}", 8, 8, kl=kl) for i, kl in enumerate((0.01, 0.1, 0.15, 9.0, 0.1))]
    assert ranks(targets, "by_kl") == [4, 8, 12, 16, 8]
    with pytest.raises(TrainingError, match=r"by_kl needs a score for 'model.layers.0.self_attn.q_proj'.*convert"):
        ranks(modules(4), "by_kl")


def test_linear_gives_the_top_block_three_times_the_lowest() -> None:
    assert ranks(modules(*[4] * 5), "linear") == [4, 6, 8, 10, 12]
    assert ranks(modules(4), "linear") == [8]


def test_attention_and_ffn_favour_their_own() -> None:
    targets = [Target("model.layers.0.self_attn.o_proj", 8, 8), Target("model.layers.0.mlp.up_proj", 8, 8)]
    assert ranks(targets, "attention") == [8, 4]
    assert ranks(targets, "ffn") == [4, 8]


def test_a_pattern_takes_the_longest_match_and_refuses_what_matches_nothing() -> None:
    targets = [Target(f"model.layers.{i}.self_attn.{n}_proj", 8, 8) for i in (1, 11) for n in "qv"]
    pattern = {"q_proj": 3, "layers.1.self_attn.q_proj": 5}
    assert allocate_ranks(targets, rank=7, scaling="pattern", pattern=pattern) == {
        "model.layers.1.self_attn.q_proj": 5,
        "model.layers.1.self_attn.v_proj": 7,
        "model.layers.11.self_attn.q_proj": 3,
        "model.layers.11.self_attn.v_proj": 7,
    }
    with pytest.raises(TrainingError, match="rank_pattern: 'proj' is none"):
        allocate_ranks(targets, rank=7, scaling="pattern", pattern={"proj": 3})


def test_a_rank_that_could_not_be_served_is_refused_before_training() -> None:
    with pytest.raises(TrainingError, match=r"rank: 'model.layers.0.self_attn.q_proj' would get 400"):
        ranks(modules(8), "by_bits", rank=200)


@st.composite
def allocations(draw: st.DrawFn) -> tuple[list[Target], list[float]]:
    sizes = draw(st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 4096)), min_size=1, max_size=40))
    weights = draw(st.lists(st.floats(0.05, 20), min_size=len(sizes), max_size=len(sizes)))
    return [Target(f"m.{i}", a, b) for i, (a, b) in enumerate(sizes)], weights


@given(allocations(), st.integers(1, 64))
def test_a_budget_is_never_exceeded_and_leaves_less_than_one_rank(
    allocation: tuple[list[Target], list[float]], rank: int
) -> None:
    targets, weights = allocation
    budget = sum(t.cost for t in targets) * rank
    found = fit_budget(targets, weights, budget)
    left = budget - sum(found[t.path] * t.cost for t in targets)
    assert left >= 0
    assert all(1 <= r <= MAX_RANK for r in found.values())
    assert all(t.cost > left for t in targets if found[t.path] < MAX_RANK)


@given(st.sampled_from(["constant", "by_bits", "linear", "attention", "ffn"]), st.integers(2, 32))
def test_schemes_at_one_budget_have_one_size(scaling: RankScaling, rank: int) -> None:
    targets = [
        Target(f"model.layers.{i}.{part}", 64, out, bits=4 + 4 * (i % 2))
        for i in range(6)
        for part, out in (("self_attn.q_proj", 64), ("mlp.up_proj", 192))
    ]
    found = allocate_ranks(targets, rank=8, scaling=scaling, budget_like=f"constant:{rank}")
    size = sum(found[t.path] * t.cost for t in targets)
    assert 0 <= rank * sum(t.cost for t in targets) - size < min(t.cost for t in targets)


def test_a_budget_follows_its_own_scheme_exactly() -> None:
    targets = modules(4, 8, 4, 8)
    by_bits = allocate_ranks(targets, rank=8, scaling="by_bits")
    assert allocate_ranks(targets, rank=3, scaling="by_bits", budget_like="by_bits:8") == by_bits
    with pytest.raises(TrainingError, match="budget_like: 10 parameters"):
        fit_budget(targets, [1.0] * 4, 10)


@pytest.mark.parametrize("text", ["constant", "constant:", "constant:0", "constant:x", "gradient:8", "constant:257"])
def test_a_budget_that_cannot_be_read_says_what_would_be_right(text: str) -> None:
    with pytest.raises(TrainingError, match="budget_like: must be SCHEME:RANK"):
        TrainConfig(data_path="d", budget_like=text).validate()


def test_a_pattern_goes_with_its_scheme_only() -> None:
    assert set(RANK_SCALINGS) >= {"constant", "by_bits", "by_kl", "linear", "attention", "ffn", "gradient", "pattern"}
    for config in (
        TrainConfig(data_path="d", rank_scaling="pattern"),
        TrainConfig(data_path="d", rank_pattern={"q_proj": 4}),
        TrainConfig(data_path="d", rank_scaling="pattern", rank_pattern={"q_proj": 0}),
    ):
        with pytest.raises(TrainingError, match="rank_pattern"):
            config.validate()
