"""Live buffers, where they can be counted: graphs whose arrays all have one size, so that peak bytes are a count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Large enough that products are slower than scheduling them, which is the case that matters.
_SIDE = 1024
_ROUNDS = 12


def count_buffers() -> list[dict[str, Any]]:
    """Predict and count the most buffers alive at once, in gradients of small networks of square matrices.

    Each is evaluated a dozen times, because where MLX closes a task depends on what it evaluated before.

    Returns:
        Rows with `graph`, `predicted` and `counted`.
    """
    import mlx.core as mx

    from optiq_core.planner.devices import CPU
    from optiq_core.planner.liveness import simulate
    from optiq_core.planner.trace import Borders, trace

    unit = _SIDE * _SIDE * 4
    rows = []
    for name, depth, network in _networks():
        gradient = mx.value_and_grad(network, argnums=list(range(1, depth + 1)))

        def outputs(*arrays: Any, gradient: Any = gradient) -> list[Any]:
            value, slopes = gradient(*arrays)
            return [value, *slopes]

        arrays = [mx.random.normal((_SIDE, _SIDE)) * 0.01 for _ in range(depth + 1)]
        graph = trace(outputs, arrays, Borders(), differentiated=range(1, depth + 1))
        predicted = simulate(graph, {}, CPU, held=graph.inputs, phases=range(10)).peak_bytes // unit
        mx.eval(arrays)
        counted = 0
        for _ in range(_ROUNDS):
            mx.clear_cache()
            mx.reset_peak_memory()
            # What was alive before and is not part of the graph does not count.
            others = mx.get_active_memory() // unit - len(arrays)
            mx.eval(outputs(*arrays))
            counted = max(counted, mx.get_peak_memory() // unit - others)
        rows.append({"graph": name, "predicted": predicted, "counted": counted})
        del arrays
    return rows


def _networks() -> list[tuple[str, int, Callable[..., Any]]]:
    import mlx.core as mx

    def plain(x: mx.array, *weights: mx.array) -> mx.array:
        for weight in weights:
            x = mx.tanh(x @ weight)
        return x.sum()

    def residual(x: mx.array, *weights: mx.array) -> mx.array:
        for weight in weights:
            x = x + mx.sigmoid(x @ weight)
        return mx.square(x).sum()

    def gated(x: mx.array, *weights: mx.array) -> mx.array:
        for left, right in zip(weights[::2], weights[1::2], strict=True):
            x = mx.softmax(x @ left, axis=-1) * mx.sin(x @ right.T)
        return x.sum()

    return [
        (f"{name} {depth}", depth, network)
        for name, network in (("plain", plain), ("residual", residual), ("gated", gated))
        for depth in (4, 12)
    ]
