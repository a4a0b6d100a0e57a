"""Turns a GGUF file of the Llama family into a folder that stock mlx-lm loads.

Q4_0, Q4_1 and Q8_0 tensors arrive from ``mx.load`` as MLX packed weights with scales and biases (group 32) and keep
their values; other quantizations arrive as float16. llama.cpp permutes the rows of the q and k projections for its
rotary embedding; that is undone here. The tokenizer and the chat template come from the file's metadata.
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec

from ..errors import BaseModelError
from ..files import staged_folder
from .metadata import derive_metadata, write_metadata

_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GROUP_SIZE = 32
# Control tokens of GGUF's token_type array.
_CONTROL = 3
# Pre-tokenizers that split single digits before GPT-2's byte-level pattern.
_DIGIT_PRETOKENIZERS = frozenset({"smollm", "starcoder", "refact", "command-r"})
_BYTE_LEVEL_PRETOKENIZERS = frozenset({"gpt-2", "default"}) | _DIGIT_PRETOKENIZERS


def import_gguf(file: Path, folder: Path) -> None:
    """Write an mlx-lm folder with the content of a GGUF file; nothing is left behind on failure.

    Args:
        file: a GGUF file with architecture ``llama``.
        folder: created; staged beside it, then renamed.

    Raises:
        BaseModelError: the file is truncated, or its architecture or tokenizer is not supported.
    """
    _check_complete(file)
    try:
        loaded: Any = mx.load(str(file), return_metadata=True)
    except RuntimeError as error:
        raise BaseModelError(f"{file}: MLX cannot read it: {error}") from error
    weights, metadata = loaded
    config = _config(file, metadata, weights)
    tensors = {
        name: tensor.astype(mx.float16) if tensor.dtype == mx.float32 else tensor
        for name, tensor in _rename(file, weights, config).items()
    }
    quantization = _quantization(tensors)
    if quantization:
        config["quantization"] = quantization

    # A second process may have made the same folder meanwhile: either copy will do.
    with staged_folder(folder, overwrite=True) as staging:
        mx.save_safetensors(str(staging / "model.safetensors"), tensors, metadata={"format": "mlx"})
        (staging / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        _write_tokenizer(file, metadata, staging)
        source = {"kind": "gguf", "file": file.name, "name": str(metadata.get("general.name", ""))}
        versions = {package: version(package) for package in ("mlx", "mlx-lm")}
        write_metadata(staging, msgspec.structs.replace(derive_metadata(staging, source), versions=versions))


def _check_complete(file: Path) -> None:
    """Refuse a truncated file: MLX maps it into memory and would read past its end."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except (ValueError, IndexError, OverflowError, KeyError) as error:
        raise BaseModelError(f"{file}: not a complete GGUF file: {error}") from error
    size = file.stat().st_size
    if size < end:
        raise BaseModelError(f"{file}: truncated, {size} of {end} bytes")


def _scalar(file: Path, metadata: dict[str, Any], key: str, default: Any = None) -> Any:
    value = metadata.get(key, default)
    if value is None:
        raise BaseModelError(f"{file}: metadata has no {key}")
    return value.item() if isinstance(value, mx.array) else value


def _config(file: Path, metadata: dict[str, Any], weights: dict[str, mx.array]) -> dict[str, Any]:
    architecture = _scalar(file, metadata, "general.architecture")
    if architecture != "llama":
        raise BaseModelError(f"{file}: general.architecture is {architecture!r}; this import reads 'llama'")

    def get(key: str, default: Any = None) -> Any:
        return _scalar(file, metadata, f"llama.{key}", default)

    heads = get("attention.head_count")
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": get("embedding_length"),
        "num_hidden_layers": get("block_count"),
        "intermediate_size": get("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "max_position_embeddings": get("context_length"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in weights,
        "bos_token_id": _scalar(file, metadata, "tokenizer.ggml.bos_token_id", 0),
        "eos_token_id": _scalar(file, metadata, "tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float16",
    }


def _rename(file: Path, weights: dict[str, mx.array], config: dict[str, Any]) -> dict[str, mx.array]:
    out: dict[str, mx.array] = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[0] == "blk" and len(parts) == 4 and parts[2] in _TENSORS:
            target = f"model.layers.{parts[1]}.{_TENSORS[parts[2]]}.{parts[3]}"
            heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(parts[2])
            out[target] = _unpermute(tensor, config[heads]) if heads else tensor
        elif len(parts) == 2 and parts[0] in _TOP:
            out[f"{_TOP[parts[0]]}.{parts[1]}"] = tensor
        elif parts[0] == "rope_freqs":
            raise BaseModelError(f"{file}: tensor {name}: scaled rotary embeddings are not supported")
        else:
            raise BaseModelError(f"{file}: tensor {name} is not part of the llama architecture")
    return out


def _unpermute(tensor: mx.array, heads: int) -> mx.array:
    """Undo llama.cpp's row permutation; rows are [heads, 2, half] there and [heads, half, 2] read back."""
    rows = tensor.shape[0]
    half = rows // heads // 2
    return tensor.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows, -1)


def _quantization(tensors: dict[str, mx.array]) -> dict[str, Any]:
    """Return mlx-lm's `quantization` entry: the commonest bits as the default, the rest per module."""
    bits: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name.endswith(".scales"):
            path = name[: -len(".scales")]
            bits[path] = tensors[f"{path}.weight"].shape[-1] * 32 // (tensor.shape[-1] * _GROUP_SIZE)
    if not bits:
        return {}
    counts = list(bits.values())
    default = max(set(counts), key=counts.count)
    overrides = {p: {"group_size": _GROUP_SIZE, "bits": b} for p, b in bits.items() if b != default}
    return {"group_size": _GROUP_SIZE, "bits": default, **overrides}


def _write_tokenizer(file: Path, metadata: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = _scalar(file, metadata, "tokenizer.ggml.model")
    pre = _scalar(file, metadata, "tokenizer.ggml.pre", "default")
    if model != "gpt2" or pre not in _BYTE_LEVEL_PRETOKENIZERS:
        raise BaseModelError(
            f"{file}: tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; "
            f"this import reads 'gpt2' with one of {', '.join(sorted(_BYTE_LEVEL_PRETOKENIZERS))}"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if pre in _DIGIT_PRETOKENIZERS
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type")
    control = [i for i, kind in enumerate(types.tolist()) if kind == _CONTROL] if types is not None else []
    tokenizer.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i in control])

    def token(key: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        return None if index is None else tokens[int(index.item())]

    context = int(_scalar(file, metadata, "llama.context_length"))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=token("bos"),
        eos_token=token("eos"),
        unk_token=token("unknown"),
        pad_token=token("padding") or token("eos"),
        model_max_length=context if math.isfinite(context) else None,
        clean_up_tokenization_spaces=False,
    )
    if template := metadata.get("tokenizer.chat_template"):
        wrapped.chat_template = template
    wrapped.save_pretrained(str(folder))
