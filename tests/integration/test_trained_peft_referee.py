"""Adapters that we trained, exported, in Hugging Face's peft: the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from optiq_core.adapters.export import export_adapter
from tests.integration.test_peft_referee import TOKENS, TOLERANCE, same_model_in_torch, torch_logits
from tests.unit.train_lab import Lab

pytestmark = pytest.mark.referee


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"method": "dora"},
        {"rslora": True, "rank_scaling": "linear"},
        {"method": "dora", "rslora": True, "rank_scaling": "linear", "target_modules": ("q_proj", "down_proj")},
    ],
    ids=["lora", "dora", "rslora-ranks", "dora-rslora-ranks"],
)
def test_peft_gives_the_trained_models_logits(tmp_path: Path, fields: dict[str, Any]) -> None:
    from peft import PeftModel

    lab = Lab(tmp_path, quantized=False)
    lab.run("adapter", learning_rate=5e-3, **fields)
    trained = np.array(lab.base.model(mx.array(TOKENS)))
    export_adapter(tmp_path / "adapter", tmp_path / "peft", "peft")
    from optiq_core.base import load_base

    model = load_base(lab.base_path).model
    twin = same_model_in_torch(model)
    assert np.abs(trained - np.array(model(mx.array(TOKENS)))).max() > 0.01
    tuned = PeftModel.from_pretrained(twin, str(tmp_path / "peft")).eval()
    assert np.abs(torch_logits(tuned) - trained).max() < TOLERANCE * max(1.0, float(np.abs(trained).max()))
