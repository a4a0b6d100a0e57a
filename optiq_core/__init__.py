"""Optiq's library: bases, quantization, adapters, batching and training, usable alone from a notebook.

Importing this package does not import MLX; the submodules that compute do.
"""
