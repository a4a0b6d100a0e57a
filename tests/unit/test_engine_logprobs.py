"""Log-probabilities are the model's own, whatever else is in the batch."""

from __future__ import annotations

import mlx.core as mx
import pytest

from optiq_core.engine.engine import Engine
from optiq_core.engine.types import Sampling, Tokens
from tests.unit.engine_run import Run, request
from tests.unit.tiny import tiny_base

PROMPT = tuple(range(1, 9))


def test_they_are_those_of_a_forward_pass() -> None:
    base = tiny_base()
    engine = Engine(base, max_batch=4)
    engine.start()
    try:
        asked = {"top_logprobs": 3, "max_tokens": 5, "sampling": Sampling(temperature=1.5, seed=3)}
        runs = [Run(engine, request("a", PROMPT, **asked)), Run(engine, request("b", PROMPT[:3], max_tokens=5))]
        for run in runs:
            run.wait()
    finally:
        engine.close()
    told = [one for event in runs[0].seen if isinstance(event, Tokens) for one in event.logprobs]
    assert [one.token for one in told] == runs[0].ids and len(told) >= 1
    logits = base.model(mx.array([[*PROMPT, *runs[0].ids]]))[0].astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for step, one in enumerate(told):
        expected = logprobs[len(PROMPT) - 1 + step].tolist()
        assert one.logprob == pytest.approx(expected[one.token], abs=1e-3)
        best = sorted(range(len(expected)), key=lambda token: -expected[token])[:3]
        assert [logprob for _, logprob in one.top] == pytest.approx([expected[token] for token in best], abs=1e-3)
    assert all(not event.logprobs for event in runs[1].seen if isinstance(event, Tokens))
