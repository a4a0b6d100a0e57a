"""``optiq plan``: what a training run will take, and what would fit. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from optiq_core.errors import OptiqError, PlanError
from optiq_core.planner.calibration import CalibrationStore, calibration_path
from optiq_core.planner.ceilings import Ceiling, ceiling_of
from optiq_core.train.config import TrainConfig
from optiq_core.train.options import rank_options

if TYPE_CHECKING:
    from optiq_core.planner.plan import Verdict
    from optiq_core.planner.planner import Planner
    from optiq_core.train.data import Example

_MAP_LENGTHS = (32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192)
_BAR = 48


@click.command(
    epilog="\b\nExamples:\n  optiq plan embedded --data ./units\n"
    "  optiq plan embedded --max-seq-length 2048 --limit-gb 4\n"
    "  optiq plan ./my-base --device m3-max-36gb --map\n"
    "  optiq plan embedded --largest length --grad-checkpoint --json"
)
@click.argument("base")
@click.option("--data", "data_path", default="", help="Folder with train.jsonl; its longest batch is planned.")
@click.option("--rank", default=8, show_default=True, help="Base rank.")
@rank_options
@click.option("--target-modules", default="q_proj,v_proj", show_default=True, help="Last path components.")
@click.option("--num-layers", default=16, show_default=True, help="Blocks from the last, -1 for all.")
@click.option("--batch-size", default=4, show_default=True)
@click.option("--micro-batch-size", default=0, show_default=True, help="Rows held at a time, 0 for the batch.")
@click.option("--max-seq-length", default=2048, show_default=True, help="Tokens; longer examples are cut.")
@click.option("--dropout", default=0.0, show_default=True)
@click.option("--grad-checkpoint", is_flag=True, help="Recompute activations: less memory, more time.")
@click.option("--loss-chunk", default=0, show_default=True, help="Rows of logits to hold at a time, 0 for all.")
@click.option("--device", help="Plan for another machine, for example m3-max-36gb; this one if absent.")
@click.option("--limit-gb", type=float, default=0.0, help="Use no more than this.")
@click.option("--map", "as_map", is_flag=True, help="Sequence length against peak and resources.")
@click.option(
    "--largest",
    type=click.Choice(("length", "batch", "rank", "layers")),
    help="Find the largest that fits; the rest stays as given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    *,
    base: str,
    device: str | None,
    limit_gb: float,
    as_map: bool,
    largest: str | None,
    target_modules: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Predict the memory of a training run on BASE, before anything is allocated.

    BASE is a folder, a GGUF file, a hub id or `embedded`; of a folder, config.json is enough. The exit code is 1 where
    the run does not fit.
    """
    targets = tuple(name.strip() for name in target_modules.split(",") if name.strip())
    config = TrainConfig(target_modules=targets, **options)
    for field, message in config.violations():
        if field != "data_path":
            raise click.UsageError(f"{field}: {message}")
    try:
        planner = _planner(base, config, device, int(limit_gb * 1e9))
        if as_map:
            _show_map(planner, config, as_json)
        elif largest:
            _show_largest(planner, config, largest, as_json)
        elif not _show(planner, config, as_json):
            raise SystemExit(1)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error


def _planner(base: str, config: TrainConfig, device: str | None, limit: int) -> Planner:
    from optiq_core.base.device import setup_device

    profile = setup_device()
    import mlx.core as mx

    from optiq_core.base.loader import resolve_base
    from optiq_core.planner.planner import Planner

    folder = Path(base).expanduser()
    if not (folder / "config.json").is_file():
        folder = resolve_base(base, progress=lambda message: click.echo(message, err=True))
    info = mx.device_info() if profile.kind != "cpu" else None
    ceiling = ceiling_of(device or profile.kind, user_bytes=limit, device_info=info)
    calibration = CalibrationStore(calibration_path()).of(ceiling.device)
    return Planner(folder, ceiling, calibration, _examples(folder, config) if config.data_path else ())


def _examples(folder: Path, config: TrainConfig) -> list[Example]:
    from mlx_lm.utils import load_tokenizer

    from optiq_core.train.data import load_data

    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # tokenizers raise whatever their files make them raise
        raise PlanError(f"{folder}: no tokenizer that could count the data's tokens: {error}") from error
    return load_data(config.data_path, tokenizer, config).train.examples


def _show(planner: Planner, config: TrainConfig, as_json: bool) -> bool:
    from optiq_core.planner.advice import advise

    verdict = advise(planner, config)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(verdict), indent=2))
        return verdict.fits
    step = verdict.step
    for name, size in (
        ("base", step.base_bytes),
        ("adapters", step.adapter_bytes),
        ("optimizer", step.optimizer_bytes),
        ("activations", step.activation_bytes),
        ("temporaries", step.temporary_bytes),
        ("peak", step.peak_bytes),
        ("expected", verdict.expected_bytes),
        ("not above", verdict.bound_bytes),
        ("free", verdict.ceiling.free_bytes),
    ):
        click.echo(f"{name:<12} {size / 1e9:>9.3f} GB")
    click.echo(_bar(verdict))
    _say_rest(verdict)
    return verdict.fits


def _say_rest(verdict: Verdict) -> None:
    from optiq_core.planner.plan import notes_of

    step, seen = verdict.step, verdict.calibration
    limit = f" of {verdict.ceiling.resources:,}" if verdict.ceiling.resources else ""
    click.echo(f"resources    {step.live_buffers:,}{limit}, {step.allocations:,} allocations a step")
    said = "backward pass" if step.backward else "forward pass"
    place = step.where or "between the blocks"
    click.echo(f"fullest      {place}, {said}, {step.primitive}")
    click.echo(f"batch        {step.rows} x {step.width} tokens, {step.positions} with loss")
    shift = f" {seen.offset / 1e6:+.0f} MB" if seen.offset else ""
    learned = f"from {seen.observations} runs in {calibration_path()}" if seen.observations else "no runs seen yet"
    click.echo(f"calibration  factor {seen.factor:.3f}{shift}, {learned}; margin {seen.margin:.1%}")
    click.echo(f"ceiling      {verdict.ceiling.device}: {', '.join(verdict.ceiling.notes)}")
    for note in notes_of(verdict):
        click.echo(f"note         {note}")
    click.echo("fits" if verdict.fits else f"does not fit: {'; '.join(verdict.reasons)}")
    for advice in verdict.advice:
        click.echo(f"  {advice.text}")


def _bar(verdict: Verdict) -> str:
    """The parts of the peak against what is free, in one line of text."""
    step = verdict.step
    scale = max(verdict.bound_bytes, verdict.ceiling.free_bytes) or 1
    parts = (
        ("B", step.base_bytes),
        ("P", step.adapter_bytes + step.optimizer_bytes),
        ("a", step.activation_bytes),
        ("t", step.temporary_bytes),
        ("+", verdict.bound_bytes - step.peak_bytes),
    )
    line, total = "", 0
    for mark, size in parts:
        total += max(0, size)
        line += mark * (round(total / scale * _BAR) - len(line))
    end = min(_BAR, round(verdict.ceiling.free_bytes / scale * _BAR))
    line = line.ljust(_BAR, ".")
    return f"[{line[:end]}|{line[end:]}]  B base, P adapters and optimizer, a activations, t temporaries, | free"


def _show_map(planner: Planner, config: TrainConfig, as_json: bool) -> None:
    from optiq_core.planner.plan import judge
    from optiq_core.planner.shape import full_shape

    rows = []
    for tokens in _MAP_LENGTHS:
        step = planner.plan_shape(config, full_shape(config.rows_at_a_time, tokens))
        verdict = judge(step, planner.ceiling, planner.calibration)
        rows.append((tokens, verdict))
        if verdict.bound_bytes > 4 * planner.ceiling.free_bytes:
            break
    if as_json:
        content = [{"tokens": tokens, **msgspec.to_builtins(verdict)} for tokens, verdict in rows]
        click.echo(json.dumps({"ceiling": msgspec.to_builtins(planner.ceiling), "map": content}, indent=2))
        return
    _say_ceiling(planner.ceiling)
    click.echo(f"{'tokens':>7}  {'peak GB':>9}  {'not above':>9}  {'resources':>10}  {'allocations':>12}")
    for tokens, verdict in rows:
        step = verdict.step
        click.echo(
            f"{tokens:>7}  {step.peak_bytes / 1e9:>9.2f}  {verdict.bound_bytes / 1e9:>9.2f}  {step.live_buffers:>10,}  "
            f"{step.allocations:>12,}  {'fits' if verdict.fits else 'does not fit'}"
        )


def _say_ceiling(ceiling: Ceiling) -> None:
    resources = f", {ceiling.resources:,} resources" if ceiling.resources else ""
    click.echo(f"{ceiling.device}: {ceiling.free_bytes / 1e9:.2f} GB free{resources} ({', '.join(ceiling.notes)})")


def _show_largest(planner: Planner, config: TrainConfig, what: str, as_json: bool) -> None:
    found = {
        "length": planner.longest,
        "batch": planner.largest_batch,
        "rank": planner.largest_rank,
        "layers": planner.most_layers,
    }[what](config)
    names = {"length": "max_seq_length", "batch": "batch_size", "rank": "rank", "layers": "num_layers"}
    if as_json:
        click.echo(json.dumps({names[what]: found, "free_bytes": planner.ceiling.free_bytes}))
    elif found:
        click.echo(f"{names[what]} {found}")
    else:
        click.echo("nothing fits: not even the smallest")
