"""The planner: what a training step will need, before the first kernel runs.

``graph``, ``order``, ``layout``, ``liveness``, ``ceilings``, ``calibration`` and ``plan`` import no MLX; ``trace`` and ``step``
do, because the graph is MLX's own.
"""
