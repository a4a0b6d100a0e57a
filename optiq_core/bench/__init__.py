"""Benches: one module each, with ``run(...) -> dict`` and a click command; see :mod:`optiq_core.bench.harness`."""
