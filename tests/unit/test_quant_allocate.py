"""Allocation of bits: greedy against brute force and the exact solver, protection, budgets."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiq_core.errors import QuantizationError
from optiq_core.quant.allocate import Choice, Item, allocate_greedy, protect
from optiq_core.quant.exact import allocate_exact
from optiq_core.quant.options import Option, parse_candidates


def item(path: str, size: int, kl: float, bits: tuple[int, ...] = (3, 4, 8)) -> Item:
    """A module whose KL falls by four with every bit."""
    return Item(path, tuple(Choice(f"{b}g64", size * b, kl * 4.0**-b) for b in bits))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Item], int]:
    count = draw(st.integers(1, 5))
    items = []
    for index in range(count):
        size = draw(st.integers(1, 50))
        bits = sorted(draw(st.sets(st.sampled_from((2, 3, 4, 5, 6, 8)), min_size=1, max_size=4)))
        # Not always falling: a measurement may rate more bits worse.
        kl = [draw(st.floats(0, 10)) for _ in bits]
        items.append(Item(f"m{index}", tuple(Choice(str(b), size * b, k) for b, k in zip(bits, kl, strict=True))))
    least = sum(i.choices[0].cost for i in items)
    most = sum(i.choices[-1].cost for i in items)
    return items, draw(st.integers(least, most + 10))


def brute_force(items: list[Item], budget: int) -> float:
    sums = [
        sum(c.kl for c in combination)
        for combination in itertools.product(*(i.choices for i in items))
        if sum(c.cost for c in combination) <= budget
    ]
    return min(sums)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_greedy_keeps_the_budget_and_exact_is_the_optimum(problem: tuple[list[Item], int]) -> None:
    items, budget = problem
    best = brute_force(items, budget)
    greedy, exact = allocate_greedy(items, budget), allocate_exact(items, budget)
    assert set(greedy.chosen) == set(exact.chosen) == {i.path for i in items}
    assert greedy.cost <= budget
    assert exact.cost <= budget
    assert exact.kl == pytest.approx(best, rel=1e-5, abs=1e-5)
    assert greedy.kl >= best - 1e-9
    everything_cheapest = sum(i.choices[0].kl for i in items)
    assert greedy.kl <= everything_cheapest + 1e-9


def test_bits_go_where_they_lower_kl_most() -> None:
    items = [item("dull", 100, 1.0), item("keen", 100, 50.0), item("large", 10_000, 50.0)]
    chosen = allocate_greedy(items, 3 * 10_200 + 100 * 5).chosen
    assert {path: choice.label for path, choice in chosen.items()} == {
        "dull": "3g64", "keen": "8g64", "large": "3g64",
    }  # fmt: skip


def test_protection_comes_first_and_says_what_does_not_fit() -> None:
    items = [item("head", 1000, 0.1), item("first", 10, 0.1), item("rest", 100, 9.0)]
    room = sum(i.choices[0].cost for i in items) + 50
    kept, unprotected = protect(items, room, {"head", "first"})
    assert unprotected == ("head",)
    assert [len(i.choices) for i in kept] == [3, 1, 3]
    assert allocate_greedy(kept, room).chosen["first"].label == "8g64"


def test_a_budget_below_the_cheapest_is_refused() -> None:
    for allocate in (allocate_greedy, allocate_exact):
        with pytest.raises(QuantizationError, match="--target-bpw"):
            allocate([item("a", 10, 1.0)], 29)


def test_candidates_are_read_with_every_group_size() -> None:
    labels = [o.label for o in parse_candidates("8, 4,mxfp4", (64, 128))]
    assert labels == ["mxfp4", "4g128", "4g64", "8g128", "8g64"]
    assert Option(4, 64).stored_bits(128, 16) == 128 * 4 + 2 * 32
    assert Option(4, 32, "mxfp4").stored_bits(128, 16) == 128 * 4 + 4 * 8
    for wrong in ("7", "4,,8", "fp4", ""):
        with pytest.raises(QuantizationError, match="candidate bits"):
            parse_candidates(wrong, (64,))
    with pytest.raises(QuantizationError, match="group size 48"):
        parse_candidates("4", (48,))
