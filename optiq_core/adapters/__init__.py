"""Adapter folders: formats and validation (no MLX), the bank of stacked adapters, and the mount API."""
