"""The engine on a tiny random model: batches, cancellation, stop strings, sampling, adapters coming and going."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from optiq_core.engine.engine import Engine
from optiq_core.engine.sampling import restrict
from optiq_core.engine.text import TextStream
from optiq_core.engine.types import (
    Event,
    Failed,
    Finished,
    InUseError,
    NotLoadedError,
    Queued,
    QueueFullError,
    Reason,
    Sampling,
    Started,
    Tokens,
)
from optiq_core.errors import AdapterError
from tests.unit.engine_run import Run, request
from tests.unit.tiny import tiny_base, tiny_model, tiny_tokenizer, write_mlx_adapter

RANKS = [1, 2, 3, 4, 8, 12, 16, 32]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        f"r{rank}": write_mlx_adapter(
            root / f"r{rank}",
            tiny_model(),
            rank=rank,
            scale=5.0,
            seed=i,
            dora=i % 4 == 3,
            targets=("q_proj", "v_proj", "down_proj") if i % 2 else ("q_proj", "v_proj"),
        )
        for i, rank in enumerate(RANKS)
    }


@pytest.fixture
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    engine = Engine(tiny_base(), max_batch=8, max_queue=4, prefill_chunk=16)
    engine.start()
    for digest, folder in folders.items():
        engine.load_adapter(digest, folder)
    yield engine
    engine.close()


def test_eight_adapters_in_one_batch_give_the_tokens_of_each_alone(engine: Engine) -> None:
    prompts = {f"r{rank}": tuple(range(1, 3 + 5 * i)) for i, rank in enumerate(RANKS)}
    alone = {}
    for digest, prompt in prompts.items():
        run = Run(engine, request(digest, prompt, adapter=digest))
        run.wait()
        alone[digest] = run.ids
    runs = Run.together(engine, [request(d, p, adapter=d) for d, p in prompts.items()])
    together = dict(zip(prompts, runs, strict=True))
    finished = {d: run.wait() for d, run in together.items()}
    assert {d: run.ids for d, run in together.items()} == alone
    assert len({tuple(ids) for ids in alone.values()}) > 4, "the adapters must differ for this to mean anything"
    assert max(f.max_adapters for f in finished.values()) >= 6
    assert engine.status().max_adapters_in_one_step >= 6


def test_rows_that_join_late_and_leave_early_change_nothing(engine: Engine) -> None:
    prompt = (5, 9, 12, 3)
    long = Run(engine, request("solo", prompt, adapter="r8", max_tokens=40))
    long.wait()
    again = Run(engine, request("busy", prompt, adapter="r8", max_tokens=40))
    others = [
        Run(engine, request(f"o{i}", (1 + i, 2, 3), adapter=f"r{RANKS[i]}", max_tokens=3 + 4 * i)) for i in range(6)
    ]
    for other in others:
        other.wait()
    again.wait()
    assert again.ids == long.ids


def test_events_come_in_order_and_counts_agree(engine: Engine) -> None:
    run = Run(engine, request("a", (1, 2, 3), max_tokens=7))
    finished = run.wait()
    kinds = [type(e) for e in run.seen]
    assert kinds[0] is Started
    assert kinds[-1] is Finished
    assert finished.completion_tokens == len(run.ids) <= 7
    assert finished.reason in (Reason.LENGTH, Reason.STOP)
    assert finished.first_token_ms >= finished.prefill_ms >= 0


def test_factor_zero_equals_the_base(engine: Engine) -> None:
    base = Run(engine, request("base", (7, 8, 9)))
    base.wait()
    zero = Run(engine, request("zero", (7, 8, 9), adapter="r16", factor=0.0))
    finished = zero.wait()
    assert zero.ids == base.ids
    assert finished.max_adapters == 1


def test_cancel_frees_the_row(engine: Engine) -> None:
    run = Run(engine, request("gone", (1, 2), adapter="r4", max_tokens=400))
    while not isinstance(run.events.get(timeout=60), Tokens):
        pass
    engine.cancel("gone")
    assert run.wait().reason is Reason.CANCELLED
    assert engine.status().active_rows == 0
    engine.unload_adapter("r4")


def test_queue_positions_are_told_and_the_queue_is_bounded(engine: Engine) -> None:
    for i in range(8):
        Run(engine, request(f"run{i}", (1, 2), max_tokens=200))
    waiting = [Run(engine, request(f"wait{i}", (1, 2), max_tokens=1)) for i in range(4)]
    with pytest.raises(QueueFullError):
        Run(engine, request("over", (1, 2)))
    engine.cancel("wait1")
    assert waiting[1].wait().reason is Reason.CANCELLED
    engine.cancel("run0")
    assert waiting[0].wait().reason is not Reason.CANCELLED
    for i in range(1, 8):
        engine.cancel(f"run{i}")
    assert all(waiting[i].wait().reason is not Reason.CANCELLED for i in (2, 3))
    positions = [e.position for e in waiting[3].seen if isinstance(e, Queued)]
    assert positions[:3] == [4, 3, 2]


def test_an_adapter_in_use_cannot_leave_and_an_unknown_one_is_refused(engine: Engine) -> None:
    run = Run(engine, request("user", (1, 2), adapter="r2", max_tokens=400))
    with pytest.raises(InUseError):
        engine.unload_adapter("r2")
    engine.cancel("user")
    run.wait()
    engine.unload_adapter("r2")
    with pytest.raises(NotLoadedError):
        Run(engine, request("late", (1, 2), adapter="r2"))


def test_adapters_load_while_rows_decode(engine: Engine, folders: dict[str, Path]) -> None:
    solo = Run(engine, request("solo", (3, 1, 4), adapter="r12", max_tokens=60))
    solo.wait()
    busy = Run(engine, request("busy", (3, 1, 4), adapter="r12", max_tokens=60))
    errors: list[BaseException] = []

    def churn(digest: str) -> None:
        try:
            for _ in range(5):
                engine.unload_adapter(digest)
                engine.load_adapter(digest, folders[digest])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=churn, args=(d,)) for d in ("r1", "r32", "r3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    busy.wait()
    assert not errors
    assert busy.ids == solo.ids


def test_a_folder_of_another_base_is_refused(engine: Engine, tmp_path: Path) -> None:
    folder = write_mlx_adapter(tmp_path / "wide", tiny_model(layers=3))
    with pytest.raises(AdapterError, match="UNKNOWN_MODULE"):
        engine.load_adapter("other", folder)
    assert engine.status().resident_adapters == len(RANKS)


def test_a_seed_fixes_the_draw_whatever_else_runs(engine: Engine) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.95, top_k=20, min_p=0.01, seed=42)
    solo = Run(engine, request("solo", (2, 4, 6), sampling=sampling, adapter="r8"))
    solo.wait()
    others = [
        Run(engine, request(f"o{i}", (i + 1, 5), sampling=Sampling(temperature=2.0, seed=i), max_tokens=9))
        for i in range(5)
    ]
    busy = Run(engine, request("busy", (2, 4, 6), sampling=sampling, adapter="r8"))
    busy.wait()
    for other in others:
        other.wait()
    assert busy.ids == solo.ids
    different = Run(engine, request("c", (2, 4, 6), sampling=Sampling(temperature=1.5, seed=43), adapter="r8"))
    different.wait()
    assert different.ids != solo.ids


def test_restrict_keeps_what_each_rule_allows() -> None:
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))

    def kept(**rule: float) -> list[int]:
        out = restrict(logprobs, [Sampling(temperature=1.0, **rule)])  # type: ignore[arg-type]
        return [i for i, v in enumerate(out[0].tolist()) if v > -1e30]

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.5) == [0]
    assert kept(top_p=0.6) == [0, 1]
    assert kept(min_p=0.2) == [0, 1, 2]
    assert kept(top_p=0.01, top_k=3, min_p=0.9) == [0]


def test_stop_strings_end_the_text_before_them_even_across_tokens() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("ABCDEF", add_special_tokens=False)
    stream = TextStream(tokenizer, ("CDX", "DE"))
    shown = ""
    for token in ids:
        text, stopped = stream.push(token)
        shown += text
        if stopped:
            break
    assert (shown, stopped) == ("ABC", True)

    stream = TextStream(tokenizer, ("EFG",))
    shown = "".join(stream.push(token)[0] for token in ids)
    assert shown == "ABCD"
    assert stream.finish() == ("EF", False)


def test_a_request_ends_at_its_stop_string(engine: Engine) -> None:
    free = Run(engine, request("free", (3, 3, 7), max_tokens=12))
    free.wait()
    stop = free.text[4:6]
    stopped = Run(engine, request("stop", (3, 3, 7), max_tokens=12, stop=(stop,)))
    assert stopped.wait().reason is Reason.STOP_STRING
    assert stopped.text == free.text[: free.text.index(stop)]


def test_a_request_withdrawn_before_it_is_queued_leaves_the_engine_running(engine: Engine) -> None:
    events: queue.Queue[Event] = queue.Queue()
    for i in range(50):
        engine.submit(request(f"w{i}", (1, 2), max_tokens=5), events.put).cancel()
        engine.cancel(f"w{i}")
    after = Run(engine, request("after", (1, 2), max_tokens=3))
    assert after.wait().completion_tokens <= 3
    assert engine.status().queued_requests == 0


def test_closing_the_engine_ends_every_request(folders: dict[str, Path]) -> None:
    engine = Engine(tiny_base(), max_batch=2)
    engine.start()
    events: queue.Queue[Event] = queue.Queue()
    for i in range(4):
        engine.submit(request(f"x{i}", (1, 2), max_tokens=400), events.put).result()
    engine.close()
    failed = 0
    while not events.empty():
        failed += isinstance(events.get(), Failed)
    assert failed == 4
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(request("late", (1, 2)), events.put)
