"""Benches that need a daemon."""
