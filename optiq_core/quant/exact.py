"""The optimal allocation, by integer programming. No MLX here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optiq_core.errors import QuantizationError
from optiq_core.quant.allocate import Allocation, Item, check_budget

_TIME_LIMIT_S = 120.0
_GAP = 1e-6


def allocate_exact(items: Sequence[Item], budget: int) -> Allocation:
    """Spend a budget so that the summed KL is least, with HiGHS.

    Args:
        items: modules with their choices.
        budget: bits for all of them.

    Raises:
        QuantizationError: the cheapest choices already cost more, or the solver did not finish in two minutes.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    check_budget(items, budget)
    choices = [(index, choice) for index, item in enumerate(items) for choice in item.choices]
    kl = np.array([c.kl for _, c in choices])
    # Scaled so that the solver's absolute tolerances are far below what a choice is worth.
    kl = kl / max(kl.max(), 1e-30)
    costs = np.array([c.cost for _, c in choices], np.float64)
    one_each = csr_array(
        (np.ones(len(choices)), ([index for index, _ in choices], range(len(choices)))),
        shape=(len(items), len(choices)),
    )
    result = milp(
        kl,
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs[None, :] / budget, -np.inf, 1.0),
        ],
        options={"time_limit": _TIME_LIMIT_S, "mip_rel_gap": _GAP},
    )
    if result.status != 0:
        raise QuantizationError(f"the exact allocator found no optimum: {result.message}; use --allocator greedy")
    chosen = {items[i].path: c for (i, c), taken in zip(choices, result.x, strict=True) if taken > 0.5}
    return Allocation(chosen)
