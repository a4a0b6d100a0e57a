"""Who runs next."""

from __future__ import annotations

from optiq_core.train.config import TrainConfig
from optiq_daemon.fairness import VirtualCounters
from optiq_daemon.jobs.records import JobRecord, Schedule, Wait
from optiq_daemon.jobs.schedule import blocked, failed_dependency, in_turn, say, to_yield
from optiq_daemon.names import JobKey
from optiq_daemon.states import JobState


def job(name: str, tenant: str = "a", state: JobState = JobState.QUEUED, **schedule: object) -> JobRecord:
    plan = Schedule(**schedule)  # type: ignore[arg-type]
    record = JobRecord(
        id=name, tenant=tenant, adapter_id="x", request_id=name, config=TrainConfig(data_path="/d"), schedule=plan
    )
    record.state, record.create_time = state, float(name.rpartition("-")[2] or 0) if "-" in name else 0.0
    return record


def turns(**weights: float) -> VirtualCounters:
    counters = VirtualCounters(lambda tenant: weights[tenant])
    for tenant in weights:
        counters.enter(tenant)
    return counters


def test_a_tenants_priority_comes_before_age_and_stays_its_own() -> None:
    counters = turns(a=1, b=1)
    counters.charge("a", 10)
    line = [job("old-1"), job("new-2"), job("urgent-3", priority=5), job("low-0", tenant="b", priority=-100)]
    assert [r.id for r in in_turn(line, counters)] == ["low-0", "urgent-3", "old-1", "new-2"]


def test_training_time_is_shared_by_weight() -> None:
    counters = turns(a=1, b=3)
    ran = {"a": 0, "b": 0}
    for step in range(40):
        line = [job(f"{tenant}-{step}", tenant=tenant) for tenant in ("a", "b")]
        first = in_turn(line, counters)[0].tenant
        ran[first] += 1
        counters.charge(first, 60)
    assert ran == {"a": 10, "b": 30}


def test_of_equal_tenants_the_one_that_runs_less_is_next() -> None:
    line = [job("one-1"), job("two-2", tenant="b")]
    assert in_turn(line, turns(a=1, b=1), {"a": 1, "b": 0}.__getitem__)[0].tenant == "b"


def test_dependencies_hold_back_and_failures_pass_on() -> None:
    known = {r.key: r for r in (job("done", state=JobState.SUCCEEDED), job("busy", state=JobState.RUNNING))}
    known[JobKey("a", "dead")] = job("dead", state=JobState.FAILED)
    waits = blocked(job("next", after=("done", "busy")), known.get, 0)
    assert waits == Wait(reason="jobs", jobs=("busy",))
    assert say(waits) == "for busy to succeed"
    assert blocked(job("next", after=("done",)), known.get, 0) is None
    assert "ended FAILED" in failed_dependency(job("next", after=("dead",)), known.get)
    assert "was deleted" in failed_dependency(job("next", after=("gone",)), known.get)
    assert not failed_dependency(job("next", after=("done", "busy")), known.get)


def test_a_scheduled_job_waits_until_its_time() -> None:
    waits = blocked(job("next", not_before=100.0), {}.get, 99.0)
    assert waits == Wait(reason="time", until=100.0)
    assert say(waits) == "until 1970-01-01 00:01:40 UTC"
    assert blocked(job("next", not_before=100.0), {}.get, 100.0) is None


def test_a_running_job_makes_room_after_its_slice_for_a_better_claim_only() -> None:
    counters = turns(a=1, b=1)
    counters.charge("a", 100)
    running = [(job("long", state=JobState.RUNNING), 50.0)]
    other, same = job("other", tenant="b"), job("same", priority=1)
    assert to_yield(running, other, counters, 60) is None, "its slice is not over"
    assert to_yield(running, other, counters, 40) is running[0][0]
    assert to_yield(running, other, counters, 0) is None, "no slices"
    assert to_yield(running, same, counters, 40) is running[0][0], "a higher priority of the same tenant"
    assert to_yield(running, job("same"), counters, 40) is None
    counters.charge("b", 200)
    assert to_yield(running, other, counters, 40) is None, "the other tenant has had more"


def test_waiting_for_memory_is_told_in_bytes_and_resources() -> None:
    wait = Wait(reason="memory", needed_bytes=3_000_000_000, free_bytes=1_500_000_000)
    assert say(wait) == "for memory: needs 3.00 GB and there are 1.50 GB"
    both = Wait(reason="memory", needed_bytes=10**9, free_bytes=10**9, needed_resources=500_000, free_resources=499_000)
    assert say(both).endswith("needs 500,000 resources and there are 499,000")
