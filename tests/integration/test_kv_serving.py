"""A daemon with compressed KV caches, started with the seed document's line."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optiq_client import Client

from .conftest import Daemon

PROMPTS = ("12345", "9", "abcabcabcabcabcabcabcabcabcabcabc", "QRS")


def test_the_seed_document_s_line_serves_mixed_batches(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "kv_config.json"
    # The tiny base has heads of 16 channels, fewer than a group of an affine cache.
    file.write_text(json.dumps([{"layer_idx": 1, "bits": 4, "group_size": 64, "method": "turboquant"}]))
    daemon = Daemon(
        "--kv-config", str(file), "--model", str(tiny_folder), "--host", "127.0.0.1", "--port", str(_free_port()),
        "--max-tokens", "20", "--temp", "0.6", "--top-p", "0.95", "--top-k", "20",
    )  # fmt: skip
    try:
        with daemon.start() as client, ThreadPoolExecutor(len(PROMPTS)) as pool:
            engine = client.runtime.status().engine
            assert engine.kv_cache == "turboquant:4 in 1 layers"
            # Two layers of two KV heads of 16 channels: one float32, one of 4-bit codes with a float16 norm.
            assert engine.kv_bytes_per_token == 2 * 2 * 16 * 4 + 2 * 2 * (8 + 2)
            alone = [_greedy(client, prompt) for prompt in PROMPTS]
            assert all(alone)
            assert list(pool.map(lambda prompt: _greedy(client, prompt), PROMPTS)) == alone
            # The server's temperature holds where a request says nothing: not every draw is the same.
            drawn = {"".join(client.generate("12345", raw=True, seed=seed)) for seed in range(8)}
            assert len(drawn) > 1
        assert daemon.stop() == 0, daemon.output()
    finally:
        daemon.remove()


def _greedy(client: Client, prompt: str) -> str:
    return "".join(client.generate(prompt, raw=True, temperature=0.0))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
