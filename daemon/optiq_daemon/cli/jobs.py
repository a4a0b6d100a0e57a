"""``optiq jobs``: submit, list, show, watch and cancel training jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from optiq_core.train.options import module_names, train_options
from optiq_daemon.cli import output
from optiq_daemon.cli.exits import EXIT_FAILED, EXIT_OK
from optiq_daemon.cli.options import Connection, complete_job, connection_options, json_option

if TYPE_CHECKING:
    from optiq_client import Client, Job, Progress, TrainingPlan


@click.group(
    epilog="\b\nExamples:\n  optiq jobs submit --adapter units --data ./units --iters 60 --watch\n"
    "  optiq jobs ls\n  optiq jobs cancel units-0001"
)
def jobs() -> None:
    """Submit, watch and cancel training jobs."""


@jobs.command("ls", epilog="\b\nExamples:\n  optiq jobs ls\n  optiq jobs ls --json | jq -r '.[].state'")
@connection_options
@json_option
def ls(connection: Connection, as_json: bool) -> None:
    """List the jobs of a tenant, newest first."""
    from optiq_client import humanize

    with connection.client() as client:
        found = client.training.list()
    if as_json:
        output.print_json(found)
        return
    if not found:
        output.note("no jobs yet: optiq jobs submit --adapter NAME --data FOLDER")
        return
    output.print_table(
        ("JOB", "ADAPTER", "STATE", "STEP", "LOSS", "LEFT", "AGE", "WHY"),
        [
            (
                j.id,
                j.adapter_id,
                str(j.state),
                f"{j.progress.step}/{j.progress.total_steps}" if j.progress else "-",
                f"{j.progress.train_loss:.3f}" if j.progress else "-",
                humanize.duration(j.progress.seconds_left) if j.progress and not j.state.ended else "-",
                humanize.since(j.create_time),
                j.state_reason,
            )
            for j in found
        ],
        right=("STEP", "LOSS", "LEFT", "AGE"),
    )


@jobs.command(epilog="\b\nExamples:\n  optiq jobs show units-0001\n  optiq jobs show units-0001 --json")
@click.argument("job", shell_complete=complete_job)
@connection_options
@json_option
def show(job: str, connection: Connection, as_json: bool) -> None:
    """Show one job."""
    with connection.client() as client:
        _print_job(client.training.get(job), as_json)


@jobs.command(epilog="\b\nExamples:\n  optiq jobs cancel units-0001")
@click.argument("job", shell_complete=complete_job)
@connection_options
@json_option
def cancel(job: str, connection: Connection, as_json: bool) -> None:
    """End a job at its next step."""
    with connection.client() as client:
        _print_job(client.training.cancel(job), as_json)


@jobs.command(epilog="\b\nExamples:\n  optiq jobs watch units-0001\n  optiq jobs watch units-0001 --json > curve.jsonl")
@click.argument("job", shell_complete=complete_job)
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
def watch(job: str, connection: Connection, as_json: bool) -> int:
    """Show a job's progress so far, then live; ends with the job. Ctrl-C stops watching, not the job."""
    with connection.client() as client:
        return _watch(client, job, as_json)


@jobs.command(
    epilog="\b\nExamples:\n  optiq jobs submit --adapter units --data ./units --watch\n"
    "  optiq jobs submit --adapter units --data ./units --max-seq-length 4096 --dry-run\n"
    "  optiq jobs submit --config run.yaml --adapter tone --data ./tone\n"
    "  optiq jobs submit --adapter tone --data ./tone --rank 16 --rank-scaling constant --target-modules q_proj,o_proj"
)
@click.option("--adapter", required=True, help="Name to serve the result under.")
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder with train.jsonl and optionally valid.jsonl.",
)
@train_options(remote=True)
@click.option("--watch", "follow", is_flag=True, help="Show its progress until it ends.")
@click.option("--dry-run", is_flag=True, help="Say what it would take and what would fit; queue nothing.")
@connection_options
@json_option
def submit(
    *,
    adapter: str,
    data: str,
    rank_scaling: str,
    target_modules: str,
    follow: bool,
    dry_run: bool,
    connection: Connection,
    as_json: bool,
    **settings: object,
) -> int:
    """Queue a training job; its adapter is served when it succeeds. [Defaults] are the daemon's."""
    from optiq_client import RankScaling, TrainingConfig

    config = TrainingConfig(
        data_path=data,
        rank_scaling=RankScaling[rank_scaling.upper()],
        target_modules=module_names(target_modules),
        **settings,  # type: ignore[arg-type]
    )
    with connection.client() as client:
        if dry_run:
            return _print_plan(client.training.plan(config), as_json)
        job = client.training.create(adapter, config)
        if not follow:
            _print_job(job, as_json)
            return EXIT_OK
        output.note(f"queued {job.id}")
        return _watch(client, job.name, as_json)


def _print_plan(plan: TrainingPlan, as_json: bool) -> int:
    if as_json:
        output.print_json(plan)
        return EXIT_OK if plan.fits else EXIT_FAILED
    parts = ("base", "adapter", "optimizer", "activation", "temporary", "expected", "bound", "free")
    output.print_fields({name: f"{getattr(plan, f'{name}_bytes') / 1e9:.3f} GB" for name in parts})
    limit = f" of {plan.resource_limit:,}" if plan.resource_limit else ""
    output.print_fields({"resources": f"{plan.live_buffers:,}{limit}", "fullest": plan.peak_at})
    click.echo("fits" if plan.fits else f"does not fit: {'; '.join(plan.reasons)}")
    for advice in plan.advice:
        click.echo(f"  {advice.text}")
    return EXIT_OK if plan.fits else EXIT_FAILED


def _watch(client: Client, name: str, as_json: bool) -> int:
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


def _print_job(job: Job, as_json: bool) -> None:
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
            "rank": f"{config.rank or 8} {config.rank_scaling.lower()}",
            "steps": f"{config.iters or 100} of batch {config.batch_size or 4}",
            "progress": _progress_line(job.progress) if job.progress else "",
            "created": job.create_time.isoformat(timespec="seconds") if job.create_time else "",
            "started": job.start_time.isoformat(timespec="seconds") if job.start_time else "",
            "ended": job.end_time.isoformat(timespec="seconds") if job.end_time else "",
            "attempts": str(job.attempts) if job.attempts > 1 else "",
        }
    )
