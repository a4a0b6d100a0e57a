"""A round of the net on each kind of model."""

from __future__ import annotations

from pathlib import Path

from optiq_core.base import load_base, resolve_base, setup_device
from tests.unit.moe import moe_model
from tests.unit.tiny import tiny_base, tiny_model

from .dense import Dense
from .load import EMBEDDED, TINY
from .run import Net, Report

# Logits of the tiny model are of the order of 1, of the embedded one of 20; float32 sums in another order.
_TINY_TOLERANCE = 1e-3
_EMBEDDED_TOLERANCE = 5e-3


def tiny_round(root: Path, seed: int, requests: int = 120) -> Report:
    """Serve and compare requests on a tiny random model."""
    setup_device()
    dense = Dense(tiny_model(seed), {0}, _TINY_TOLERANCE)
    return Net(tiny_base(seed), dense, root, TINY, seed).run(requests)


def moe_round(root: Path, seed: int, requests: int = 120) -> Report:
    """Serve and compare requests on a tiny random mixture of experts, with adapters on the experts too."""
    setup_device()
    kind = ("qwen3_moe", "mixtral", "olmoe")[seed // 8 % 3]
    dense = Dense(moe_model(kind, seed), {0}, _TINY_TOLERANCE)
    return Net(tiny_base(model=moe_model(kind, seed)), dense, root, TINY, seed).run(requests)


def embedded_round(root: Path, seed: int, requests: int = 32) -> Report:
    """Serve and compare requests on the embedded model."""
    setup_device()
    source = resolve_base("embedded")
    reference = load_base(source)
    dense = Dense(reference.model, set(reference.tokenizer.eos_token_ids), _EMBEDDED_TOLERANCE)
    return Net(load_base(source), dense, root, EMBEDDED, seed).run(requests)
