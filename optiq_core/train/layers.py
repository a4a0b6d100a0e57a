"""Puts low-rank layers on a model: mlx-lm's own layer classes, with a rank per module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from optiq_core.base.metadata import ModuleBits
from optiq_core.errors import TrainingError
from optiq_core.train.adalora import AdaLinear
from optiq_core.train.config import TrainConfig
from optiq_core.train.dora import DoraLinear
from optiq_core.train.patches import patched_blocks
from optiq_core.train.quantized import FLOAT_BITS, QaLoraLinear, QatLinear
from optiq_core.train.schemes import Method

# Every linear module of the adapted blocks; never the head.
ALL_LINEAR = "all-linear"
# Of the groups that a float module is rounded in.
_GROUP_SIZE = 64
_ADAPTABLE = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)


def find_targets(model: Any, targets: tuple[str, ...], num_layers: int) -> list[str]:
    """Paths of the modules to adapt, block 2 before block 10.

    Args:
        model: an mlx-lm model.
        targets: last path components (``q_proj``), longer suffixes (``self_attn.q_proj``), or ``all-linear``.
        num_layers: blocks counted from the last, -1 for all.

    Raises:
        TrainingError: a target matches nothing; the message lists what there is.
    """
    blocks = list(model.layers)
    if num_layers != -1:
        blocks = blocks[-num_layers:]
    inside = {id(module) for block in blocks for _, module in block.named_modules()}
    adaptable = [
        path
        for path, module in model.named_modules()
        if id(module) in inside and (isinstance(module, _ADAPTABLE) or hasattr(module, "to_lora"))
    ]
    found = {
        target: [path for path in adaptable if target == ALL_LINEAR or f".{path}".endswith(f".{target}")]
        for target in targets
    }
    for target, paths in found.items():
        if not paths:
            known = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in adaptable}))
            raise TrainingError(
                f"target_modules: '{target}' is in none of the adapted blocks; they have {known}",
                field="target_modules",
            )
    wanted = {path for paths in found.values() for path in paths}
    return sorted(wanted, key=_natural)


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def apply_lora(
    model: Any,
    ranks: Mapping[str, int],
    *,
    scale: float | Callable[[int], float],
    dropout: float,
    method: Method = "lora",
    grids: Mapping[str, ModuleBits] | None = None,
    dynamic: bool = False,
) -> None:
    """Freeze the model and replace each module in ``ranks`` by a low-rank layer around it, in place.

    Args:
        model: an mlx-lm model.
        ranks: module path to rank.
        scale: factor on the low-rank product, or what it is at a rank.
        dropout: of the low-rank path's input.
        method: kind of layer.
        grids: module path to how its weight is quantized: for ``qalora``, and with ``lora`` to train through the merge.
        dynamic: layers whose ranks training prunes (AdaLoRA).

    Raises:
        TrainingError: a module cannot carry this kind.
    """
    model.freeze()
    scale_at = scale if callable(scale) else lambda rank: scale
    if method != "lora" or grids or dynamic:
        what = "adalora" if dynamic else method if method != "lora" else "qat_bits"
        modules = _linear_modules(model, ranks, what)

        def layer(path: str, rank: int) -> nn.Module:
            if method == "lora" and grids:
                return QatLinear(modules[path], grids[path], rank=rank, scale=scale_at(rank))
            common: dict[str, Any] = {"rank": rank, "scale": scale_at(rank), "dropout": dropout}
            if dynamic:
                return AdaLinear(modules[path], **common)
            if method == "qalora" and grids:
                return QaLoraLinear(modules[path], grids[path], **common)
            return DoraLinear(modules[path], **common)

        layers = [(path, layer(path, rank)) for path, rank in sorted(ranks.items())]
        model.update_modules(tree_unflatten(layers))
        return
    for rank in sorted(set(ranks.values())):
        keys = {path for path, own in ranks.items() if own == rank}
        parameters = {"rank": rank, "scale": scale_at(rank), "dropout": dropout, "keys": keys}
        # Full paths as keys and -1: mlx-lm then matches against the whole model, never inside a block.
        linear_to_lora_layers(model, -1, parameters)


def _linear_modules(model: Any, paths: Iterable[str], what: str) -> dict[str, Any]:
    modules = dict(model.named_modules())
    for path in paths:
        if not isinstance(modules[path], nn.Linear | nn.QuantizedLinear):
            field = {"qat_bits": "qat_bits", "adalora": "rank_scaling"}.get(what, "method")
            raise TrainingError(
                f"{field}: {what} adapts linear modules; '{path}' is a {type(modules[path]).__name__}", field=field
            )
    return modules


def merge_grids(metadata: Any, config: TrainConfig, paths: Iterable[str]) -> dict[str, ModuleBits] | None:
    """How each module's weight is, or after a merge will be, quantized; None where the run does not ask.

    Args:
        metadata: the base's.
        config: its method and ``qat_bits``.
        paths: of the adapted modules.

    Raises:
        TrainingError: ``qalora`` over a module that is not quantized in groups with a bias.
    """
    if config.method != "qalora" and not config.qat_bits:
        return None
    found: dict[str, ModuleBits] = {}
    for path in paths:
        grid: ModuleBits | None = metadata.modules.get(path)
        quantized = grid is not None and grid.bits < FLOAT_BITS
        if config.method == "qalora" and (grid is None or not quantized or grid.mode != "affine"):
            raise TrainingError(
                f"method: qalora needs weights in affine groups; '{path}' has none in this base", field="method"
            )
        found[path] = grid if grid is not None and quantized else ModuleBits(config.qat_bits, _GROUP_SIZE, "affine")
    return found


def exported_tensors(model: Any) -> dict[str, mx.array]:
    """Every trained tensor by its name in an adapter file."""
    tensors = dict(tree_flatten(model.trainable_parameters()))
    for path, module in model.named_modules():
        if hasattr(module, "exported"):
            tensors = {name: value for name, value in tensors.items() if name.rpartition(".")[0] != path}
            tensors |= {f"{path}.{leaf}": value for leaf, value in module.exported().items()}
    return tensors


@contextmanager
def recomputed_blocks(model: Any, enabled: bool) -> Iterator[None]:
    """While entered, every block recomputes its activations in the backward pass.

    mlx-lm patches the block class for the rest of the process; a library must put it back.
    """
    if not enabled:
        yield
        return
    with patched_blocks(model, _checkpointed):
        yield


def _checkpointed(call: Any) -> Any:
    def checkpointed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def inner(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            block.update(parameters)
            return call(block, *args, **kwargs)

        return mx.checkpoint(inner)(block.trainable_parameters(), *args, **kwargs)

    return checkpointed
