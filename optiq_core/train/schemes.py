"""Names of the choices of a run; apart from what they do so that command lines import nothing with them."""

from __future__ import annotations

from typing import Literal, get_args

RankScaling = Literal["constant", "by_bits", "by_kl", "linear", "attention", "ffn", "gradient", "pattern", "adalora"]

RANK_SCALINGS: tuple[RankScaling, ...] = get_args(RankScaling)

# Schemes whose ranks follow from the base alone, so that another scheme can be given their budget.
BUDGET_SCHEMES: tuple[RankScaling, ...] = ("constant", "by_bits", "by_kl", "linear", "attention", "ffn")

Optimizer = Literal["adam", "adamw", "sgd", "muon", "adafactor"]

OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

Schedule = Literal["constant", "linear", "cosine", "exponential"]

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

Method = Literal["lora", "dora", "qalora"]

METHODS: tuple[Method, ...] = get_args(Method)

Objective = Literal["sft", "dpo", "orpo"]

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

Init = Literal["default", "loftq"]

INITS: tuple[Init, ...] = get_args(Init)

ComputeDtype = Literal["", "float32", "bfloat16", "float16"]

COMPUTE_DTYPES: tuple[ComputeDtype, ...] = get_args(ComputeDtype)
