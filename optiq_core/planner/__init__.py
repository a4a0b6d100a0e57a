"""The planner: what a training step will need, before the first kernel runs.

``trace``, ``model``, ``step`` and ``planner`` import MLX, because the graph is its own; the other modules do not.
"""
