"""kv_config.json, `--kv`, and which layers of a model get which cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models import deepseek_v3, gemma3_text, qwen3_next
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from optiq_core.engine.engine import Engine
from optiq_core.errors import KVConfigError
from optiq_core.kv.cache import CompressedKVCache
from optiq_core.kv.config import (
    AFFINE_BITS,
    METHODS,
    SCHEMA_FILE,
    TURBOQUANT_BITS,
    LayerCache,
    UniformCache,
    parse_uniform,
    read_kv_config,
    write_kv_config,
)
from optiq_core.kv.factory import plan_caches
from optiq_daemon.config import ConfigError, load_configuration

from .test_engine import Run, request
from .tiny import tiny_base, tiny_model

SEED_FILE = '[{"layer_idx":3,"bits":8,"group_size":64}, {"layer_idx":7,"bits":4,"group_size":64}]'


def test_the_seed_document_s_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "kv_config.json"
    file.write_text(SEED_FILE)
    assert read_kv_config(file) == (LayerCache(3, 8), LayerCache(7, 4))
    write_kv_config(file, read_kv_config(file))
    assert json.loads(file.read_text()) == json.loads(SEED_FILE)


layer_caches = st.one_of(
    st.builds(
        LayerCache,
        st.integers(0, 200),
        st.sampled_from(AFFINE_BITS),
        st.sampled_from((32, 64, 128)),
        st.sampled_from(("affine", "rotated")),
    ),
    st.builds(LayerCache, st.integers(0, 200), st.sampled_from(TURBOQUANT_BITS), st.just(64), st.just("turboquant")),
)


@given(st.lists(layer_caches, unique_by=lambda layer: layer.layer_idx))
def test_what_is_written_is_read_back(tmp_path_factory: Any, layers: list[LayerCache]) -> None:
    file = tmp_path_factory.mktemp("kv") / "kv_config.json"
    write_kv_config(file, tuple(layers))
    assert read_kv_config(file) == tuple(sorted(layers, key=lambda layer: layer.layer_idx))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", r"Expected `array`"),
        ('[{"layer_idx": 1}]', r"missing required field `bits` - at `\$\[0\]`"),
        ('[{"layer_idx": -1, "bits": 4}]', r"layer_idx"),
        ('[{"layer_idx": 1, "bits": 7}]', r"\$\[0\]\.bits: 7 for affine; expected affine 2, 3, 4, 5, 6, 8"),
        ('[{"layer_idx": 1, "bits": 4, "group_size": 48}]', r"group_size: 48; expected one of"),
        ('[{"layer_idx": 1, "bits": 4}, {"layer_idx": 1, "bits": 8}]', r"layer 1 is there twice"),
        ('[{"layer_idx": 1, "bits": 4, "methods": "rotated"}]', r"unknown field `methods`"),
        ("[", r"truncated"),
    ],
)
def test_a_bad_file_is_refused_with_what_would_be_right(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "kv_config.json"
    file.write_text(text)
    with pytest.raises(KVConfigError, match=said) as caught:
        read_kv_config(file)
    assert str(file) in str(caught.value)


def test_uniform_caches_are_read_from_text() -> None:
    assert parse_uniform("float") is None
    assert parse_uniform("turboquant:3.5") == UniformCache("turboquant", 3.5)
    assert str(parse_uniform("affine:8")) == "affine:8"
    for text in ("turboquant", "rotated:7", "affine:", "int8", "turboquant:9", ""):
        with pytest.raises(KVConfigError, match="for example turboquant:4"):
            parse_uniform(text)


def test_the_schema_names_what_the_reader_takes() -> None:
    item = json.loads(SCHEMA_FILE.read_text())["items"]
    fields = msgspec.structs.fields(LayerCache)
    assert set(item["properties"]) == {field.name for field in fields}
    assert item["required"] == [field.name for field in fields if field.required]
    assert tuple(item["properties"]["method"]["enum"]) == METHODS
    assert tuple(item["then"]["properties"]["bits"]["enum"]) == TURBOQUANT_BITS
    assert tuple(item["else"]["properties"]["bits"]["enum"]) == AFFINE_BITS


def test_layers_that_the_file_does_not_name_stay_float() -> None:
    model = tiny_model(layers=3, hidden=256)
    plan = plan_caches(model, [LayerCache(1, 4, 64, "turboquant")])
    first, second, third = plan(model)
    assert type(first) is type(third) is KVCache
    assert isinstance(second, CompressedKVCache) and second.codec.spec == "turboquant:4:64:43"
    # 2 KV heads of 64 channels, keys and values: float32, and codes with a norm.
    assert plan.float_bytes_per_token == 3 * 4 * 64 * 4
    assert plan.bytes_per_token == 2 * 4 * 64 * 4 + 4 * (32 + 2)
    assert plan.name == "turboquant:4 in 1 layers"


def test_float_is_mlx_lm_s_own_cache() -> None:
    model = tiny_model()
    plan = plan_caches(model, None)
    assert [type(cache) for cache in plan(model)] == [KVCache, KVCache]
    assert plan.bytes_per_token == plan.float_bytes_per_token


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (LayerCache(2, 4), "layer_idx 2: the model has 2 layers, 0 to 1"),
        (LayerCache(0, 4, 128), "layer_idx 0: affine caches take"),
    ],
)
def test_entries_that_do_not_fit_the_model_are_refused(entry: LayerCache, said: str) -> None:
    with pytest.raises(KVConfigError, match=said):
        plan_caches(tiny_model(hidden=256), [entry])


def test_no_layer_that_fits_is_an_error() -> None:
    with pytest.raises(KVConfigError, match="no layer of this model can be compressed"):
        plan_caches(tiny_model(hidden=80), UniformCache("turboquant", 4))


def test_sliding_windows_keep_their_own_cache() -> None:
    model = sliding_model()
    own = make_prompt_cache(model)
    sliding = [i for i, cache in enumerate(own) if isinstance(cache, RotatingKVCache)]
    plan = plan_caches(model, UniformCache("turboquant", 4))
    caches = plan(model)
    assert sliding and len(sliding) < len(caches)
    for i, cache in enumerate(caches):
        assert isinstance(cache, RotatingKVCache if i in sliding else CompressedKVCache)
    assert "keep their own cache" in plan.notes[0]
    with pytest.raises(KVConfigError, match="not a plain one"):
        plan_caches(model, [LayerCache(sliding[0], 4)])
    assert_close_to_float(model, UniformCache("turboquant", 8))


def test_recurrent_layers_keep_their_state() -> None:
    model = hybrid_model()
    caches = plan_caches(model, UniformCache("rotated", 8))(model)
    kept = [type(cache).__name__ for cache in caches]
    assert kept.count("CompressedKVCache") == 1 and kept.count("ArraysCache") == 3
    assert_close_to_float(model, UniformCache("rotated", 8))


def test_an_attention_that_computes_with_its_keys_is_refused() -> None:
    """DeepSeek's latent attention multiplies cached keys itself."""
    with pytest.raises(KVConfigError, match=r"no layer of this model can be compressed|cannot use compressed"):
        plan_caches(latent_model(), UniformCache("turboquant", 8))


@pytest.mark.parametrize("wanted", ["turboquant:4", "turboquant:3.5", "rotated:4", "affine:8"])
def test_the_engine_serves_mixed_batches_from_compressed_caches(wanted: str) -> None:
    base = tiny_base(hidden=256)
    plan = plan_caches(base.model, parse_uniform(wanted))
    engine = Engine(base, max_batch=4, prefill_chunk=16, new_cache=plan)
    engine.start()
    try:
        prompts = {f"p{i}": tuple(range(1, 4 + 11 * i)) for i in range(4)}
        alone = {}
        for name, prompt in prompts.items():
            run = Run(engine, request(name, prompt))
            run.wait()
            alone[name] = run.ids
        together = {name: Run(engine, request(name, prompt)) for name, prompt in prompts.items()}
        finished = [run.wait() for run in together.values()]
        assert max(f.max_rows for f in finished) == 4
        assert {name: run.ids for name, run in together.items()} == alone
    finally:
        engine.close()


def test_daemon_settings_check_the_caches(tmp_path: Path) -> None:
    def settings(**flags: Any) -> Any:
        flags = {"home": str(tmp_path), **flags}
        return load_configuration(flags, environment={}, file=tmp_path / "none.toml").settings

    file = tmp_path / "kv_config.json"
    file.write_text(SEED_FILE)
    assert settings().kv == "float"
    assert settings(kv_config=str(file)).kv_config == str(file)
    with pytest.raises(ConfigError, match="--kv: 'int4' is no KV cache"):
        settings(kv="int4")
    with pytest.raises(ConfigError, match="both say how layers cache"):
        settings(kv="turboquant:4", kv_config=str(file))
    with pytest.raises(KVConfigError, match="cannot be read"):
        settings(kv_config=str(tmp_path / "absent.json"))
    sampled = settings(default_temperature=0.6, default_top_p=0.95, default_top_k=20)
    assert (sampled.default_temperature, sampled.default_top_p, sampled.default_top_k) == (0.6, 0.95, 20)


def assert_close_to_float(model: nn.Module, wanted: UniformCache) -> None:
    tokens = mx.array([[3, 7, 1, 40, 22, 9, 13, 60]])
    found = []
    for plan in (plan_caches(model, None), plan_caches(model, wanted)):
        caches = plan(model)
        steps = [model(tokens[:, :5], cache=caches), *(model(tokens[:, i : i + 1], cache=caches) for i in (5, 6, 7))]
        found.append(mx.concatenate(steps, axis=1))
    assert mx.abs(found[1] - found[0]).max() < 0.1 * mx.abs(found[0]).max()


def sliding_model() -> nn.Module:
    mx.random.seed(0)
    arguments = gemma3_text.ModelArgs(
        model_type="gemma3_text", hidden_size=64, num_hidden_layers=4, intermediate_size=64, num_attention_heads=2,
        head_dim=64, num_key_value_heads=1, vocab_size=64, sliding_window=16, sliding_window_pattern=2,
    )  # fmt: skip
    return evaluated(gemma3_text.Model(arguments))


def hybrid_model() -> nn.Module:
    mx.random.seed(0)
    arguments = qwen3_next.ModelArgs(
        model_type="qwen3_next", hidden_size=64, num_hidden_layers=4, intermediate_size=64, num_attention_heads=2,
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=32, linear_value_head_dim=32,
        linear_conv_kernel_dim=4, num_experts=0, num_experts_per_tok=0, decoder_sparse_step=1,
        shared_expert_intermediate_size=0, mlp_only_layers=[], moe_intermediate_size=32, rms_norm_eps=1e-6,
        vocab_size=64, num_key_value_heads=1, rope_theta=1e4, partial_rotary_factor=0.5, max_position_embeddings=512,
        head_dim=64,
    )  # fmt: skip
    return evaluated(qwen3_next.Model(arguments))


def latent_model() -> nn.Module:
    mx.random.seed(0)
    arguments = deepseek_v3.ModelArgs(
        vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, n_shared_experts=None, n_routed_experts=None, q_lora_rank=None,
        kv_lora_rank=64, qk_rope_head_dim=64, v_head_dim=64, qk_nope_head_dim=64,
    )  # fmt: skip
    return evaluated(deepseek_v3.Model(arguments))


def evaluated(model: nn.Module) -> nn.Module:
    mx.eval(model.parameters())
    model.eval()
    return model
