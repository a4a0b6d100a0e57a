"""TurboQuant: centroids, packing, rotation, and attention against dense attention over the same vectors."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import base as mlx_base
from mlx_lm.models import llama

from optiq_core.kv.attend import attend
from optiq_core.kv.codebook import codebook
from optiq_core.kv.codec import Compressed
from optiq_core.kv.codecs import codec_of
from optiq_core.kv.packing import Lookup, channel_order, pack, packed_bytes, unpack
from optiq_core.kv.rotation import random_rotation
from optiq_core.kv.turboquant import TurboQuantCodec, TurboQuantKVCache, patch_attention

from .tiny import tiny_model

DIM = 64
ALL_BITS = (1, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8)


def test_one_bit_centroids_are_the_mean_of_half_a_coordinate() -> None:
    for dim in (4, 64, 128):
        # E|x| of a coordinate of a random unit vector, in closed form.
        mean = math.exp(math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)) / math.sqrt(math.pi)
        assert codebook(dim, 1).centroids == pytest.approx([-mean, mean], rel=1e-6)


@pytest.mark.parametrize(
    ("bits", "published"),
    [
        (2, [0.4528, 1.510]),
        (3, [0.2451, 0.7560, 1.344, 2.152]),
        (4, [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]),
    ],
)
def test_centroids_of_a_large_dimension_are_max_s_for_the_gaussian(bits: int, published: list[float]) -> None:
    """J. Max, "Quantizing for minimum distortion", 1960, table I: what the density tends to."""
    dim = 100_000
    assert codebook(dim, bits).centroids[2 ** (bits - 1) :] * math.sqrt(dim) == pytest.approx(published, rel=1e-3)


def test_distortion_is_the_paper_s_and_what_random_vectors_show() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 128))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for bits, published in ((1, 0.36), (2, 0.117), (3, 0.03), (4, 0.009)):
        book = codebook(128, bits)
        quantized = book.centroids[np.searchsorted(book.boundaries, vectors)]
        assert book.distortion == pytest.approx(published, rel=0.15)
        assert np.square(vectors - quantized).sum(axis=1).mean() == pytest.approx(book.distortion, rel=0.02)


@given(st.integers(2, 300), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_centroids_are_centroids(dim: int, bits: int) -> None:
    book = codebook(dim, bits)
    assert len(book.centroids) == 2**bits
    assert np.all(np.diff(book.centroids) > 0) and np.all(np.abs(book.centroids) < 1)
    assert book.centroids == pytest.approx(-book.centroids[::-1])
    assert 0 < book.distortion < 1


def test_codebook_refuses_what_has_no_density() -> None:
    for dim, bits in ((1, 4), (64, 0), (64, 9)):
        with pytest.raises(ValueError, match="dim >= 2 and 1 to 8 bits"):
            codebook(dim, bits)


def test_rotation_is_orthogonal_and_fixed_by_its_seed() -> None:
    rotation = np.array(random_rotation(DIM, 7))
    assert rotation @ rotation.T == pytest.approx(np.eye(DIM), abs=1e-5)
    assert np.array_equal(rotation, np.array(random_rotation(DIM, 7)))
    assert not np.allclose(rotation, np.array(random_rotation(DIM, 8)))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_keeps_every_code_in_the_bytes_that_it_promises(bits: int, dtype: mx.Dtype) -> None:
    codes = mx.array(np.random.default_rng(bits).integers(0, 2**bits, (2, 3, 5, DIM)).astype(np.uint8))
    packed = pack(codes, bits)
    assert packed.shape == (2, 3, 5, packed_bytes(DIM, bits)) and packed.dtype == mx.uint8
    assert mx.array_equal(unpack(packed, DIM, bits), codes)
    centroids = codebook(DIM, bits).centroids
    values = mx.concatenate(Lookup(centroids, bits, dtype)(packed, DIM), axis=-1)
    expected = mx.array(centroids.astype(np.float32)).astype(dtype)[codes][..., mx.array(channel_order(DIM, bits))]
    assert values.dtype == dtype and mx.array_equal(values, expected)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_codes_are_nearest_centroids_and_norms_are_kept(bits: float) -> None:
    codec = TurboQuantCodec(DIM, bits, seed=3)
    x = mx.random.normal((1, 2, 50, DIM), key=mx.random.key(0)) * mx.arange(1, 51)[None, None, :, None]
    parts = codec.encode(x)
    assert sum(part.nbytes for part in parts) == 100 * codec.bytes_per_vector == 100 * (DIM * bits / 8 + 2)
    seen = codec.decode(parts, mx.float32)
    norms = mx.linalg.norm(x, axis=-1)
    assert mx.allclose(mx.linalg.norm(seen, axis=-1), norms, rtol=1e-3)
    # The nearest centroid by plain search, for the same rotation.
    rotated = np.array(x @ random_rotation(DIM, 3).T / norms[..., None])
    split = {2.5: (3, 2), 3.5: (4, 3)}.get(bits, (int(bits), int(bits)))
    nearest = np.concatenate(
        [
            codebook(DIM, part).centroids[np.searchsorted(codebook(DIM, part).boundaries, half)]
            for part, half in zip(split, np.split(rotated, 2, axis=-1), strict=True)
        ],
        axis=-1,
    )
    scale = np.array(parts[-1]).astype(np.float32)
    assert np.array(seen @ random_rotation(DIM, 3).T) == pytest.approx(nearest * scale, abs=1e-3)


def test_a_zero_vector_stays_zero_and_a_huge_one_finite() -> None:
    codec = TurboQuantCodec(DIM, 4, seed=1)
    x = mx.concatenate([mx.zeros((1, 1, 1, DIM)), mx.full((1, 1, 1, DIM), 1e9)], axis=2)
    seen = codec.decode(codec.encode(x), mx.float32)
    assert mx.array_equal(seen[:, :, 0], mx.zeros((1, 1, DIM)))
    assert mx.all(mx.isfinite(seen))


@pytest.mark.parametrize("spec", ["affine:4:64:32", "rotated:4:64:64:5", *(f"turboquant:{b}:64:5" for b in ALL_BITS)])
@pytest.mark.parametrize("masking", ["none", "causal", "boolean", "added", "sinks"])
def test_attention_equals_dense_attention_over_the_decoded_vectors(spec: str, masking: str) -> None:
    codec = codec_of(spec)
    keys, values = (mx.random.normal((2, 2, 700, DIM), key=mx.random.key(k)) for k in (1, 2))
    queries = mx.random.normal((2, 6, 5, DIM), key=mx.random.key(3))
    hidden = mx.random.uniform(shape=(2, 1, 5, 700), key=mx.random.key(4)) < 0.5
    mask: mx.array | str | None = {
        "boolean": hidden,
        "added": mx.where(hidden, 0.0, -5.0),
        "causal": "causal",
        "sinks": "causal",
        "none": None,
    }[masking]
    sinks = mx.arange(6) / 2 if masking == "sinks" else None
    parts = codec.encode(keys), codec.encode(values)
    found = attend(codec, queries, *(Compressed(p, DIM) for p in parts), scale=DIM**-0.5, mask=mask, sinks=sinks)
    dense = (codec.decode(part, mx.float32) for part in parts)
    expected = mx.fast.scaled_dot_product_attention(queries, *dense, scale=DIM**-0.5, mask=mask, sinks=sinks)
    assert mx.allclose(found, expected, atol=2e-5)


def test_more_bits_attend_more_truly() -> None:
    keys, values = (mx.random.normal((1, 2, 300, DIM), key=mx.random.key(k)) for k in (1, 2))
    queries = mx.random.normal((1, 4, 20, DIM), key=mx.random.key(3)) * 2
    exact = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=DIM**-0.5, mask=None)
    errors = []
    for bits in ALL_BITS:
        codec = TurboQuantCodec(DIM, bits, seed=9)
        parts = codec.encode(keys), codec.encode(values)
        seen = (Compressed(part, DIM) for part in parts)
        out = attend(codec, queries, *seen, scale=DIM**-0.5, mask=None, sinks=None)
        errors.append(float(mx.linalg.norm(out - exact) / mx.linalg.norm(exact)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


def test_bits_and_dimensions_that_cannot_be_are_refused() -> None:
    for dim, bits in ((60, 4), (64, 9), (64, 0), (64, 4.5), (72, 3.5)):
        with pytest.raises(ValueError, match=r"TurboQuant bits are|multiple of"):
            TurboQuantCodec(dim, bits, seed=0)
    with pytest.raises(ValueError, match="affine caches take"):
        codec_of("affine:4:64:128")
    with pytest.raises(ValueError, match="is no codec"):
        codec_of("plain:4")


def test_seed_document_s_lines_run_on_a_stock_model() -> None:
    model = tiny_wide_model()
    patch_attention()
    cache = model.make_cache()
    for i, layer in enumerate(model.layers):
        if hasattr(layer, "self_attn"):
            cache[i] = TurboQuantKVCache(head_dim=layer.self_attn.head_dim, bits=8, seed=42 + i)
    tokens = mx.array([[5, 9, 2, 33, 7, 1, 60]])
    expected = model(tokens)
    prefilled = model(tokens[:, :4], cache=cache)
    steps = [model(tokens[:, i : i + 1], cache=cache) for i in range(4, 7)]
    assert mx.allclose(mx.concatenate([prefilled, *steps], axis=1), expected, atol=0.05)
    assert cache[0].offset == cache[0].size() == 7


def test_patching_twice_changes_nothing_and_other_caches_take_mlx_lm_s_way() -> None:
    patch_attention()
    once = llama.scaled_dot_product_attention
    patch_attention()
    assert llama.scaled_dot_product_attention is once is mlx_base.scaled_dot_product_attention
    model = tiny_wide_model()
    tokens = mx.array([[5, 9, 2]])
    assert mx.allclose(model(tokens, cache=model.make_cache()), model(tokens), atol=1e-5)


def test_compressed_keys_cannot_be_computed_with() -> None:
    cache = TurboQuantKVCache(DIM)
    keys, _ = cache.update_and_fetch(mx.ones((1, 2, 3, DIM)), mx.ones((1, 2, 3, DIM)))
    assert keys.shape == (1, 2, 3, DIM)
    with pytest.raises(TypeError):
        _ = mx.ones((1, 2, 3, DIM)) @ keys
    with pytest.raises(TypeError, match="compressed keys"):
        cache.attend(mx.ones((1, 2, 1, DIM)), mx.ones((1, 2, 3, DIM)), keys, scale=1.0)
    with pytest.raises(ValueError, match="heads of 64 channels"):
        cache.update_and_fetch(mx.ones((1, 2, 3, DIM)), mx.ones((1, 2, 3, 32)))


def tiny_wide_model() -> llama.Model:
    """Two blocks with heads of 64 channels, in groups of two."""
    return tiny_model(hidden=256, heads=4)
