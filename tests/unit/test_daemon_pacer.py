"""Policies: how fast trainers may go while requests are served."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from optiq_daemon.errors import UnavailableError
from optiq_daemon.jobs.policy import SLOWEST, DecodeClock, Pacer, Policy
from optiq_daemon.live import LiveRequest, LiveTable
from optiq_daemon.trainer_process import Signals


def decoding(name: str, tokens: int, last: float) -> LiveRequest:
    return LiveRequest(name, "a", "", phase="decode", completion_tokens=tokens, last_token=last)


class Bench:
    """A pacer over requests that a test makes up."""

    def __init__(self, policy: Policy, runs: tuple[Any, ...] = ()) -> None:
        self.requests: list[LiveRequest] = []
        live: Any = LiveTable(4)
        live.requests = lambda: self.requests
        self.pacer = Pacer(policy, 0.2, live, lambda: runs)


def test_latency_is_the_slowest_streams_gap_since_the_last_look() -> None:
    clock = DecodeClock()
    assert clock.latency([decoding("a", 10, 100.0)], 100.0) == 0.0
    assert clock.latency([decoding("a", 14, 101.0)], 101.0) == pytest.approx(0.25)
    assert clock.latency([decoding("a", 14, 101.0)], 102.5) == pytest.approx(1.5), "no token came at all"
    both = [decoding("a", 15, 103.0), decoding("b", 1, 103.0)]
    assert clock.latency(both, 103.0) == pytest.approx(2.0)
    assert clock.latency([LiveRequest("c", "a", "", phase="prefill")], 104.0) == 0.0


def test_sharing_trainers_slow_down_above_the_limit_and_come_back() -> None:
    bench, now, tokens, last = Bench("share"), 0.0, 0, 0.0

    def look(gap: float) -> float:
        nonlocal now, tokens, last
        now, tokens, last = now + 1, tokens + round(1 / gap), now + 1
        bench.requests = [decoding("a", tokens, last)]
        return bench.pacer.pace(now)

    assert [look(0.1) for _ in range(2)] == [1.0, 1.0]
    assert [look(0.5) for _ in range(3)] == [0.5, 0.25, 0.125]
    assert look(0.5) == look(0.5) == SLOWEST
    assert [round(look(0.1), 4) for _ in range(2)] == [0.1625, 0.2625]
    bench.requests = []
    for _ in range(10):
        bench.pacer.pace(now)
    assert bench.pacer.pace(now) == 1.0


def test_pausing_trainers_hold_until_it_is_quiet() -> None:
    bench = Bench("pause-when-busy")
    assert bench.pacer.pace(100.0) == 1.0
    bench.requests = [decoding("a", 1, 100.0)]
    assert bench.pacer.pace(100.2) == 0.0
    bench.requests = []
    assert bench.pacer.pace(100.9) == 0.0
    assert bench.pacer.pace(101.3) == 1.0


def test_exclusive_training_refuses_requests_while_a_job_runs() -> None:
    Bench("exclusive").pacer.check_request()
    Bench("share", (object(),)).pacer.check_request()

    run = SimpleNamespace(record=SimpleNamespace(id="units-1", progress=None))
    bench = Bench("exclusive", (run,))
    with pytest.raises(UnavailableError, match="units-1 trains"):
        bench.pacer.check_request()
    bench.requests = [decoding("a", 1, 0.0)]
    assert bench.pacer.pace(1.0) == 0.0, "the last request is served to its end first"
    bench.requests = []
    assert bench.pacer.pace(1.1) == 1.0


def test_a_resting_trainer_wakes_for_what_is_asked() -> None:
    signals = Signals()
    signals.rest()
    signals.pace(0)
    threading.Timer(0.2, signals.pace, (1,)).start()
    began = time.monotonic()
    signals.rest()
    assert time.monotonic() - began >= 0.15
    for ask in (signals.cancel, signals.stop):
        signals.pace(0)
        threading.Timer(0.05, ask).start()
        signals.rest()
        assert signals.poll() == "cancel"


def test_a_pace_rests_in_proportion_to_the_work() -> None:
    signals = Signals()
    signals.pace(0.5)
    signals.rest()
    time.sleep(0.1)
    began = time.monotonic()
    signals.rest()
    assert time.monotonic() - began >= 0.09
