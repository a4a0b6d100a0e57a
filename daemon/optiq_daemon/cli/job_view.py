"""Jobs, plans and progress as text or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.exits import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from datetime import datetime

    from optiq_client import Client, Job, Progress, TrainingPlan


def print_plan(plan: TrainingPlan, as_json: bool) -> int:
    if as_json:
        output.print_json(plan)
        return EXIT_OK if plan.fits else EXIT_FAILED
    parts = ("base", "adapter", "optimizer", "activation", "temporary", "expected", "bound", "free")
    output.print_fields({name: f"{getattr(plan, f'{name}_bytes') / 1e9:.3f} GB" for name in parts})
    limit = f" of {plan.resource_limit:,}" if plan.resource_limit else ""
    output.print_fields({"resources": f"{plan.live_buffers:,}{limit}", "fullest": plan.peak_at})
    learned = f"from {plan.calibration_runs} runs; margin {plan.calibration_margin:.1%}"
    output.print_fields({"calibration": f"factor {plan.calibration_factor:.3f}, {learned}"})
    for note in plan.notes:
        output.print_fields({"note": note})
    click.echo("fits" if plan.fits else f"does not fit: {'; '.join(plan.reasons)}")
    for advice in plan.advice:
        click.echo(f"  {advice.text}")
    return EXIT_OK if plan.fits else EXIT_FAILED


def watch_job(client: Client, name: str, as_json: bool) -> int:
    last: Job | None = None
    with client.training.watch(name) as updates:
        for update in updates:
            if as_json:
                output.print_json(update, line=True)
            else:
                if update.progress is not None:
                    click.echo(_progress_line(update.progress))
                if last is None or last.state is not update.job.state:
                    output.note(_state_line(update.job))
            last = update.job
    if last is None or not last.state.ended:
        last = client.training.get(name)
    return EXIT_OK if last.state == "SUCCEEDED" else EXIT_FAILED


def _state_line(job: Job) -> str:
    reason = f": {job.state_reason}" if job.state_reason else ""
    return f"{job.id} {job.state.lower()}{reason}"


def _progress_line(progress: Progress) -> str:
    from optiq_client import humanize

    valid = f"  valid {progress.valid_loss:.3f}" if progress.valid_loss is not None else ""
    return (
        f"step {progress.step:>4}/{progress.total_steps}  loss {progress.train_loss:.3f}{valid}  "
        f"{progress.tokens_per_second:.0f} tokens/s  {humanize.duration(progress.seconds_left)} left  "
        f"peak {humanize.size(progress.peak_memory_bytes)}"
    )


def print_job(job: Job, as_json: bool) -> None:
    if as_json:
        output.print_json(job)
        return
    config = job.config
    output.print_fields(
        {
            "name": job.name,
            "state": str(job.state),
            "why": job.state_reason,
            "adapter": job.adapter_id,
            "digest": job.adapter_digest,
            "data": config.data_path,
            "priority": str(job.schedule.priority) if job.schedule.priority else "",
            "after": ", ".join(name.rpartition("/")[2] for name in job.schedule.after),
            "not before": _time(job.schedule.not_before),
            "reduced": job.reduced,
            "plan": _plan_line(job.plan) if job.plan else "",
            "rank": f"{config.rank or 8} {config.rank_scaling.lower()}",
            "steps": f"{config.iters or 100} of batch {config.batch_size or 4}",
            "progress": _progress_line(job.progress) if job.progress else "",
            "created": _time(job.create_time),
            "started": _time(job.start_time),
            "ended": _time(job.end_time),
            "attempts": str(job.attempts) if job.attempts > 1 else "",
        }
    )
    if job.state == "REFUSED" and job.plan is not None:
        for advice in job.plan.advice:
            click.echo(f"  {advice.text}")


def _time(when: datetime | None) -> str:
    return when.isoformat(timespec="seconds") if when else ""


def _plan_line(plan: TrainingPlan) -> str:
    limit = f" of {plan.resource_limit:,}" if plan.resource_limit else ""
    return f"at most {plan.bound_bytes / 1e9:.3f} GB, {plan.live_buffers:,}{limit} resources"
