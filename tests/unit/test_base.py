"""Bases: GGUF import, mlx-lm folders, metadata, and errors that name the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from mlx.utils import tree_flatten

from optiq_core.base import load_base, read_metadata, resolve_base
from optiq_core.base.metadata import ModuleBits
from optiq_core.errors import BaseModelError
from tests.unit.tiny import tiny_model, tiny_tokenizer

HEADS, KV_HEADS = 4, 2
_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(path: str) -> str:
    if path.startswith("model.layers."):
        _, _, index, rest = path.split(".", 3)
        module, leaf = rest.rsplit(".", 1)
        return f"blk.{index}.{_GGUF_NAMES[module]}.{leaf}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[path]


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order of q and k, as its converter writes it."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: nn.Module, *, quantization: GGMLQuantizationType, pre: str = "smollm") -> None:
    writer = GGUFWriter(path, "llama")
    for key, value in {
        "embedding_length": 64, "block_count": 2, "feed_forward_length": 128, "context_length": 512,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    tokens = ["<eos>", *[chr(48 + i) for i in range(1, 63)], "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 63)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name, value in tree_flatten(model.parameters()):
        if name == "lm_head.weight":
            continue
        array = np.array(value, np.float32)
        if "q_proj" in name or "k_proj" in name:
            array = permute(array, HEADS if "q_proj" in name else KV_HEADS)
        kind = quantization if array.ndim == 2 else GGMLQuantizationType.F32
        data = quants.quantize(array, kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_CACHE", str(tmp_path / "cache"))


def tied_model() -> nn.Module:
    model = tiny_model()
    # The tiny model's head is tied, as in the embedded model.
    assert model.args.tie_word_embeddings
    return model


@pytest.mark.parametrize(
    "quantization", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.F32]
)
def test_a_gguf_import_computes_what_the_file_says(tmp_path: Path, quantization: GGMLQuantizationType) -> None:
    model = tied_model()
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model, quantization=quantization)
    folder = resolve_base(str(file))
    base = load_base(folder)
    # What the file's quantization makes of the weights, computed by the format's own library.
    for _, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            array = np.array(module.weight, np.float32)
            module.weight = mx.array(quants.dequantize(quants.quantize(array, quantization), quantization))
    tokens = mx.array([[1, 2, 3, 4, 5, 6]])
    assert mx.abs(base.model(tokens) - model(tokens)).max().item() < 2e-2
    bits = {GGMLQuantizationType.Q8_0: 8, GGMLQuantizationType.Q4_1: 4, GGMLQuantizationType.F32: 16}[quantization]
    metadata = read_metadata(folder)
    assert metadata.bits_of("model.layers.1.mlp.down_proj") == bits
    assert metadata.bits_of("model.embed_tokens") == bits
    assert metadata.bits_of("model.norm") is None
    assert base.tokenizer.encode("ab1") == [63, 1]
    assert resolve_base(str(file)) == folder


def test_a_truncated_gguf_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tied_model(), quantization=GGMLQuantizationType.Q8_0)
    data = file.read_bytes()
    for length in (10, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(BaseModelError, match=r"tiny\.gguf"):
            resolve_base(str(file))
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_an_unknown_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tied_model(), quantization=GGMLQuantizationType.Q8_0, pre="martian")
    with pytest.raises(BaseModelError, match="martian"):
        resolve_base(str(file))


def save_folder(folder: Path, *, quantize: bool) -> Path:
    model = tiny_model()
    config = {"model_type": "llama", **{k: v for k, v in vars(model.args).items() if v is not None}}
    if quantize:
        eight = "model.layers.0.self_attn.q_proj"
        nn.quantize(
            model,
            group_size=32,
            bits=4,
            class_predicate=lambda p, m: (
                ({"group_size": 32, "bits": 8} if p == eight else True) if hasattr(m, "to_quantized") else False
            ),
        )
        config["quantization"] = {"group_size": 32, "bits": 4, eight: {"group_size": 32, "bits": 8}}
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer()._tokenizer.save_pretrained(str(folder))
    return folder


def test_an_mlx_folder_without_metadata_tells_its_bits_all_the_same(tmp_path: Path) -> None:
    base = load_base(resolve_base(str(save_folder(tmp_path / "m", quantize=True))))
    assert base.metadata.modules["model.layers.0.self_attn.q_proj"] == ModuleBits(8, 32, "affine")
    assert base.metadata.bits_of("model.layers.0.self_attn.k_proj") == 4
    assert 4 < base.bits_per_weight < 10
    assert base.max_context == 512


def test_dense_compute_equals_the_quantized_kernels(tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    folder = save_folder(tmp_path / "m", quantize=True)
    base = load_base(folder)
    assert base.profile.dense, "tests run on the CPU"
    stock, _ = load_model(folder)
    tokens = mx.array([[3, 1, 4, 1, 5]])
    assert mx.abs(base.model(tokens) - stock(tokens)).max().item() < 1e-3


@pytest.mark.parametrize(
    "damage", ["no config", "bad config", "no weights", "truncated weights", "no tokenizer", "alien"]
)
def test_a_damaged_folder_is_refused_with_its_file(tmp_path: Path, damage: str) -> None:
    folder = save_folder(tmp_path / "m", quantize=False)
    weights = folder / "model.safetensors"
    named = "config.json"
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "bad config":
        (folder / "config.json").write_text("{")
    elif damage == "no weights":
        weights.unlink()
        named = "model*.safetensors"
    elif damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
        named = "model.safetensors"
    elif damage == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
        named = "tokenizer.json"
    else:
        (folder / "config.json").write_text('{"model_type": "martian"}')
        named = "martian"
    with pytest.raises(BaseModelError) as caught:
        load_base(resolve_base(str(folder)))
    assert named in str(caught.value)


@pytest.mark.parametrize("name", ["/does/not/exist", "nothing-of-that-name", "./x.gguf"])
def test_a_base_that_does_not_exist_is_a_clear_error(name: str) -> None:
    with pytest.raises(BaseModelError, match=name.rsplit("/", maxsplit=1)[-1]):
        resolve_base(name)


def test_the_core_imports_without_mlx() -> None:
    code = (
        "import sys, optiq_core.adapters.format, optiq_core.base.metadata, optiq_core.base.loader, optiq_core.errors;"
        "sys.exit('mlx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
