"""What a training run is asked to do. No MLX here: the daemon checks requests with this module."""

from __future__ import annotations

import math

import msgspec

from optiq_core.errors import TrainingError
from optiq_core.train.schemes import (
    BUDGET_SCHEMES,
    COMPUTE_DTYPES,
    INITS,
    METHODS,
    OBJECTIVES,
    OPTIMIZERS,
    RANK_SCALINGS,
    SCHEDULES,
    ComputeDtype,
    Init,
    Method,
    Objective,
    Optimizer,
    RankScaling,
    Schedule,
)

# No adapter with a larger rank is served.
MAX_RANK = 256

# (lowest, highest) allowed value of every integer field, both inclusive.
_RANGES: dict[str, tuple[int, int]] = {
    "rank": (1, MAX_RANK),
    "iters": (1, 10_000_000),
    "batch_size": (1, 4096),
    "micro_batch_size": (0, 4096),
    "max_seq_length": (8, 1_048_576),
    "steps_per_report": (1, 1_000_000),
    "steps_per_eval": (1, 1_000_000),
    "steps_per_checkpoint": (1, 1_000_000),
    "pack_length": (0, 1_048_576),
    "loss_chunk": (0, 1_048_576),
    "qat_bits": (0, 8),
    "warmup_steps": (0, 10_000_000),
    "patience": (0, 1_000_000),
    "seed": (0, 2**64 - 1),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": OPTIMIZERS,
    "init": INITS,
    "compute_dtype": COMPUTE_DTYPES,
    "lr_schedule": SCHEDULES,
    "method": METHODS,
    "objective": OBJECTIVES,
}


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one run; the fields and defaults of ``optiq.v1.TrainingConfig``.

    Attributes:
        data_path: folder with ``train.jsonl`` and optionally ``valid.jsonl``, one such file, or a hub dataset's id.
        objective: ``sft``, or over pairs of answers ``dpo`` or ``orpo``: data with prompt, chosen and rejected.
        beta: DPO's inverse temperature, ORPO's weight of the odds ratio; no effect with ``sft``.
        rank: base rank; ``rank_scaling`` decides what each module gets from it.
        rank_scaling: a scheme of :mod:`optiq_core.train.ranks`.
        rank_pattern: with ``pattern``: module path, or its end after a dot, to rank.
        budget_like: ``SCHEME:RANK``, for example ``constant:16``: spend as many parameters as that would. Empty: no
            budget.
        scale: factor on the low-rank product.
        method: ``lora``; ``dora``, which also learns the norm of each output row (arXiv:2402.09353); or ``qalora``,
            which merges into the biases of the base's quantization groups without loss (arXiv:2309.14717).
        init: ``default`` begins as the base; ``loftq`` with the best fit of what quantizing at load took away.
        qat_bits: train through the merge: every adapted weight is rounded as the base keeps it, and to so many bits
            (groups of 64) where the base keeps it in float. 0 is off.
        rslora: divide the factor by the square root of the rank, not by nothing (arXiv:2312.03732): a module of
            rank r gets ``scale * sqrt(rank / r)``, which is alpha / sqrt(r) with alpha = scale * sqrt(rank).
        loraplus_ratio: learning rate of B over that of A (LoRA+, arXiv:2402.12354); 0 is 1.
        dropout: probability with which an input of the low-rank path is zeroed while training.
        target_modules: last path components of the modules to adapt; ``all-linear`` is every linear one in the blocks.
        num_layers: transformer blocks to adapt, counted from the last; -1 is all of them.
        iters: optimizer steps.
        batch_size: rows of a step.
        micro_batch_size: rows whose activations are held at a time; a step's gradient is summed over its parts, which
            gives the batch's own gradient. 0 takes the batch in one part.
        learning_rate: after warmup; the first one of the schedule.
        optimizer: one of MLX's, with its defaults; adafactor takes the learning rate as it is given.
        weight_decay: of the optimizer; Adam has none.
        lr_schedule: how the learning rate goes to ``lr_end`` at the last step.
        lr_end: the learning rate of the last step; no effect with a constant one.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        clip_norm: longer gradients are shortened to this norm; 0 leaves them.
        pack_length: tokens of a row that several examples share, none seeing another; 0 gives each a row of its own.
        max_seq_length: tokens; longer examples are cut.
        retokenize: tokenize also where the tokens of the same data and tokenizer are in the cache.
        mask_prompt: train on the last answer only. None: yes where the data has a prompt.
        steps_per_report, steps_per_eval, steps_per_checkpoint: steps between two of each.
        patience: end after so many validations without a lower loss and keep the best; 0 trains to the end.
        keep_best: the adapter is the one of the lowest validation loss, not of the last step.
        compute_dtype: of the base's floats and so of activations; adapters, their optimizer and the loss stay in
            float32. Empty takes the base as the device loads it. bfloat16 halves activations on a GPU.
        grad_checkpoint: recompute each block's activations in the backward pass.
        loss_chunk: rows of logits to hold at a time, 0 for all of a batch.
    """

    data_path: str
    objective: Objective = "sft"
    beta: float = 0.1
    rank: int = 8
    rank_scaling: RankScaling = "by_bits"
    rank_pattern: dict[str, int] = {}
    budget_like: str = ""
    scale: float = 20.0
    method: Method = "lora"
    init: Init = "default"
    qat_bits: int = 0
    rslora: bool = False
    loraplus_ratio: float = 0.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    num_layers: int = 16
    iters: int = 100
    batch_size: int = 4
    micro_batch_size: int = 0
    pack_length: int = 0
    learning_rate: float = 1e-4
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0
    lr_schedule: Schedule = "constant"
    lr_end: float = 0.0
    warmup_steps: int = 0
    clip_norm: float = 0.0
    max_seq_length: int = 2048
    retokenize: bool = False
    mask_prompt: bool | None = None
    seed: int = 0
    steps_per_report: int = 10
    steps_per_eval: int = 100
    steps_per_checkpoint: int = 50
    patience: int = 0
    keep_best: bool = False
    compute_dtype: ComputeDtype = ""
    grad_checkpoint: bool = False
    loss_chunk: int = 0

    def scale_at(self, rank: int) -> float:
        """Factor on the low-rank product of a module of this rank."""
        return self.scale * math.sqrt(self.rank / rank) if self.rslora else self.scale

    @property
    def rows_at_a_time(self) -> int:
        """Rows of one part of a batch."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    def violations(self) -> list[tuple[str, str]]:
        """Every field that is out of range, with a sentence that says what is allowed."""
        found: list[tuple[str, str]] = []
        if not self.data_path:
            found.append(("data_path", "must name a folder with train.jsonl"))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                found.append((name, f"must be between {low} and {high}, is {value}"))
        if self.num_layers != -1 and not 1 <= self.num_layers <= 10_000:
            found.append(("num_layers", f"must be -1 (all) or between 1 and 10000, is {self.num_layers}"))
        found += self._rank_violations()
        if not (math.isfinite(self.scale) and 0 < self.scale <= 1e4):
            found.append(("scale", f"must be above 0 and at most 10000, is {self.scale}"))
        found += self._objective_violations()
        if self.rank_scaling == "adalora" and (self.method != "lora" or self.qat_bits or self.rslora):
            found.append(("rank_scaling", "adalora has layers of its own: method lora, without qat_bits and rslora"))
        if self.init == "loftq" and (self.method != "lora" or self.rank_scaling == "adalora"):
            found.append(("init", "loftq fits an ordinary low-rank product: method lora, without adalora"))
        if self.qat_bits in (1, 7):
            found.append(("qat_bits", f"must be 0, 2, 3, 4, 5, 6 or 8, is {self.qat_bits}"))
        if self.qat_bits and (self.method != "lora" or self.dropout):
            found.append(("qat_bits", "rounds the merged weight, which method lora has, without dropout"))
        if not 0 <= self.dropout < 1:
            found.append(("dropout", f"must be at least 0 and below 1, is {self.dropout}"))
        found += self._optimizer_violations()
        if not self.target_modules or not all(self.target_modules):
            found.append(("target_modules", "must name at least one module, for example q_proj"))
        return found

    def _optimizer_violations(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if not 0 < self.learning_rate <= 1:
            found.append(("learning_rate", f"must be above 0 and at most 1, is {self.learning_rate}"))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                found.append((name, f"must be one of {', '.join(known)}, is {getattr(self, name)!r}"))
        if self.loraplus_ratio and not 1 <= self.loraplus_ratio <= 1000:
            found.append(("loraplus_ratio", f"must be 0 (off) or between 1 and 1000, is {self.loraplus_ratio}"))
        if not 0 <= self.weight_decay <= 1:
            found.append(("weight_decay", f"must be between 0 and 1, is {self.weight_decay}"))
        elif self.weight_decay and self.optimizer == "adam":
            found.append(("weight_decay", "must be 0 with adam, which has none; adamw has"))
        if not 0 <= self.lr_end <= 1:
            found.append(("lr_end", f"must be between 0 and 1, is {self.lr_end}"))
        elif self.lr_schedule == "exponential" and not self.lr_end:
            found.append(("lr_end", "must be above 0 with the exponential schedule, which never reaches 0"))
        if not (math.isfinite(self.clip_norm) and self.clip_norm >= 0):
            found.append(("clip_norm", f"must be at least 0, is {self.clip_norm}"))
        if 0 < self.iters <= self.warmup_steps:
            found.append(("warmup_steps", f"must be below iters, which is {self.iters}; is {self.warmup_steps}"))
        return found

    def _objective_violations(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if not 0 < self.beta <= 100:
            found.append(("beta", f"must be above 0 and at most 100, is {self.beta}"))
        if self.objective in ("dpo", "orpo"):
            if self.pack_length:
                found.append(("pack_length", f"must be 0 with {self.objective}, whose rows are single answers"))
            if self.loss_chunk:
                found.append(("loss_chunk", f"must be 0 with {self.objective}, which needs whole answers at once"))
            if self.mask_prompt is False:
                found.append(("mask_prompt", f"{self.objective} compares answers; prompts are always masked"))
        return found

    def _rank_violations(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if self.rank_scaling not in RANK_SCALINGS:
            found.append(("rank_scaling", f"must be one of {', '.join(RANK_SCALINGS)}, is {self.rank_scaling}"))
        if (self.rank_scaling == "pattern") != bool(self.rank_pattern):
            found.append(("rank_pattern", "goes with rank_scaling=pattern, and only with it"))
        for key, rank in self.rank_pattern.items():
            if not 1 <= rank <= MAX_RANK:
                found.append(("rank_pattern", f"{key!r} must be between 1 and {MAX_RANK}, is {rank}"))
        if self.budget_like:
            try:
                parse_budget_like(self.budget_like)
            except TrainingError as error:
                found.append(("budget_like", str(error).removeprefix("budget_like: ")))
        return found

    def validate(self) -> None:
        """Raise TrainingError naming the first field that is out of range."""
        for field, message in self.violations():
            raise TrainingError(f"{field}: {message}", field=field)


def parse_budget_like(text: str) -> tuple[RankScaling, int]:
    """Scheme and rank of ``SCHEME:RANK``.

    Raises:
        TrainingError: it is not of this form.
    """
    name, _, rank = text.partition(":")
    for scheme in BUDGET_SCHEMES:
        if name == scheme and rank.isascii() and rank.isdigit() and 1 <= int(rank) <= MAX_RANK:
            return scheme, int(rank)
    raise TrainingError(
        f"budget_like: must be SCHEME:RANK with a scheme of {', '.join(BUDGET_SCHEMES)} and a rank from 1 to "
        f"{MAX_RANK}, for example constant:16; is {text!r}",
        field="budget_like",
    )


def decode_config(data: bytes | dict[str, object]) -> TrainConfig:
    """A validated TrainConfig from JSON bytes or a dictionary; TrainingError names the field."""
    try:
        if isinstance(data, bytes):
            config = msgspec.json.decode(data, type=TrainConfig)
        else:
            config = msgspec.convert(data, TrainConfig)
    except msgspec.ValidationError as error:
        raise TrainingError(f"training configuration: {error}") from error
    config.validate()
    return config
