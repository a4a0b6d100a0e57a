"""``optiq jobs``: submit, list, show and watch training jobs."""

from __future__ import annotations

from datetime import datetime

import click

from optiq_core.train.options import module_names, train_options
from optiq_daemon.cli import output
from optiq_daemon.cli.exits import EXIT_OK
from optiq_daemon.cli.job_controls import add_controls, publication_options, schedule_options
from optiq_daemon.cli.job_view import print_job, print_plan, watch_job
from optiq_daemon.cli.options import Connection, complete_job, connection_options, json_option


@click.group(
    epilog="\b\nExamples:\n  optiq jobs submit --adapter units --data ./units --iters 60 --watch\n"
    "  optiq jobs ls\n  optiq jobs pause units-0001\n  optiq jobs set units-0001 --priority 10"
)
def jobs() -> None:
    """Submit, watch, pause and cancel training jobs."""


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
        ("JOB", "ADAPTER", "STATE", "PRIORITY", "STEP", "LOSS", "LEFT", "AGE", "WHY"),
        [
            (
                j.id,
                j.adapter_id,
                str(j.state),
                str(j.schedule.priority),
                f"{j.progress.step}/{j.progress.total_steps}" if j.progress else "-",
                f"{j.progress.train_loss:.3f}" if j.progress else "-",
                humanize.duration(j.progress.seconds_left) if j.progress and not j.state.ended else "-",
                humanize.since(j.create_time),
                j.state_reason,
            )
            for j in found
        ],
        right=("PRIORITY", "STEP", "LOSS", "LEFT", "AGE"),
    )


@jobs.command(epilog="\b\nExamples:\n  optiq jobs show units-0001\n  optiq jobs show units-0001 --json")
@click.argument("job", shell_complete=complete_job)
@connection_options
@json_option
def show(job: str, connection: Connection, as_json: bool) -> None:
    """Show one job."""
    with connection.client() as client:
        print_job(client.training.get(job), as_json)


@jobs.command(epilog="\b\nExamples:\n  optiq jobs watch units-0001\n  optiq jobs watch units-0001 --json > curve.jsonl")
@click.argument("job", shell_complete=complete_job)
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
def watch(job: str, connection: Connection, as_json: bool) -> int:
    """Show a job's progress so far, then live; ends with the job. Ctrl-C stops watching, not the job."""
    with connection.client() as client:
        return watch_job(client, job, as_json)


@jobs.command(epilog="\b\nExamples:\n  optiq jobs logs units-0001\n  optiq jobs logs units-0001 -f -n 500")
@click.argument("job", shell_complete=complete_job)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is added, until the job ends.")
@click.option("--lines", "-n", type=click.IntRange(0, 10_000), default=100, show_default=True, help="To begin with.")
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one string a line.")
def logs(job: str, *, follow: bool, lines: int, connection: Connection, as_json: bool) -> None:
    """Show what a job's trainer wrote, also from a daemon on another machine. Ctrl-C stops following, not the job."""
    with connection.client() as client, client.training.log(job, lines=lines, follow=follow) as groups:
        for group in groups:
            for line in group:
                if as_json:
                    output.print_json(line, line=True)
                else:
                    click.echo(line)


@jobs.command(
    epilog="\b\nExamples:\n  optiq jobs submit --adapter units --data ./units --watch\n"
    "  optiq jobs submit --adapter units --data ./units --max-seq-length 4096 --dry-run\n"
    "  optiq jobs submit --config run.yaml --adapter tone --data ./tone\n"
    "  optiq jobs submit --adapter tone --data ./tone --rank 16 --rank-scaling constant --target-modules q_proj\n"
    "  optiq jobs submit --adapter night --data ./large --at 2026-11-22T23:00 --priority -10\n"
    "  optiq jobs submit --adapter support --data ./week --gate --route support --route-weight 5"
)
@click.option("--adapter", required=True, help="Name to serve the result under.")
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True),
    help="Folder with train.jsonl and optionally valid.jsonl, or one such file.",
)
@train_options(remote=True)
@schedule_options
@publication_options
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
    priority: int | None,
    after: tuple[str, ...],
    not_before: datetime | None,
    route: str,
    route_weight: int,
    gate: bool,
    gate_path: str | None,
    connection: Connection,
    as_json: bool,
    **settings: object,
) -> int:
    """Queue a training job; its adapter is served when it succeeds. [Defaults] are the daemon's."""
    from optiq_client import JobPublication, JobSchedule, RankScaling, TrainingConfig

    config = TrainingConfig(
        data_path=data,
        rank_scaling=RankScaling[rank_scaling.upper()],
        target_modules=module_names(target_modules),
        **settings,  # type: ignore[arg-type]
    )
    with connection.client() as client:
        if dry_run:
            return print_plan(client.training.plan(config), as_json)
        schedule = JobSchedule(priority or 0, after, not_before)
        publication = JobPublication(route, route_weight if route else 0, gate or bool(gate_path), gate_path or "")
        job = client.training.create(adapter, config, schedule=schedule, publication=publication)
        if not follow:
            print_job(job, as_json)
            return EXIT_OK
        output.note(f"queued {job.id}")
        return watch_job(client, job.name, as_json)


add_controls(jobs)
