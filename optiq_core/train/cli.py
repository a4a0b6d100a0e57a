"""``optiq lora``: train an adapter in this process, and look at one. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click

from optiq_core.base.load_in import LOAD_IN, LoadIn
from optiq_core.errors import OptiqError, TrainingError
from optiq_core.train.config import TrainConfig
from optiq_core.train.metrics import MetricsFile, check_plot, plot_losses
from optiq_core.train.options import module_names, rank_options, train_options

if TYPE_CHECKING:
    from optiq_core.train.events import Event
    from optiq_core.train.ranks import Allocation
    from optiq_core.train.trainer import Signal, TrainResult

EXIT_STOPPED = 3


@click.group(
    epilog="\b\nExamples:\n  optiq lora train embedded --data ./units -o ./units-adapter\n"
    "  optiq lora ranks embedded --rank-scaling linear\n  optiq lora info ./units-adapter"
)
def lora() -> None:
    """Train LoRA adapters and inspect them."""


@lora.command(
    epilog="\b\nExamples:\n  optiq lora train embedded --data ./units -o ./units-adapter\n"
    "  optiq lora train ./my-base --data ./tone -o ./tone-adapter --rank 16 --rank-scaling constant --json\n"
    "  optiq lora train embedded --config run.yaml --data ./units -o ./units-adapter --plot loss.png\n"
    "  mlx.launch -n 2 optiq lora train embedded --data ./units -o ./units-adapter     # data parallel\n"
    "  optiq lora train Qwen/Qwen3-1.7B --load-in 4bit --data ./tone -o ./tone-adapter     # QLoRA"
)
@click.argument("base")
@click.option("--data", "data_path", required=True, help="Folder with train.jsonl, a file, or a hub id.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Adapter folder to write.")
@train_options()
@click.option(
    "--load-in",
    type=click.Choice(LOAD_IN),
    help="QLoRA: quantize an unquantized base at load, in groups of 128 (mxfp4: 32).",
)
@click.option("--metrics", type=click.Path(path_type=Path), help="JSON lines to append every report to.")
@click.option("--plot", type=click.Path(path_type=Path), help="Picture of the loss curves: loss.png.")
@click.option("--overwrite", is_flag=True, help="Replace the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(
    *,
    base: str,
    output: Path,
    target_modules: str,
    load_in: LoadIn | None,
    metrics: Path | None,
    plot: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train an adapter on BASE: a folder, a GGUF file, a hub id, or `embedded`.

    Interrupted with Ctrl-C it saves a checkpoint beside the output folder; the same command goes on from there.
    """
    given = {name: value for name, value in options.items() if value is not None}
    config = TrainConfig(target_modules=module_names(target_modules), **given)
    if output.exists() and not overwrite:
        raise click.UsageError(f"{output} exists; --overwrite replaces it")
    checkpoint = output.parent / f"{output.name}.checkpoint"
    try:
        config.validate()
        if plot:
            check_plot(plot)
        log = MetricsFile(metrics or checkpoint / "metrics.jsonl")
        result = _train(base, config, output, checkpoint, log, load_in=load_in, overwrite=overwrite)
        if plot and result.first and result.outcome == "succeeded":
            plot_losses(log.read(), plot)
    except TrainingError as error:
        raise (click.UsageError(str(error)) if error.field else click.ClickException(str(error))) from error
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
    if not result.first:
        return
    if result.outcome == "stopped":
        click.echo(f"stopped after step {result.step}; the same command goes on from there", err=True)
        raise SystemExit(EXIT_STOPPED)
    shutil.rmtree(checkpoint, ignore_errors=True)
    if as_json:
        content = {"adapter_path": str(output), "steps": result.step, "valid_loss": result.valid_loss}
        click.echo(json.dumps(content))
    else:
        click.echo(output)


def _train(
    base: str,
    config: TrainConfig,
    output: Path,
    checkpoint: Path,
    log: MetricsFile,
    *,
    load_in: LoadIn | None,
    overwrite: bool,
) -> TrainResult:
    from optiq_core.train.data import check_data

    check_data(config.data_path)
    from optiq_core.base.device import setup_device

    profile = setup_device()
    from optiq_core.base.loader import load_base, resolve_base
    from optiq_core.base.paths import cache_path
    from optiq_core.train.data import load_data
    from optiq_core.train.trainer import train

    folder = resolve_base(base, progress=lambda message: click.echo(message, err=True))
    loaded = load_base(folder, profile=profile, load_in=load_in)
    for note in loaded.profile.notes[len(profile.notes) :]:
        click.echo(note, err=True)
    click.echo(f"{folder.name} on {profile.name}, {profile.compute}", err=True)
    interrupted: list[int] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.append(number)

    def control() -> Signal:
        return "stop" if interrupted else "go"

    def on_event(event: Event) -> None:
        log.add(event)
        narrator.show(event)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        with _Narrator(config.iters) as narrator:
            return train(
                loaded,
                config,
                data=load_data(config.data_path, loaded.tokenizer, config, cache_dir=cache_path() / "tokens"),
                out_dir=output,
                checkpoint_dir=checkpoint,
                on_event=on_event,
                control=control,
                overwrite=overwrite,
            )
    finally:
        signal.signal(signal.SIGINT, before)


class _Narrator:
    """Shows events on stderr: a line each, and a progress bar on a terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total)

    def __enter__(self) -> _Narrator:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        from optiq_core.train.events import Progress, Started, Warned

        if isinstance(event, Started):
            ranks = ", ".join(f"rank {rank}: {count} modules" for rank, count in event.ranks.items())
            self._say(f"{event.trainable_parameters:,} trainable parameters ({ranks})")
            if event.step:
                self._say(f"going on from step {event.step}")
            self._bar.update(self._task, completed=event.step)
        elif isinstance(event, Progress):
            valid = f" · valid {event.valid_loss:.4f}" if event.valid_loss is not None else ""
            self._say(
                f"step {event.step}/{event.total_steps} · loss {event.train_loss:.4f}{valid}"
                f" · {event.tokens_per_second:.0f} tokens/s · peak {event.peak_memory_bytes / 1e9:.2f} GB"
            )
            self._bar.update(self._task, completed=event.step)
        elif isinstance(event, Warned):
            self._say(f"warning: {event.message}")

    def _say(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)


@lora.command(epilog="\b\nExamples:\n  optiq lora info ./units-adapter\n  optiq lora info ./units-adapter --full")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--full", is_flag=True, help="Also digests, every setting, versions, ranks by module.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def info(path: Path, full: bool, as_json: bool) -> None:
    """Show what the adapter in PATH is: its base, its ranks, and how it was trained."""
    from optiq_core.train.describe import describe

    try:
        description = describe(path)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(description.as_dict(), indent=2))
    else:
        click.echo(description.as_text(full=full))


@lora.command(
    epilog="\b\nExamples:\n  optiq lora ranks embedded --rank 8 --rank-scaling by_bits\n"
    "  optiq lora ranks embedded --rank-scaling linear --budget-like constant:16 --json"
)
@click.argument("base")
@click.option("--rank", default=8, show_default=True, help="Base rank.")
@rank_options
@click.option("--target-modules", default="q_proj,v_proj", show_default=True, help="Last path components.")
@click.option("--num-layers", default=16, show_default=True, help="Blocks from the last, -1 for all.")
@click.option("--data", "data_path", default="", help="Folder with train.jsonl; `gradient` probes on it.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def ranks(base: str, target_modules: str, as_json: bool, **options: Any) -> None:
    """Show which rank each module of BASE would get, before anything is trained."""
    given = {name: value for name, value in options.items() if value is not None}
    config = TrainConfig(target_modules=module_names(target_modules), **given)
    if config.rank_scaling == "gradient" and not config.data_path:
        raise click.UsageError("--rank-scaling gradient probes the base on training data; give it with --data")
    try:
        for field, message in config.violations():
            if field != "data_path":
                raise click.UsageError(f"{field}: {message}")
        allocation = _allocate(base, config)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(allocation.as_dict(), indent=2) if as_json else allocation.as_text())


def _allocate(base: str, config: TrainConfig) -> Allocation:
    from optiq_core.base.device import setup_device

    profile = setup_device()
    from optiq_core.base.loader import load_base, resolve_base
    from optiq_core.train.data import load_data
    from optiq_core.train.loss import loss_for
    from optiq_core.train.ranks import Allocation
    from optiq_core.train.targets import rank_targets, ranks_of

    loaded = load_base(resolve_base(base, progress=lambda message: click.echo(message, err=True)), profile=profile)
    targets = rank_targets(loaded.model, loaded.metadata, config)
    data = load_data(config.data_path, loaded.tokenizer, config) if config.data_path else None
    return Allocation(tuple(targets), ranks_of(loaded.model, targets, config, data=data, loss=loss_for(loaded.model)))


@lora.command(epilog="\b\nExamples:\n  optiq lora export ./units-adapter --format peft -o ./units-peft")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(["mlx-lm", "peft"]), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(path: Path, form: Literal["mlx-lm", "peft"], output: Path, overwrite: bool, as_json: bool) -> None:
    """Write the adapter in PATH in another program's format, with the same function."""
    from optiq_core.adapters.export import export_adapter

    if output.exists() and not overwrite:
        raise click.UsageError(f"{output} exists; --overwrite replaces it")
    try:
        export_adapter(path, output, form, overwrite=overwrite)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps({"path": str(output), "format": form}) if as_json else output)
