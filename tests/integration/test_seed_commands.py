"""The command lines and Python names of the documents that Optiq was asked for, as they are written there.

Every line is parsed by the command that it names. The slow test really runs them, one after another, with a small base
in place of theirs. Their Python names are in `optiq_core`: a top-level `optiq` would be another project's package.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import pytest

from optiq_daemon.cli.main import root
from tests.unit.train_tiny import write_tiny_base, write_tiny_data

from .conftest import Daemon

KV_FOLDER = "optiq_output/kv_cache/qwen35_9b"
BASE = "Qwen/Qwen3.5-9B"
QUANTIZED = "mlx-community/Qwen3.5-9B-OptiQ-4bit"
DATA = "./my_training_data"

CONVERT = f"optiq convert {BASE} --target-bpw 4.5 --candidate-bits 4,8"
KV_CACHE = f"optiq kv-cache {QUANTIZED} --target-bits 4.5 --candidate-bits 4,8 -o {KV_FOLDER}"
SERVE_KV = (
    f"optiq serve --kv-config {KV_FOLDER}/kv_config.json --model {QUANTIZED} --host 127.0.0.1 --port 8080 "
    "--max-tokens 32768 --temp 0.6 --top-p 0.95 --top-k 20"
)
TRAIN = (
    f"optiq lora train {QUANTIZED} --data {DATA} --max-seq-length 1400 --rank 8 --rank-scaling by_bits "
    "--num-layers 16 --iters 1000 -o ./my_adapter"
)
TRAIN_SHORT = f"optiq lora train {QUANTIZED} --data {DATA} --rank 8 --rank-scaling by_bits --iters 1000 -o ./my_adapter"
INFO = "optiq lora info ./my_adapter"
SERVE_ADAPTER = f"optiq serve --model {QUANTIZED} --adapter ./my_adapter"
# "..." stands for the rest of the line there.
SCALINGS = [
    f"optiq lora train {QUANTIZED} --data {DATA} -o ./my_adapter --rank-scaling {scheme}"
    for scheme in ("constant", "by_kl")
]
# load_in_4bits and so on are settings of an application there; here they are one option.
LOAD_IN = [
    f"optiq {line} --load-in {how}"
    for line in (f"lora train {BASE} --data {DATA} -o ./my_adapter", f"serve --model {BASE}")
    for how in ("4bit", "6bit", "8bit", "mxfp4")
]
LINES = (CONVERT, KV_CACHE, SERVE_KV, TRAIN, TRAIN_SHORT, INFO, SERVE_ADAPTER, *SCALINGS, *LOAD_IN)

TURBOQUANT = """
import sys
import mlx.core as mx
from optiq_core.base import setup_device
setup_device()
from mlx_lm import load, stream_generate
from optiq_core.kv.turboquant import (
    TurboQuantKVCache,
    patch_attention
)
model, tok = load(sys.argv[1])

patch_attention()

cache = model.make_cache()
for i, layer in enumerate(model.layers):
    if hasattr(layer, "self_attn"):
        cache[i] = TurboQuantKVCache(
            head_dim=layer.self_attn.head_dim,
            bits=4,
            seed=42+i
        )
replies = [r.token for r in stream_generate(model, tok, prompt="2+2", max_tokens=8, prompt_cache=cache)]
assert cache[0].offset == 3 + len(replies) - (replies[-1] == tok.eos_token_id)
print(len(replies))
"""

MOUNT = """
import sys
from optiq_core.base import setup_device
setup_device()
from mlx_lm import load, generate
from optiq_core.adapters.mount import (
    mount_adapter_on_model, AdapterActivation,
)
model, tok = load(sys.argv[1])
p = "2+2"
mount_adapter_on_model(model, "agent-A", "./adapter_a")
mount_adapter_on_model(model, "agent-B", "./adapter_b")
with AdapterActivation("agent-A"):
    out_a = generate(model, tok, prompt=p, max_tokens=50)
with AdapterActivation("agent-B"):
    out_b = generate(model, tok, prompt=p, max_tokens=50)
print(out_a != out_b)
"""

STOCK = """
import sys
from optiq_core.base import setup_device
setup_device()
from mlx_lm import load, generate

model, tok = load(
    sys.argv[1],
    adapter_path="./my_adapter",
)
print(generate(model, tok, prompt="...", max_tokens=200))
"""


@pytest.mark.parametrize("line", LINES)
def test_every_line_is_taken_by_its_command(line: str) -> None:
    command: click.Command = root
    arguments = shlex.split(line)[1:]
    context = click.Context(root, info_name="optiq")
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(context, arguments)
        context = click.Context(command, info_name=name, parent=context)
    assert command is not None
    # Paths that a command checks at once are another computer's.
    for option in command.params:
        if isinstance(option.type, click.Path):
            option.type.exists = False
    parsed = command.make_context(context.info_name, arguments, parent=context.parent)
    assert not parsed.args


@pytest.mark.slow
def test_every_line_runs_one_after_the_other(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base", quantized=False, hidden=256, dtype=mx.float16)
    write_tiny_data(tmp_path / DATA)
    converted = Path(_optiq(tmp_path, CONVERT, base="./base").strip())
    assert (tmp_path / converted / "optiq_metadata.json").exists()

    _optiq(tmp_path, KV_CACHE, quantized=str(converted))
    config = tmp_path / KV_FOLDER / "kv_config.json"
    entries = json.loads(config.read_text())
    assert entries and all(set(entry) == {"layer_idx", "bits", "group_size"} for entry in entries)

    for line in (*SCALINGS, TRAIN_SHORT, TRAIN):
        _optiq(tmp_path, line.replace("--iters 1000", "--iters 4") + " --overwrite", quantized=str(converted))
    assert "rank" in _optiq(tmp_path, INFO)
    assert _python(tmp_path, STOCK, str(converted)) is not None
    assert int(_python(tmp_path, TURBOQUANT, str(converted))) >= 1
    for name in ("adapter_a", "adapter_b"):
        line = TRAIN_SHORT.replace("--iters 1000", "--iters 20 --learning-rate 0.02 --seed " + str(len(name)))
        seed = f" --seed {ord(name[-1])}"
        _optiq(tmp_path, line.replace("./my_adapter", f"./{name}") + seed, quantized=str(converted))
    assert _python(tmp_path, MOUNT, str(converted)).strip() == "True"
    for how in LOAD_IN[:4]:
        _optiq(tmp_path, how + " --overwrite --iters 2", base="./base")

    for line in (SERVE_KV.replace("8080", str(_free_port())), SERVE_ADAPTER, *LOAD_IN[4:]):
        _serves(tmp_path, line, base="./base", quantized=str(converted))


def _serves(folder: Path, line: str, **models: str) -> None:
    """Start the line's daemon and get an answer from it."""
    arguments = _arguments(line, models)
    assert arguments[0] == "serve"
    paths = [str((folder / part).resolve()) if (folder / part).exists() else part for part in arguments[1:]]
    daemon = Daemon(*paths)
    try:
        with daemon.start() as client:
            assert "".join(client.generate("2+2", raw=True, max_tokens=4, temperature=0.0)) is not None
        assert daemon.stop() == 0, daemon.output()
    finally:
        daemon.remove()


def _optiq(folder: Path, line: str, **models: str) -> str:
    return _run(folder, ["-m", "optiq_daemon", *_arguments(line, models)])


def _python(folder: Path, code: str, *arguments: str) -> str:
    return _run(folder, ["-c", code, *arguments])


def _arguments(line: str, models: dict[str, Any]) -> list[str]:
    theirs = {BASE: models.get("base"), QUANTIZED: models.get("quantized")}
    return [theirs.get(part) or part for part in shlex.split(line)[1:]]


def _run(folder: Path, arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
