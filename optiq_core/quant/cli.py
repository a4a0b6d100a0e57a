"""``optiq convert`` and ``optiq eval``. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optiq_core.errors import OptiqError

if TYPE_CHECKING:
    from optiq_core.quant.convert import Converted
    from optiq_core.quant.sensitivity import Progress

EXIT_INTERRUPTED = 130
_FOLDER = "optiq_output"
METHODS = ("kl", "gradient", "static")
ALLOCATORS = ("greedy", "exact")
PROTECTED = ("embeddings", "lm_head", "first", "last")


@click.command(
    epilog="\b\nExamples:\n"
    "  optiq convert embedded --target-bpw 5 --candidate-bits 4,8 --method gradient\n"
    "  optiq convert Qwen/Qwen3.5-9B --target-bpw 4.5 --candidate-bits 4,8 -o ./qwen-4.5\n"
    "  optiq convert ./model.gguf --target-bpw 4 --candidate-bits 3,mxfp4,6 --protect lm_head --protect '*.v_proj'\n\n"
    "Bits per weight are those of the whole file: scales, embeddings and norms count. In groups of 64, 4-bit weights "
    "take 4.5 and 8-bit weights 8.5.\n\n"
    "Measurements are kept in the cache: interrupted with Ctrl-C, the same command goes on from there."
)
@click.argument("model")
@click.option("--target-bpw", type=click.FloatRange(1, 32), required=True, help="Bits per weight of the result.")
@click.option(
    "--candidate-bits", default="4,8", show_default=True, help="What to choose from: 2, 3, 4, 5, 6, 8, mxfp4."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help=f"Folder to write; {_FOLDER}/NAME-BPWbpw if absent."
)
@click.option(
    "--group-size",
    "group_sizes",
    metavar="N[,N]",
    help="Weights that share a scale: 32, 64, 128, or several. If absent 64, and 128 beside it for a tight target.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="kl",
    show_default=True,
    help="kl: quantize one module at a time and measure. gradient: estimate from one backward pass. "
    "static: by rule, for models too large to run here.",
)
@click.option(
    "--calibration", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="UTF-8 text to measure on."
)
@click.option(
    "--calibration-tokens", type=click.IntRange(16), default=1024, show_default=True, help="Tokens of it to use."
)
@click.option(
    "--protect",
    multiple=True,
    metavar="PATTERN",
    default=PROTECTED,
    show_default=True,
    help="Modules to give the best candidate before all others: embeddings, lm_head, first, last, or a glob over "
    "module paths. May be given several times, in place of the default; `none` protects nothing.",
)
@click.option("--allocator", type=click.Choice(ALLOCATORS), default="greedy", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(
    *, model: str, output: Path | None, group_sizes: str | None, calibration: Path | None, calibration_tokens: int,
    protect: tuple[str, ...], overwrite: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Quantize MODEL with more bits where it is sensitive.

    MODEL is `embedded`, a folder in Hugging Face or mlx-lm format, a GGUF file, or a hub id. The result loads in
    Optiq and in mlx-lm.
    """
    groups = _groups(group_sizes)
    output = output or Path(_FOLDER) / f"{_short_name(model)}-{options['target_bpw']:g}bpw"
    if output.exists() and not overwrite:
        raise click.UsageError(f"{output} exists; --overwrite replaces it, -o names another folder")
    began = time.monotonic()
    try:
        from optiq_core.base import resolve_base, setup_device

        setup_device()
        folder = resolve_base(model, progress=_say)
        from optiq_core.quant.calibration import read_tokens
        from optiq_core.quant.convert import convert as run
        from optiq_core.quant.plan import PlanSettings
        from optiq_core.quant.source import load_source

        static = options["method"] == "static"
        settings = PlanSettings(group_sizes=groups, protect=tuple(p for p in protect if p != "none"), **options)
        source = load_source(folder, run=not static)
        text = None if static else read_tokens(source.tokenizer, calibration, most=calibration_tokens)
        for note in source.notes:
            _say(note)
        with progress_bar("measuring") as progress:
            done = run(source, settings, output, name=model, text=text, overwrite=overwrite, progress=progress)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        _say("interrupted; what was measured is kept, the same command goes on from there")
        raise SystemExit(EXIT_INTERRUPTED) from None
    for note in done.plan.notes:
        _say(note)
    _print(done, options, time.monotonic() - began, as_json)


def _print(done: Converted, options: dict[str, Any], seconds: float, as_json: bool) -> None:
    chosen = done.plan.options
    rows: dict[str, dict[str, int]] = {}
    for target in done.plan.targets:
        row = rows.setdefault(chosen[target.path].label, {"modules": 0, "weights": 0})
        row["modules"] += 1
        row["weights"] += target.size
    if as_json:
        result = {
            "path": str(done.path),
            "target_bpw": options["target_bpw"],
            "achieved_bpw": done.bits_per_weight,
            "bytes": done.bytes,
            "method": options["method"],
            "allocator": options["allocator"],
            "kl_of_modules": None if options["method"] == "static" else done.plan.allocation.kl,
            "options": dict(sorted(rows.items())),
            "unprotected": list(done.plan.allocation.unprotected),
            "notes": list(done.notes),
            "seconds": round(seconds, 1),
        }
        click.echo(json.dumps(result, indent=2))
        return
    for label, row in sorted(rows.items()):
        share = row["weights"] / done.plan.parameters
        click.echo(f"{label:>6}: {row['modules']:4} modules, {share:6.1%} of the weights", err=True)
    _say(f"{done.bits_per_weight:.3f} bits per weight, {done.bytes / 1e6:.1f} MB, {seconds:.0f} s")
    click.echo(done.path)


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A bar on stderr with the time left, on a terminal only; yields the function to report shares of the work to."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        # The estimate of the time left looks back over more than a few slow measurements.
        speed_estimate_period=300,
    )
    task = bar.add_task(what, total=1.0)

    def report(share: float, detail: str) -> None:
        bar.update(task, completed=share, description=f"{what} {detail}")

    with bar:
        yield report


def _groups(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--group-size {text}: expected 32, 64, 128, or several separated by commas") from None


def _short_name(model: str) -> str:
    return Path(model.rstrip("/")).name.removesuffix(".gguf").lower()


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.command(
    name="eval",
    epilog="\b\nExamples:\n"
    "  optiq eval embedded\n"
    "  optiq eval ./qwen-4.5 --reference Qwen/Qwen3.5-9B --text ./book.txt\n"
    "  optiq eval embedded --adapter ./my-adapter --tasks ./questions.jsonl --json\n\n"
    "A line of TASKS has `prompt` and `answer`, or `messages` that end with the answer (both are asked as a chat), or "
    "`text` and the `answer` that continues it.",
)
@click.argument("model")
@click.option(
    "--adapter", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Adapter folder to score with."
)
@click.option(
    "--text", "text_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="UTF-8 text; one of 6.6 kB that calibration does not use if absent.",
)  # fmt: skip
@click.option("--reference", metavar="MODEL", help="Also measure the KL divergence from this model.")
@click.option(
    "--tasks", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSONL of questions and answers."
)
@click.option("--max-tokens", type=click.IntRange(1), default=32, show_default=True, help="Of an answer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    *, model: str, adapter: Path | None, text_file: Path | None, reference: str | None, tasks: Path | None,
    max_tokens: int, as_json: bool,
) -> None:  # fmt: skip
    """Score MODEL: perplexity on a text, KL to a reference, exact-match accuracy on questions."""
    try:
        result = _evaluate(
            model=model, adapter=adapter, text_file=text_file, reference=reference, tasks=tasks, max_tokens=max_tokens
        )
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        click.echo(f"{name:<16} {value:.5g}" if isinstance(value, float) else f"{name:<16} {value}")


def _evaluate(
    *, model: str, adapter: Path | None, text_file: Path | None, reference: str | None, tasks: Path | None,
    max_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    from optiq_core.base import load_base, resolve_base, setup_device

    profile = setup_device()
    base = load_base(resolve_base(model, progress=_say), profile=profile)
    other = load_base(resolve_base(reference, progress=_say), profile=profile).model if reference else None
    from optiq_core.adapters.mount import AdapterActivation, mount_adapter_on_model
    from optiq_core.quant.calibration import EVALUATION, read_tokens
    from optiq_core.quant.evaluate import read_questions, score_questions, score_text

    questions = read_questions(tasks) if tasks else []
    text = read_tokens(base.tokenizer, text_file or EVALUATION)
    name = "adapter" if adapter else None
    if adapter:
        mount_adapter_on_model(base.model, "adapter", adapter)
    with AdapterActivation(name, base.model), progress_bar("scoring") as progress:
        score = score_text(base.model, text, other, progress=progress)
        right = score_questions(base.model, base.tokenizer, questions, max_tokens=max_tokens) if questions else []
    result: dict[str, Any] = {
        "model": model,
        "adapter": str(adapter) if adapter else None,
        "bits_per_weight": base.bits_per_weight,
        "text": text.name,
        "tokens": score.tokens,
        "perplexity": score.perplexity,
    }
    if score.kl is not None:
        result |= {"reference": reference, "kl": score.kl}
    if questions:
        result |= {"questions": len(questions), "correct": sum(right), "accuracy": sum(right) / len(questions)}
    return result
