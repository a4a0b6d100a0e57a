"""One run of an experiment in a process of its own: train, then score in the engine that serves.

``python -m optiq_core.experiments.run DIR`` reads ``DIR/run.json`` and writes, in this order, ``data/``, ``adapter/``,
``metrics.jsonl``, ``predictions.jsonl`` and ``result.json``; ``merged/`` lies there while a merged base is scored. A
directory with ``result.json`` is a finished run. A run that was stopped goes on from its checkpoint. Progress goes to
stdout, a JSON object a line.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from optiq_core.base.load_in import LoadIn
from optiq_core.bench.harness import describe_run
from optiq_core.experiments.puzzles import LabelledItem
from optiq_core.experiments.tasks import Item, boxed, write_data
from optiq_core.files import write_atomically
from optiq_core.train.config import TrainConfig

if TYPE_CHECKING:
    from optiq_core.base import LoadedBase
    from optiq_core.engine.types import Event as EngineEvent
    from optiq_core.train.events import Event as TrainingEvent

RESULT_FILE = "result.json"
RUN_FILE = "run.json"
EVALUATION_TEXT = "evaluation"


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``run.json``.

    Attributes:
        configuration, seed: which run this is.
        digest: of everything that the configuration computes; another digest makes another run.
        base: folder of the base.
        train: None scores the bare base.
        train_items, valid_items, test_items: with their categories.
        max_tokens: generated for an answer at most.
        load_in: see :class:`optiq_core.experiments.spec.BaseSpec`.
        merge: score the base with the adapter added into its weights.
        text: to measure perplexity on.
    """

    configuration: str
    seed: int
    digest: str
    base: str
    train: TrainConfig | None
    train_items: list[LabelledItem]
    valid_items: list[LabelledItem]
    test_items: list[LabelledItem]
    max_tokens: int
    load_in: LoadIn | msgspec.UnsetType = msgspec.UNSET
    merge: bool | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``result.json``; sizes in bytes, times in seconds, losses in nats per token.

    Attributes:
        right: whether each test item was answered right, in the order of ``run.json``.
        categories: of the test items.
        parameters: trainable ones.
        skipped_steps: steps left out because loss or gradient was not finite.
        peak_memory_bytes: of the training's arrays.
        perplexity: of the text, with the adapter; None if there is no text.
        merged_cosine: how much of the adapter's change a merge kept, see
            :class:`optiq_core.adapters.fuse.FuseReport`; None if it was not merged.
    """

    configuration: str
    seed: int
    digest: str
    right: list[bool]
    categories: list[str]
    parameters: int = 0
    ranks: dict[str, int] = {}
    valid_loss: float | None = None
    train_seconds: float = 0.0
    tokens_per_second: float = 0.0
    skipped_steps: int = 0
    peak_memory_bytes: int = 0
    adapter_bytes: int = 0
    base_bytes: int = 0
    base_bits_per_weight: float = 0.0
    perplexity: float | None = None
    merged_cosine: float | None = None
    described: dict[str, Any] = {}


def execute(folder: Path, report: Callable[[dict[str, Any]], None] = lambda line: None) -> RunResult:
    """Do the run that a folder describes.

    Args:
        folder: holds ``run.json``.
        report: told about progress.

    Raises:
        OptiqError: base, data or training failed.
    """
    from optiq_core.base import load_base, setup_device

    setup_device()
    spec = msgspec.json.decode((folder / RUN_FILE).read_bytes(), type=RunSpec)
    base = load_base(Path(spec.base), load_in=spec.load_in or None)
    weights, bits = _weight_bytes(Path(spec.base), base), base.bits_per_weight
    found = _train(folder, spec, base, report) if spec.train else {}
    adapter = folder / "adapter" if spec.train else None
    if adapter is not None and spec.merge:
        report({"phase": "merging"})
        base, found["merged_cosine"] = _merged(Path(spec.base), adapter, folder / "merged")
        adapter = None
    if spec.text:
        report({"phase": "perplexity"})
        # Mounted on a copy of its own: the engine takes no model that training or mounting changed.
        scored = base if adapter is None else load_base(Path(spec.base), load_in=spec.load_in or None)
        found["perplexity"] = perplexity(scored, adapter, spec.text)
    if adapter is not None:
        base = load_base(Path(spec.base), load_in=spec.load_in or None)
    report({"phase": "scoring", "items": len(spec.test_items)})
    answers = answer(base, [i.item for i in spec.test_items], adapter, spec)
    right = [boxed(text) == labelled.item.answer for text, labelled in zip(answers, spec.test_items, strict=True)]
    lines = [
        json.dumps({"category": i.category, "question": i.item.question, "expected": i.item.answer, "answer": text})
        for i, text in zip(spec.test_items, answers, strict=True)
    ]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = RunResult(
        configuration=spec.configuration,
        seed=spec.seed,
        digest=spec.digest,
        right=right,
        categories=[i.category for i in spec.test_items],
        base_bytes=weights,
        base_bits_per_weight=bits,
        described=describe_run(base),
        **found,
    )
    write_atomically(folder / RESULT_FILE, msgspec.json.format(msgspec.json.encode(result), indent=1))
    return result


def _weight_bytes(folder: Path, base: LoadedBase) -> int:
    """Bytes of a base's weights: on disk, or what they would be there as they were quantized at load."""
    from optiq_core.base.metadata import read_metadata

    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return round(stored * base.bits_per_weight / read_metadata(folder).bits_per_weight)


def _merged(base: Path, adapter: Path, target: Path) -> tuple[LoadedBase, float]:
    """The base with an adapter in its weights, and how much of the adapter's change is there."""
    from optiq_core.adapters.fuse import fuse_adapter
    from optiq_core.base import load_base

    kept = fuse_adapter(base, adapter, target, overwrite=True).kept_cosine
    loaded = load_base(target)
    # A copy of the base for each run would fill the disk; base and adapter make it again.
    shutil.rmtree(target)
    return loaded, kept


def perplexity(base: LoadedBase, adapter: Path | None, text: str) -> float:
    """Perplexity on a UTF-8 file, or on Optiq's own text where this is ``evaluation``.

    The adapter stays mounted on the base.

    Raises:
        QuantizationError: the text cannot be read.
    """
    from optiq_core.adapters.mount import AdapterActivation, mount_adapter_on_model
    from optiq_core.quant.calibration import EVALUATION, read_tokens
    from optiq_core.quant.evaluate import score_text

    tokens = read_tokens(base.tokenizer, EVALUATION if text == EVALUATION_TEXT else Path(text))
    name = "adapter" if adapter is not None else None
    if adapter is not None:
        mount_adapter_on_model(base.model, "adapter", adapter)
    with AdapterActivation(name, base.model):
        return score_text(base.model, tokens).perplexity


def _train(folder: Path, spec: RunSpec, base: LoadedBase, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    import mlx.core as mx

    from optiq_core.train.data import load_data
    from optiq_core.train.events import Progress, Started
    from optiq_core.train.trainer import train

    assert spec.train is not None
    config = msgspec.structs.replace(spec.train, data_path=str(folder / "data"))
    write_data(folder / "data", [i.item for i in spec.train_items], [i.item for i in spec.valid_items])
    found: dict[str, Any] = {}
    rates: list[float] = []
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:

        def on_event(event: TrainingEvent) -> None:
            metrics.write(msgspec.json.encode(event).decode() + "\n")
            if isinstance(event, Started):
                found["parameters"], found["ranks"] = event.trainable_parameters, event.ranks
            elif isinstance(event, Progress):
                rates.append(event.tokens_per_second)
                found["valid_loss"] = event.valid_loss
                report({"phase": "training", "step": event.step, "steps": event.total_steps})

        began = time.perf_counter()
        mx.reset_peak_memory()
        train(
            base,
            config,
            data=load_data(config.data_path, base.tokenizer, config),
            out_dir=folder / "adapter",
            checkpoint_dir=folder / "checkpoint",
            on_event=on_event,
            overwrite=True,
        )
    if config.rank_scaling == "adalora":
        found["parameters"] = _left_by_pruning(base.model, folder / "adapter")
    found["train_seconds"] = time.perf_counter() - began
    found["tokens_per_second"] = sum(rates) / len(rates) if rates else 0.0
    found["peak_memory_bytes"] = mx.get_peak_memory()
    found["adapter_bytes"] = sum(file.stat().st_size for file in (folder / "adapter").glob("*.safetensors"))
    return found


def _left_by_pruning(model: Any, adapter: Path) -> int:
    """Parameters of the ranks that an adapter ended with; training began with more."""
    from optiq_core.adapters.kinds import linear_dims
    from optiq_core.adapters.lora_config import read_lora_config

    modules = dict(model.named_modules())
    ranks = read_lora_config(adapter).ranks
    return sum(rank * sum(linear_dims(modules[path].linear)) for path, rank in ranks.items())


def answer(base: LoadedBase, items: Sequence[Item], adapter: Path | None, spec: RunSpec) -> list[str]:
    """Answer questions greedily in the serving engine, in mixed batches.

    Args:
        base: as loaded.
        items: the questions.
        adapter: folder to serve them with, None for the bare base.
        spec: for ``max_tokens``.

    Raises:
        RuntimeError: the engine failed a request.
    """
    from optiq_core.engine.engine import Engine
    from optiq_core.engine.types import EngineRequest, Failed, Finished, Tokens

    engine = Engine(base, max_queue=len(items))
    texts = [""] * len(items)
    failures: list[str] = []
    left = threading.Semaphore(0)

    def sink_of(index: int) -> Callable[[EngineEvent], None]:
        def sink(event: EngineEvent) -> None:
            if isinstance(event, Tokens):
                texts[index] += event.text
            elif isinstance(event, Finished | Failed):
                if isinstance(event, Failed):
                    failures.append(event.message)
                left.release()

        return sink

    engine.start()
    try:
        if adapter is not None:
            engine.load_adapter("adapter", adapter)
        for index, item in enumerate(items):
            prompt = tuple(base.tokenizer.apply_chat_template(item.prompt, add_generation_prompt=True))
            name = "adapter" if adapter is not None else ""
            request = EngineRequest(str(index), prompt, spec.max_tokens, adapter=name)
            engine.submit(request, sink_of(index)).result()
        for _ in items:
            left.acquire()
    finally:
        engine.close()
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(items)} questions failed: {failures[0]}")
    return texts


def main() -> int:
    """Run the folder named on the command line; 1 with a reason on stderr if it fails."""
    from optiq_core.errors import OptiqError

    try:
        execute(Path(sys.argv[1]), lambda line: print(json.dumps(line), flush=True))
    except OptiqError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
