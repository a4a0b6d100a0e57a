"""The demo's steps, in order. Every claim that they make is checked; a claim that fails ends the demo with an error."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import optiq_core.experiments
from optiq_client import AdapterState, Client, JobState, NotFound, RankScaling, TrainingConfig
from optiq_core.base import EMBEDDED_MIXED, read_metadata, resolve_base
from optiq_core.experiments.tasks import DEMO_JOBS, DemoJob, Item, boxed, score, write_data

from .chorus import Answer, Chorus, answer_items, ask_all
from .host import DaemonHost, DemoError
from .narrator import Narrator

STEPS = 7
READY_ADAPTER = Path(str(resources.files(optiq_core.experiments))) / "ready" / "pirate"
READY_PROMPT = "What is the capital of France?"
ROUTABLE_SECONDS = 30.0
# The adapter must answer this share of the held-out items, and the base at most half as many.
GOOD_SHARE = 0.3


@dataclasses.dataclass
class DemoReport:
    """What the demo showed, as `optiq demo --json` prints it."""

    home: str
    base: dict[str, Any]
    adapters: dict[str, str] = dataclasses.field(default_factory=dict)
    drop_to_routable_ms: float = 0.0
    batch: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens_per_second: float = 0.0
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    answers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    scores: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def run_demo(host: DaemonHost, narrator: Narrator) -> DemoReport:
    """Run all steps against a daemon that the host starts.

    Args:
        host: starts the daemon; the caller stops it.
        narrator: hears what happens.

    Raises:
        OptiqError: something could not be done, or did not turn out as claimed.
    """
    with narrator.step("fetch the base and convert it to mixed precision"):
        folder = resolve_base(EMBEDDED_MIXED, progress=narrator.line)
        metadata = read_metadata(folder)
        narrator.say(f"{folder.name}, {metadata.bits_per_weight:.2f} bits per weight, {_bits(metadata.layer_bits)}")
    report = DemoReport(str(host.home), {"path": str(folder), "bits_per_weight": metadata.bits_per_weight})

    with narrator.step("start the daemon and its engine"):
        client = host.start()
        status = client.runtime.status()
        narrator.say(f"daemon {status.pid}, {status.device.kind}, {status.device.compute}")
    with client:
        held_out = _train(client, host, narrator, report)
        _drop(client, host, narrator, report)
        _side_by_side(client, narrator, report, held_out)
        _score(client, narrator, report, held_out)
        _retire(client, host, narrator, report)
    report.steps = [dataclasses.asdict(step) for step in narrator.steps]
    return report


def _bits(layer_bits: dict[str, int]) -> str:
    counts: dict[int, int] = {}
    for bits in layer_bits.values():
        counts[bits] = counts.get(bits, 0) + 1
    return ", ".join(f"{n} modules at {bits} bits" for bits, n in sorted(counts.items()))


def _train(client: Client, host: DaemonHost, narrator: Narrator, report: DemoReport) -> dict[str, list[Item]]:
    """Queue both jobs at once; the daemon runs them in turn and mounts what they make."""
    held_out: dict[str, list[Item]] = {}
    with narrator.step("train two adapters, queued together"):
        jobs = {}
        for plan in DEMO_JOBS:
            name = plan.task.name
            train, held_out[name] = plan.items()
            data = host.home / "demo-data" / name
            write_data(data, train)
            jobs[name] = client.training.create(name, _config(plan, data), request_id=f"demo-{name}")
        for name, job in jobs.items():
            ended = job
            for update in client.training.watch(job.id):
                ended = update.job
                if (progress := update.progress) is not None:
                    narrator.line(
                        f"{name}: step {progress.step}/{progress.total_steps}, loss {progress.train_loss:.3f}, "
                        f"{progress.tokens_per_second:.0f} tokens/s, {progress.seconds_left:.0f} s left"
                    )
            if ended.state is not JobState.SUCCEEDED or ended.progress is None:
                raise DemoError(f"the job for {name} ended as {ended.state}: {ended.state_reason}")
            took = ended.end_time - ended.start_time if ended.end_time and ended.start_time else None
            report.training[name] = {
                "steps": ended.progress.total_steps,
                "loss": ended.progress.train_loss,
                "tokens_per_second": ended.progress.tokens_per_second,
                "seconds": took.total_seconds() if took else None,
            }
            report.adapters[name] = _wait_resident(client, name)
        narrator.say(f"{' and '.join(jobs)} are mounted")
    return held_out


def _config(plan: DemoJob, data: Path) -> TrainingConfig:
    settings: dict[str, Any] = {key: value for key, value in plan.settings.items() if key != "rank_scaling"}
    return TrainingConfig(data_path=str(data), rank_scaling=RankScaling.BY_BITS, **settings)


def _drop(client: Client, host: DaemonHost, narrator: Narrator, report: DemoReport) -> None:
    with narrator.step(f"drop a ready-made adapter folder ({READY_ADAPTER.name})"):
        shutil.copytree(READY_ADAPTER, host.drop_folder / READY_ADAPTER.name)
        copied = time.perf_counter()
        report.adapters[READY_ADAPTER.name] = _wait_resident(client, READY_ADAPTER.name)
        report.drop_to_routable_ms = round((time.perf_counter() - copied) * 1e3, 1)
        narrator.say(f"routable {report.drop_to_routable_ms:.0f} ms after the copy ended")


def _wait_resident(client: Client, name: str) -> str:
    """Wait for an adapter to be served; returns its digest."""
    deadline = time.monotonic() + ROUTABLE_SECONDS
    with client.adapters.watch(timeout=ROUTABLE_SECONDS) as changes:
        for change in changes:
            adapter = change.adapter
            if adapter is None or adapter.id != name:
                continue
            if adapter.state is AdapterState.RESIDENT:
                return adapter.digest
            if adapter.quarantine is not None:
                raise DemoError(f"adapter {name} is quarantined: {adapter.quarantine.message}")
            if time.monotonic() > deadline:
                break
    raise DemoError(f"adapter {name} was not served within {ROUTABLE_SECONDS:.0f} s")


def _side_by_side(client: Client, narrator: Narrator, report: DemoReport, held_out: dict[str, list[Item]]) -> None:
    with narrator.step("ask the base and all adapters at once"):
        prompts = [
            *((items[0].question, items[0].prompt) for items in held_out.values()),
            (READY_PROMPT, [{"role": "user", "content": READY_PROMPT}]),
        ]
        adapters = ["", *report.adapters]
        chorus = ask_all(client, [(adapter, messages) for _, messages in prompts for adapter in adapters])
        _check_served(chorus, report)
        report.tokens_per_second = round(chorus.tokens_per_second, 1)
        report.batch = {
            "max_adapters_in_one_step": max(a.max_adapters for a in chorus.answers),
            "max_rows_in_one_step": max(a.max_rows for a in chorus.answers),
        }
        for i, (question, _) in enumerate(prompts):
            row = chorus.answers[i * len(adapters) : (i + 1) * len(adapters)]
            report.answers += [{"prompt": question, **_answer(answer)} for answer in row]
        narrator.say(
            f"{len(chorus.answers)} requests, {report.batch['max_adapters_in_one_step']} adapters in one step, "
            f"{report.tokens_per_second:.1f} tokens/s together"
        )
        if report.batch["max_adapters_in_one_step"] < len(adapters):
            raise DemoError(f"no step ran all of {len(adapters)} adapters together: {report.batch}")


def _check_served(chorus: Chorus, report: DemoReport) -> None:
    for answer in chorus.answers:
        if answer.digest != report.adapters.get(answer.adapter, ""):
            raise DemoError(f"{answer.adapter or 'the base'} was answered by version {answer.digest or 'none'}")


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "adapter": answer.adapter,
        "digest": answer.digest,
        "text": answer.text,
        "time_to_first_token_ms": round(answer.first_token_ms, 1),
        "tokens_per_second": round(answer.tokens_per_second, 1),
    }


def _score(client: Client, narrator: Narrator, report: DemoReport, held_out: dict[str, list[Item]]) -> None:
    with narrator.step("score base and trained adapters on held-out questions"):
        for name, items in held_out.items():
            base = score(items, answer_items(client, "", items))
            adapter = score(items, answer_items(client, name, items))
            report.scores[name] = {"base": base, "adapter": adapter, "n": len(items)}
            narrator.line(f"{name}: base {base} of {len(items)}, adapter {adapter} of {len(items)}")
        narrator.say(", ".join(f"{n} {s['base']} -> {s['adapter']} of {s['n']}" for n, s in report.scores.items()))
        for name, result in report.scores.items():
            if result["adapter"] < GOOD_SHARE * result["n"] or result["base"] > result["adapter"] / 2:
                raise DemoError(f"the adapter for {name} is not far above the base: {result}")


def _retire(client: Client, host: DaemonHost, narrator: Narrator, report: DemoReport) -> None:
    with narrator.step(f"delete the folder of {READY_ADAPTER.name}"):
        shutil.rmtree(host.drop_folder / READY_ADAPTER.name)
        _wait_gone(client, READY_ADAPTER.name)
        others = [name for name in ("", *report.adapters) if name != READY_ADAPTER.name]
        chorus = ask_all(client, [(name, [{"role": "user", "content": READY_PROMPT}]) for name in others])
        _check_served(chorus, report)
        narrator.say(f"{READY_ADAPTER.name} answers NOT_FOUND, {len(others)} others go on")


def _wait_gone(client: Client, name: str) -> None:
    deadline = time.monotonic() + ROUTABLE_SECONDS
    while time.monotonic() < deadline:
        try:
            client.generate(READY_PROMPT, adapter=name, max_tokens=1).read()
        except NotFound:
            return
        time.sleep(0.1)
    raise DemoError(f"adapter {name} was still served {ROUTABLE_SECONDS:.0f} s after its folder was deleted")


def answers_table(report: DemoReport) -> list[Sequence[str]]:
    """Rows of the side-by-side table: prompt, adapter, digest, answer, first token, tokens per second."""
    return [
        (
            answer["prompt"],
            answer["adapter"] or "(base)",
            answer["digest"][:12],
            boxed(answer["text"]) or answer["text"].replace("\n", " ")[:60],
            f"{answer['time_to_first_token_ms']:.0f} ms",
            f"{answer['tokens_per_second']:.1f}",
        )
        for answer in report.answers
    ]
