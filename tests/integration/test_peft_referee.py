"""Hugging Face PEFT itself as the referee: a folder that it saved, mounted on the same weights, gives its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama

from optiq_core.adapters.mount import AdapterActivation, mount_adapter_on_model
from tests.unit.tiny import tiny_model

pytestmark = pytest.mark.referee

TOKENS = [[1, 5, 9, 13, 2, 7], [3, 3, 8, 1, 60, 4]]
TOLERANCE = 1e-4


def same_model_in_torch(model: llama.Model) -> Any:
    """The tiny model as Hugging Face's own Llama, with the same weights."""
    import torch
    from mlx.utils import tree_flatten
    from transformers import LlamaConfig, LlamaForCausalLM

    args = model.args
    config = LlamaConfig(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        intermediate_size=args.intermediate_size,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_key_value_heads,
        rms_norm_eps=args.rms_norm_eps,
        vocab_size=args.vocab_size,
        rope_theta=args.rope_theta,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    twin = LlamaForCausalLM(config).eval()
    state = {name: torch.tensor(np.array(value)) for name, value in tree_flatten(model.parameters())}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    twin.tie_weights()
    return twin


def torch_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(TOKENS)).logits.numpy()
    return logits


def randomised(model: Any) -> Any:
    """Give every adapter tensor a visible value: PEFT starts B at zero."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) * 0.4 + 0.8)
            elif "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {
            "target_modules": ["q_proj", "v_proj", "down_proj", "gate_proj"],
            "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2, "v_proj": 3},
            "alpha_pattern": {r"model\.layers\.1\.self_attn\.q_proj": 5, "down_proj": 32},
        },
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 7}},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
    ids=["lora", "rslora", "dora", "patterns", "dora-rslora-ranks", "embedding-of-a-tied-head"],
)
def test_a_peft_folder_has_the_same_function(tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model()
    twin = same_model_in_torch(model)
    plain = model(mx.array(TOKENS))
    assert np.abs(np.array(plain) - torch_logits(twin)).max() < TOLERANCE, "the two bases must agree first"

    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **options}
    tuned = randomised(get_peft_model(twin, LoraConfig(task_type="CAUSAL_LM", **settings))).eval()
    tuned.save_pretrained(str(tmp_path))
    expected = torch_logits(tuned)
    assert np.abs(expected - np.array(plain)).max() > 0.01, "the adapter must change something"

    mount_adapter_on_model(model, "peft", tmp_path)
    with AdapterActivation("peft"):
        ours = np.array(model(mx.array(TOKENS)))
    assert np.abs(ours - expected).max() < TOLERANCE


def test_a_pissa_adapter_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from optiq_core.errors import AdapterError

    model = tiny_model()
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    get_peft_model(same_model_in_torch(model), config).save_pretrained(str(tmp_path))
    with pytest.raises(AdapterError, match="BASE_CHANGED"):
        mount_adapter_on_model(model, "pissa", tmp_path)


@pytest.mark.parametrize(
    ("dora", "ranks"), [(False, False), (False, True), (True, False)], ids=["lora", "ranks", "dora"]
)
def test_peft_loads_our_export_with_the_same_logits(tmp_path: Path, dora: bool, ranks: bool) -> None:
    from peft import PeftModel

    from optiq_core.adapters.export import export_adapter
    from optiq_core.adapters.merge import merge_adapters
    from tests.unit.tiny import write_mlx_adapter

    model = tiny_model()
    source = write_mlx_adapter(tmp_path / "one", tiny_model(), rank=3, dora=dora, seed=1)
    if ranks:
        other = write_mlx_adapter(tmp_path / "two", tiny_model(), rank=5, seed=2, targets=("q_proj", "down_proj"))
        merge_adapters([(source, 0.5), (other, -0.25)], tmp_path / "ranks")
        source = tmp_path / "ranks"
    export_adapter(source, tmp_path / "peft", "peft")
    tuned = PeftModel.from_pretrained(same_model_in_torch(model), str(tmp_path / "peft")).eval()
    mount_adapter_on_model(model, "ours", source)
    with AdapterActivation("ours"):
        ours = np.array(model(mx.array(TOKENS)))
    assert np.abs(ours - np.array(tiny_model()(mx.array(TOKENS)))).max() > 0.01
    assert np.abs(ours - torch_logits(tuned)).max() < TOLERANCE
