"""A process with nothing but the engine: what the daemon and its faces are measured against.

``python -m optiq_daemon.bench.engine_alone --model M --max-batch N``

Reads one JSON object a line, ``{"prompts": [...], "tokens": n}``, runs the prompts at once and answers with one line,
the figures of :class:`Run`. Ends when its stdin does.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from optiq_core.heap import freeze_heap
from optiq_daemon.bench.load import Lane, Run

if TYPE_CHECKING:
    from optiq_core.base import LoadedBase
    from optiq_core.engine.engine import Engine


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="optiq_daemon.bench.engine_alone")
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-batch", type=int, required=True)
    settings = parser.parse_args()
    from optiq_core.base import load_base, resolve_base, setup_device

    setup_device()
    from optiq_core.engine.engine import Engine

    base = load_base(resolve_base(settings.model))
    engine = Engine(base, max_batch=settings.max_batch)
    engine.start()
    freeze_heap()
    print(json.dumps(describe(base)), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        print(json.dumps(run(engine, base, wanted["prompts"], wanted["tokens"]).figures()), flush=True)
    engine.close()


def describe(base: LoadedBase) -> dict[str, Any]:
    """What the harness says of a run."""
    from optiq_core.bench.harness import describe_run

    return describe_run(base)


def run(engine: Engine, base: LoadedBase, prompts: list[str], tokens: int) -> Run:
    """Run the prompts at once."""
    from optiq_core.engine.types import EngineRequest, Event, Failed, Finished, Tokens

    measured = Run(len(prompts))
    left = len(prompts)
    ended = threading.Event()

    def sink(lane: Lane, event: Event) -> None:
        nonlocal left
        if isinstance(event, Tokens):
            if event.text:
                lane.texts.append(time.perf_counter())
        elif isinstance(event, Finished | Failed):
            lane.tokens += event.completion_tokens if isinstance(event, Finished) else 0
            left -= 1
            if not left:
                ended.set()

    measured.began = time.perf_counter()
    requests = [
        EngineRequest(request_id=str(index), prompt=tuple(base.tokenizer.encode(text)), max_tokens=tokens)
        for index, text in enumerate(prompts)
    ]
    for request, lane in zip(requests, measured.lanes, strict=True):
        engine.submit(request, partial(sink, lane))
    ended.wait()
    return measured


if __name__ == "__main__":
    main()
