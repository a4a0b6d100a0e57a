"""Prepares the device before any test module imports MLX: BLAS cannot be put in front of it later."""

from optiq_core.base import setup_device

setup_device()
