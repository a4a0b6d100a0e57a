"""Command line options of training, shared by training here and training in the daemon; also from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from optiq_core.train.config import TrainConfig
from optiq_core.train.schemes import COMPUTE_DTYPES, INITS, METHODS, OBJECTIVES, OPTIMIZERS, RANK_SCALINGS, SCHEDULES

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Setting:
    """A field of TrainConfig as an option."""

    field: str
    help: str
    choices: tuple[str, ...] = ()
    flag: str = ""
    off: str = ""


_SETTINGS = (
    _Setting("objective", "dpo and orpo take lines with prompt, chosen and rejected.", OBJECTIVES),
    _Setting("beta", "DPO's inverse temperature; ORPO's weight of the odds ratio."),
    _Setting("rank", "Base rank."),
    _Setting("scale", "Factor on the low-rank product."),
    _Setting("method", "dora also learns row norms; qalora merges without loss into group biases.", METHODS),
    _Setting("init", "loftq: begin with what quantizing took away; a float base with --load-in.", INITS),
    _Setting("qat_bits", "Train through the merge: weights rounded as in the base, floats to so many bits."),
    _Setting("rslora", "Factor falls with the root of a module's rank; --scale is that of --rank."),
    _Setting("loraplus_ratio", "LoRA+: learning rate of B over that of A; 16 is usual, 0 is off."),
    _Setting("dropout", "Probability with which an input of the low-rank path is zeroed."),
    _Setting("target_modules", "Last path components, with commas; all-linear is every one in the blocks."),
    _Setting("num_layers", "Blocks from the last, -1 for all."),
    _Setting("iters", "Optimizer steps."),
    _Setting("batch_size", "Rows a step: examples, or with --pack-length rows of examples."),
    _Setting("micro_batch_size", "Rows held at a time; the batch's gradient is their sum, exactly. 0: all."),
    _Setting("pack_length", "Tokens of a row that several examples share; 0: one example a row."),
    _Setting("learning_rate", "Of the optimizer, after warmup."),
    _Setting("optimizer", "Which optimizer of MLX.", OPTIMIZERS),
    _Setting("weight_decay", "For every optimizer but adam."),
    _Setting("lr_schedule", "From learning-rate to lr-end over the steps after warmup.", SCHEDULES),
    _Setting("lr_end", "Learning rate of the last step, with a schedule."),
    _Setting("warmup_steps", "Steps over which the learning rate rises from 0."),
    _Setting("clip_norm", "Largest norm of a step's gradient, 0 for any."),
    _Setting("max_seq_length", "Tokens; longer examples are cut."),
    _Setting("retokenize", "Do not take the tokens of an earlier run on the same data."),
    _Setting("mask_prompt", "Train on answers only; on where the data has a prompt.", off="--no-mask-prompt"),
    _Setting("seed", "Of data order and initialisation."),
    _Setting("steps_per_report", "Steps between reports."),
    _Setting("steps_per_eval", "Steps between validations."),
    _Setting("steps_per_checkpoint", "Steps between checkpoints."),
    _Setting("patience", "Stop after so many validations without a lower loss, 0 for never; keeps the best."),
    _Setting("keep_best", "Write the weights of the lowest validation loss, not the last ones."),
    _Setting("compute_dtype", "Of activations; as the device loads the base if absent.", COMPUTE_DTYPES[1:]),
    _Setting("grad_checkpoint", "Recompute activations: less memory, more time."),
    _Setting("loss_chunk", "Rows of logits to hold at a time, 0 for all."),
)


def train_options(*, remote: bool = False) -> Callable[[F], F]:
    """Add an option for every setting of a run but its data, and --config.

    Args:
        remote: what is not given arrives as zero, empty or None: the daemon's defaults, which the help shows.
    """
    defaults = TrainConfig(data_path="")

    def add(command: F) -> F:
        command = rank_options(config_option(command))
        for setting in reversed(_SETTINGS):
            command = _option(setting, getattr(defaults, setting.field), remote)(command)
        return command

    return add


def _option(setting: _Setting, default: Any, remote: bool) -> Callable[[F], F]:
    flag = setting.flag or "--" + setting.field.replace("_", "-")
    if setting.off:
        return click.option(f"{flag}/{setting.off}", default=None, help=setting.help)
    if isinstance(default, bool):
        return click.option(flag, is_flag=True, help=setting.help)
    if isinstance(default, tuple):
        default = ",".join(default)
    kind = click.Choice(setting.choices) if setting.choices else type(default)
    if remote:
        text = f"{setting.help} [{default}]" if default else setting.help
        if setting.choices:
            # An empty text is none of the choices, but what the wire has for the default.
            return click.option(flag, type=kind, callback=lambda _, __, value: value or "", help=text)
        return click.option(flag, type=kind, default=type(default)(), help=text)
    default = default if default or not setting.choices else None
    return click.option(flag, type=kind, default=default, show_default=bool(default), help=setting.help)


def config_option(command: F) -> F:
    """Add --config: a YAML or TOML file whose keys are the command's options; options given on the line win."""
    option = click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="YAML or TOML file with the same keys: rank, rank_scaling, ...; options given here win.",
    )
    return option(command)


def _read_config(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.yaml.decode
        content = decode(path.read_bytes())
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise click.UsageError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise click.UsageError(f"{path}: must be keys with values, for example rank: 16")
    by_key: dict[str, click.Parameter] = {}
    for parameter in context.command.params:
        if parameter.name and parameter is not option:
            longest = max(parameter.opts, key=len).lstrip("-").replace("-", "_")
            by_key |= {parameter.name: parameter, longest: parameter}
    values: dict[str, Any] = {}
    for key, value in content.items():
        known = by_key.get(str(key).replace("-", "_"))
        if known is None:
            names = ", ".join(sorted({p.name or "" for p in by_key.values()} - {"as_json"}))
            raise click.UsageError(f"{path}: '{key}' is no option of this command; they are {names}")
        if value is None:
            continue
        try:
            values[known.name or ""] = _checked(context, known, _as_words(value))
        except click.BadParameter as error:
            raise click.UsageError(f"{path}: '{key}': {error.message}") from error
    context.default_map = {**(context.default_map or {}), **values}


def _as_words(value: Any) -> Any:
    """A file's value as the command line would give it: lists with commas, mappings as KEY=VALUE."""
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    if isinstance(value, dict):
        return tuple(f"{name}={item}" for name, item in value.items())
    return value


def _checked(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The value, which must be one that the option takes."""
    if isinstance(parameter, click.Option) and parameter.is_flag and not isinstance(value, bool):
        raise click.BadParameter(f"must be true or false, is {value!r}")
    parameter.type_cast_value(context, value)
    return value


def module_names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def rank_options(command: F) -> F:
    """Add --rank-scaling, --rank-pattern and --budget-like; the pattern arrives as a dictionary."""
    for option in (
        click.option(
            "--budget-like",
            default="",
            metavar="SCHEME:RANK",
            help="Keep the scheme's proportions, spend the parameters of another: constant:16.",
        ),
        click.option(
            "--rank-pattern",
            multiple=True,
            metavar="MODULE=RANK",
            callback=_read_pattern,
            help="With --rank-scaling pattern, repeatable: q_proj=4, layers.3.self_attn.v_proj=32.",
        ),
        click.option(
            "--rank-scaling",
            type=click.Choice(RANK_SCALINGS),
            default="by_bits",
            show_default=True,
            help="How ranks are spread; by_bits: modules that the base keeps at 8 bits get twice the rank. "
            "`optiq lora ranks` shows what each gives.",
        ),
    ):
        command = option(command)
    return command


def _read_pattern(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    pattern = {}
    for text in values:
        module, equals, rank = text.rpartition("=")
        if not (module and equals and rank.isascii() and rank.isdigit()):
            raise click.BadParameter(f"{text!r} is not MODULE=RANK, for example q_proj=4", context, option)
        pattern[module] = int(rank)
    return pattern
