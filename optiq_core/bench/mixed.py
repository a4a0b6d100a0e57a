"""Bench ``mixed``: a batch on many adapters against the bare base, one shared adapter, and one adapter after another.

Decode only. Batches for the bare base, for one adapter in all rows and for different adapters are kept side by side and
take turns, step block by step block; the serial way decodes every adapter's row alone. The rows of the mixed batch are
then compared with those, token by token. ``--stock`` adds mlx-lm as it is on the bare rows, so that what the base
gained is a ratio of the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptiqError
from .harness import describe_run, emit, median_ratio, narrate, paired

if TYPE_CHECKING:
    from ..adapters.bank import AdapterBank
    from ..base import LoadedBase

_PROMPT = "Write a long story about the sea, a lighthouse and number {}."
# Two candidates whose logits are nearer than this may be swapped by the order of float32 sums.
LOGIT_TOLERANCE = 5e-3


class Rows:
    """Rows that decode together, past their prompts.

    Args:
        base: the base.
        bank: its bank; None for mlx-lm's own decode batch, without any of ours.
        keys: an adapter per row, empty for the bare base.
        numbers: tells the rows' prompts apart.
    """

    def __init__(self, base: LoadedBase, bank: AdapterBank | None, keys: Sequence[str], numbers: Sequence[int]) -> None:
        from mlx_lm.generate import GenerationBatch, PromptProcessingBatch, StopSequences
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.sample_utils import greedy_sampler

        from ..adapters.bank import BASE
        from ..engine.decode import DecodeBatch
        from ..engine.rows import MixedAdapterModel, RowAdapters

        model: Any = base.model if bank is None else MixedAdapterModel(base.model, bank)
        self.prompts = [prompt_ids(base, number) for number in numbers]
        caches = []
        for key in keys:
            cache = make_prompt_cache(base.model)
            if bank is not None:
                cache.append(RowAdapters(bank, [bank.handle(key) if key else BASE], [1.0]))
            caches.append(cache)
        prompts = PromptProcessingBatch(
            model=model,
            uids=list(range(len(keys))),
            caches=caches,
            samplers=[greedy_sampler] * len(keys),
            logits_processors=[() for _ in keys],
            stop_sequences=[StopSequences()] * len(keys),
            max_tokens=[1 << 30] * len(keys),
        )
        kind = GenerationBatch if bank is None else DecodeBatch
        self._batch = kind.empty(model, greedy_sampler)
        self._batch.extend(prompts.generate([list(prompt) for prompt in self.prompts]))
        self.tokens: list[list[int]] = [[] for _ in keys]

    def step(self) -> None:
        """Decode one token of every row."""
        for response in self._batch.next():
            self.tokens[response.uid].append(response.token)

    def tokens_per_second(self, steps: int) -> float:
        """Decode so many tokens of every row; one more first, so that the queue of the device is as full as after."""
        self.step()
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        return steps * len(self.tokens) / (time.perf_counter() - began)


def prompt_ids(base: LoadedBase, number: int) -> list[int]:
    """Return the tokens of a prompt; every number has its own, all of about the same length."""
    message = {"role": "user", "content": _PROMPT.format(number)}
    if base.tokenizer.has_chat_template:
        return list(base.tokenizer.apply_chat_template([message], add_generation_prompt=True))
    return list(base.tokenizer.encode(message["content"]))


def same_tokens(base: LoadedBase, bank: AdapterBank, key: str, prompt: list[int], *said: list[int]) -> bool:
    """Tell whether two greedy continuations agree; at the first difference the logits must be as good as equal."""
    import mlx.core as mx

    from ..adapters.bank import active

    first, second = said
    at = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return True
    token = active.set(bank.rows([bank.handle(key)], [1.0]))
    try:
        logits = base.model(mx.array([[*prompt, *first[:at]]]))[0, -1]
        return abs((logits[first[at]] - logits[second[at]]).item()) < LOGIT_TOLERANCE
    finally:
        active.reset(token)


def run(
    model: str = "embedded",
    *,
    adapters: int = 16,
    concurrency: int = 16,
    rank: int = 8,
    ranks: str = "",
    targets: str = "all",
    dora: bool = False,
    stock: bool = False,
    rounds: int = 5,
    steps: int = 8,
    quick: bool = False,
) -> dict[str, Any]:
    """Measure decoding with different adapters in the rows.

    Args:
        model: as :func:`optiq_core.base.resolve_base` takes it.
        adapters: how many there are; rows take them in turn.
        concurrency: rows.
        rank: of all adapters, unless ``ranks`` lists ranks that they take in turn.
        ranks: for example ``4,8,16,64``.
        targets: ``qv``, or ``all`` linear modules of the blocks.
        dora: every fourth adapter is DoRA.
        stock: also decode the bare rows with mlx-lm's modules and batch as they are, from a second copy of the base.
        rounds, steps: decode steps per contestant and round.
        quick: two rounds of two steps.

    Returns:
        Tokens per second, medians of the rounds (``base_tps``, ``same_tps``, ``mixed_tps``, ``serial_tps``, and
        ``stock_tps``); ratios, medians of the ratios round by round (``mixed_over_base`` and so on,
        ``base_over_stock``); whether every row of the mixed batch said what it says alone; the run's description.

    Raises:
        OptiqError: the model cannot be loaded.
    """
    from ..base import load_base, resolve_base, setup_device

    setup_device()
    from ..adapters.bank import AdapterBank, compute_dtype
    from ..engine.cpu import prepare_for_cpu
    from .adapters import chosen, random_deltas

    rounds, steps = (2, 2) if quick else (rounds, steps)
    base = load_base(resolve_base(model, progress=narrate))
    if base.profile.dense:
        prepare_for_cpu(base.model)
    bank = AdapterBank(base.model, compute_dtype(base.model))
    cycle = [int(r) for r in ranks.split(",")] if ranks else [rank]
    names = [f"adapter-{i}" for i in range(adapters)]
    wanted = chosen(bank.modules, targets)
    for i, name in enumerate(names):
        # Shifted by one in every turn of the ranks, so that DoRA meets all of them.
        is_dora = dora and (i + i // 4) % 4 == 3
        bank.load(name, random_deltas(wanted, cycle[i % len(cycle)], i, dora=is_dora))
    keys = [names[i % adapters] for i in range(concurrency)]
    numbers = list(range(concurrency))

    narrate("prompts of three batches and of every row alone")
    base_rows = Rows(base, bank, [""] * concurrency, numbers)
    same = Rows(base, bank, [keys[0]] * concurrency, numbers)
    mixed = Rows(base, bank, keys, numbers)
    alone = [Rows(base, bank, [key], [number]) for key, number in zip(keys, numbers, strict=True)]
    turn = 0

    def serial() -> float:
        """One row after another: as many as give each row its turns over the rounds."""
        nonlocal turn
        count = -(-len(alone) // rounds)
        rows = [alone[(turn + i) % len(alone)] for i in range(count)]
        turn += count
        return statistics.harmonic_mean([row.tokens_per_second(steps) for row in rows])

    contestants = {
        "base": lambda: base_rows.tokens_per_second(steps),
        "same": lambda: same.tokens_per_second(steps),
        "mixed": lambda: mixed.tokens_per_second(steps),
        "serial": serial,
    }
    if stock:
        plain = Rows(load_base(resolve_base(model)), None, [""] * concurrency, numbers)
        contestants["stock"] = lambda: plain.tokens_per_second(steps)
    figures = paired(contestants, rounds=rounds, progress=narrate)
    parity = all(
        same_tokens(base, bank, key, single.prompts[0], single.tokens[0], tokens)
        for key, single, tokens in zip(keys, alone, mixed.tokens, strict=True)
    )
    result: dict[str, Any] = {f"{name}_tps": statistics.median(values) for name, values in figures.items()}
    for name in ("base", "same", "serial"):
        result[f"mixed_over_{name}"] = median_ratio(figures["mixed"], figures[name])
    if stock:
        result["base_over_stock"] = median_ratio(figures["base"], figures["stock"])
    result |= {
        "parity_ok": parity,
        "adapters": adapters,
        "concurrency": concurrency,
        "ranks": cycle,
        "targets": targets,
        "dora": dora,
        "bytes_per_adapter": statistics.mean(bank.bytes_of(name) for name in names),
        **describe_run(base),
    }
    return result


@click.command(
    epilog="\b\nExamples:\n  optiq bench mixed --targets qv --json\n"
    "  optiq bench mixed --targets all --ranks 4,8,16,64 --dora\n"
    "  optiq bench mixed --stock --json"
)
@click.option("--model", default="embedded", show_default=True)
@click.option("--adapters", type=click.IntRange(1, 256), default=16, show_default=True)
@click.option("--concurrency", type=click.IntRange(1, 256), default=16, show_default=True, help="Rows of the batch.")
@click.option("--rank", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--ranks", default="", metavar="R,R,…", help="Ranks that the adapters take in turn.")
@click.option("--targets", type=click.Choice(["all", "qv"]), default="all", show_default=True)
@click.option("--dora", is_flag=True, help="Every fourth adapter is DoRA.")
@click.option("--stock", is_flag=True, help="Also the bare rows with mlx-lm's modules and decode batch as they are.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Decode steps per round.")
@click.option("--quick", is_flag=True, help="A fraction of the work, to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def mixed(as_json: bool, **options: Any) -> None:
    """Compare a batch on different adapters with the bare base, one adapter, and one adapter after another."""
    if options["ranks"] and not all(r.isdigit() and 1 <= int(r) <= 256 for r in options["ranks"].split(",")):
        raise click.BadParameter("expected ranks from 1 to 256, such as 4,8,16,64", param_hint="--ranks")
    try:
        emit(run(**options), as_json=as_json)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
