"""``optiq kv-cache``. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from optiq_core.errors import OptiqError

from .config import DEFAULT_GROUP_SIZE, FILE_NAME, GROUP_SIZES, METHODS, plain

TABLE_NAME = "kv_sensitivity.json"
EXIT_INTERRUPTED = 130
# Part of the key of kept measurements; changes when caches of the same name lose something else.
MEASURED = "2"


@click.command(
    name="kv-cache",
    epilog="\b\nExamples:\n"
    "  optiq kv-cache embedded --target-bits 4.5 --candidate-bits 4,8 -o ./kv\n"
    "  optiq kv-cache ./my-base --target-bits 3.5 --candidate-bits 2.5,3,4 --method turboquant -o ./kv\n"
    "  optiq serve --kv-config ./kv/kv_config.json\n\n"
    "Bits are those of a cached value, averaged over all layers; scales and norms come on top and are printed, and so "
    "does the window of recent tokens that rotated and turboquant caches keep as they came.\n\n"
    "Measurements are kept in the cache: interrupted with Ctrl-C, the same command goes on from there.",
)
@click.argument("model")
@click.option("--target-bits", type=click.FloatRange(1, 8), required=True, help="Mean bits of a cached value.")
@click.option("--candidate-bits", default="4,8", show_default=True, help="What a layer may get, separated by commas.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True,
    help=f"Folder for {FILE_NAME} and the measured table, {TABLE_NAME}.",
)  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), default="affine", show_default=True, help="Kind of cache.")
@click.option(
    "--group-size", type=click.Choice([str(g) for g in GROUP_SIZES]), default=str(DEFAULT_GROUP_SIZE),
    show_default=True, help="Channels that share a scale, in affine and rotated caches.",
)  # fmt: skip
@click.option(
    "--calibration", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="UTF-8 text to measure on."
)
@click.option(
    "--calibration-tokens", type=click.IntRange(16), default=512, show_default=True, help="Tokens of it to use."
)
@click.option("--context", type=click.IntRange(16), default=512, show_default=True, help="Tokens of one sequence.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def kv_cache(
    *, model: str, candidate_bits: str, output: Path, as_json: bool, group_size: str, **options: Any
) -> None:  # fmt: skip
    """Measure how sensitive each layer's KV cache is, and write which layer keeps it in how many bits.

    MODEL is `embedded`, a folder in mlx-lm's format, a GGUF file, or a hub id. Layers with a sliding window or a
    recurrent state keep their own cache and are not in the file.
    """
    began = time.monotonic()
    try:
        result = _run(model, _bits(candidate_bits), output, group_size=int(group_size), **options)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("interrupted; what was measured is kept, the same command goes on from there", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    result["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for row in result["layers"]:
        kl = "  ".join(f"{bits}: {value:.2e}" for bits, value in row["kl"].items())
        click.echo(f"layer {row['layer_idx']:3}  {row['bits']:>3} bits   KL {kl}", err=True)
    click.echo(
        f"{result['mean_bits']:.2f} bits, {result['bytes_per_token']:.0f} bytes per token "
        f"and {result['window_bytes']:.0f} per row (float: {result['float_bytes_per_token']:.0f} per token), "
        f"KL {result['kl']:.2e}, {result['seconds']:.0f} s",
        err=True,
    )
    click.echo(result["path"])


def _run(
    model: str, candidates: list[float], output: Path, *, target_bits: float, method: Any, group_size: int,
    calibration: Path | None, calibration_tokens: int, context: int,
) -> dict[str, Any]:  # fmt: skip
    from optiq_core.base import load_base, resolve_base, setup_device

    profile = setup_device()
    base = load_base(resolve_base(model, progress=lambda text: click.echo(text, err=True)), profile=profile)
    from optiq_core.quant.calibration import read_tokens
    from optiq_core.quant.cli import progress_bar
    from optiq_core.quant.partial import PartialResults, content_digest

    from .centers import key_centers
    from .config import write_kv_config
    from .factory import head_dims, plan_caches
    from .sensitivity import allocate_layers, cached_kl, float_references, mean_bits, measure_layers

    text = read_tokens(base.tokenizer, calibration, most=calibration_tokens, length=context)
    partial = PartialResults(
        "kv", MEASURED, content_digest(base.path), text.digest, method, str(group_size), profile.compute
    )
    layers = sorted(head_dims(base.model))
    centers = {} if method == "affine" else key_centers(base.model, base.tokenizer)
    with progress_bar("measuring") as progress:
        measured = measure_layers(
            base.model, layers, candidates, text,
            method=method, group_size=group_size, centers=centers, partial=partial, progress=progress,
        )  # fmt: skip
    chosen = allocate_layers(base.model, measured, target_bits, method=method, group_size=group_size)
    plan = plan_caches(base.model, chosen, centers)
    bits = {layer.layer_idx: plain(layer.bits) for layer in chosen}
    result = {
        "model": model,
        "method": method,
        "group_size": group_size,
        "target_bits": target_bits,
        "mean_bits": round(mean_bits(base.model, chosen), 4),
        "bytes_per_token": plan.bytes_per_token,
        "window_bytes": plan.window_bytes,
        "float_bytes_per_token": plan.float_bytes_per_token,
        "kl": cached_kl(base.model, plan, float_references(base.model, text)),
        "text": {"name": text.name, "tokens": text.size, "context": text.tokens.shape[1], "sha256": text.digest},
        "layers": [
            {
                "layer_idx": layer.layer_idx,
                "bits": bits[layer.layer_idx],
                "kl": {f"{plain(b)}": kl for b, kl in layer.kl.items()},
            }
            for layer in measured
        ],
    }
    output.mkdir(parents=True, exist_ok=True)
    write_kv_config(output / FILE_NAME, chosen)
    (output / TABLE_NAME).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return {"path": str(output / FILE_NAME), **result}


def _bits(text: str) -> list[float]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise click.UsageError(f"--candidate-bits {text}: expected numbers separated by commas, such as 4,8") from None
    return found
