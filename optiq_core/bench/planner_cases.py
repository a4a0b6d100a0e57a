"""The configurations that the planner's benches predict and run: small models of mlx-lm's own classes."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any

_COMMON: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 4096,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "model_type": "llama", "num_hidden_layers": 6},
    "qwen3": {**_COMMON, "model_type": "qwen3", "num_hidden_layers": 5, "head_dim": 64, "rope_theta": 1e6},
    "gemma3": {
        **_COMMON,
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 64,
        "sliding_window_pattern": 3,
    },
    "moe": {
        **_COMMON,
        "model_type": "qwen3_moe",
        "num_hidden_layers": 4,
        "head_dim": 64,
        "rope_theta": 1e6,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
    },
    "hybrid": {
        **_COMMON,
        "model_type": "qwen3_5",
        "num_hidden_layers": 4,
        "head_dim": 64,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 2,
    },
}

_ATTENTION = ("q_proj", "v_proj")
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """One run: a model, and the knobs of its training.

    Attributes:
        model: a key of ``CONFIGS``, or ``embedded``.
        batch_size, tokens: examples per step and tokens per example, all of them trained on.
        layers: of the model, 0 for as many as its configuration says.
        micro: rows of a part, of which a step sums the gradients; 0 for the batch in one part.
        bits: weights are quantized to so many bits and stay so; 0 for dense float32.
    """

    model: str
    batch_size: int
    tokens: int
    rank: int = 8
    targets: tuple[str, ...] = _ATTENTION
    num_layers: int = -1
    grad_checkpoint: bool = False
    loss_chunk: int = 0
    layers: int = 0
    bits: int = 0
    dropout: float = 0.0
    micro: int = 0

    @property
    def name(self) -> str:
        """For a person."""
        extras = [f"b{self.batch_size}", f"t{self.tokens}", f"r{self.rank}"]
        extras += ["ckpt"] * self.grad_checkpoint + [f"chunk{self.loss_chunk}"] * bool(self.loss_chunk)
        extras += ["all"] * (len(self.targets) > 2) + [f"last{self.num_layers}"] * (self.num_layers > 0)
        extras += [f"{self.layers}layers"] * bool(self.layers) + [f"{self.bits}bit"] * bool(self.bits)
        extras += [f"micro{self.micro}"] * bool(self.micro)
        extras += ["dropout"] * bool(self.dropout)
        return "-".join([self.model, *extras])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Case:
        """The inverse of ``as_dict``."""
        return cls(**{**content, "targets": tuple(content["targets"])})


def planner_cases() -> list[Case]:
    """Lengths, batches, ranks, targets, checkpointing, chunked loss; five architectures and the embedded model."""
    cases = []
    for model in ("llama", "qwen3", "gemma3", "moe"):
        targets = _ATTENTION if model == "moe" else _LINEARS
        cases += [
            Case(model, 1, 129),
            Case(model, 4, 257),
            Case(model, 2, 513, rank=32),
            Case(model, 8, 97, targets=targets, rank=16),
            Case(model, 4, 257, grad_checkpoint=True),
            Case(model, 4, 257, loss_chunk=128),
            Case(model, 2, 385, grad_checkpoint=True, loss_chunk=128, num_layers=2),
            Case(model, 3, 193, layers=10, targets=targets),
        ]
    cases += [
        Case("llama", 2, 1025, grad_checkpoint=True),
        Case("llama", 4, 129, bits=4),
        Case("qwen3", 4, 257, dropout=0.1),
        Case("hybrid", 1, 33),
        Case("hybrid", 2, 65, rank=16),
        Case("hybrid", 4, 97),
        Case("hybrid", 2, 65, grad_checkpoint=True),
        Case("hybrid", 2, 129, loss_chunk=64),
        Case("llama", 8, 129, micro=2),
        Case("qwen3", 4, 257, micro=1, grad_checkpoint=True, targets=_LINEARS),
        Case("gemma3", 6, 129, micro=2, rank=32, loss_chunk=64),
        Case("embedded", 4, 129, num_layers=16, micro=1),
        Case("embedded", 1, 129, num_layers=16),
        Case("embedded", 2, 129, num_layers=16, grad_checkpoint=True),
        Case("embedded", 2, 65, rank=16, targets=_LINEARS),
        Case("embedded", 4, 97, loss_chunk=64),
    ]
    return cases


def random_cases(count: int, seed: int) -> list[Case]:
    """Cases drawn at random, for the bench of admission."""
    rng = random.Random(seed)
    return [
        Case(
            model=rng.choice(("llama", "qwen3", "gemma3", "moe")),
            batch_size=rng.choice((1, 2, 3, 4, 6, 8)),
            tokens=rng.choice((65, 97, 129, 193, 257, 385, 513)),
            rank=rng.choice((4, 8, 16, 32)),
            num_layers=rng.choice((-1, -1, 2, 4)),
            grad_checkpoint=rng.random() < 0.3,
            loss_chunk=rng.choice((0, 0, 128)),
            micro=rng.choice((0, 0, 1)),
        )
        for _ in range(count)
    ]


def chosen(cases: list[Case], quick: bool) -> list[Case]:
    """A few small ones of each kind for a test, or all."""
    if not quick:
        return cases
    small = [
        Case("llama", 2, 65),
        Case("qwen3", 2, 65, grad_checkpoint=True),
        Case("moe", 1, 65),
        Case("gemma3", 2, 33),
    ]
    return [replace(case, layers=3) for case in small]
