"""``optiq jobs pause | resume | set | cancel | publish | rm``: what one does with a job that is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.job_view import print_job
from optiq_daemon.cli.options import Connection, complete_job, connection_options, json_option

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class When(click.ParamType[datetime]):
    """A time: `2026-11-22T18:00` (this machine's zone), with an offset or Z, or from now: `+90m`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        if match := re.fullmatch(r"\+(\d+(?:\.\d+)?)([smhd])", value):
            return datetime.now(UTC) + timedelta(**{_UNITS[match[2]]: float(match[1])})
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except ValueError:
            self.fail(f"{value!r} is no time; write 2026-11-22T18:00, or +90m for in ninety minutes", param, ctx)


def schedule_options(command: F) -> F:
    """Add --priority, --after and --at; None and empty mean not given."""
    for option in (
        click.option("--at", "not_before", type=When(), help="Start no earlier: 2026-11-22T18:00, or +90m."),
        click.option(
            "--after", multiple=True, metavar="JOB", shell_complete=complete_job, help="Only when JOB succeeded."
        ),
        click.option("--priority", type=click.IntRange(-100, 100), help="Among your own jobs, higher first [0]."),
    ):
        command = option(command)
    return command


def publication_options(command: F) -> F:
    """Add --route, --route-weight, --gate and --gate-data."""
    for option in (
        click.option(
            "--gate-data",
            "gate_path",
            type=click.Path(exists=True, dir_okay=False),
            help="JSONL file to score on; implies --gate [the data's valid.jsonl].",
        ),
        click.option("--gate", is_flag=True, help="Publish only if its loss beats the present version's."),
        click.option("--route-weight", type=click.IntRange(1, 100), default=5, show_default=True, help="Of 100."),
        click.option("--route", default="", help="Give the new version only --route-weight of this route's requests."),
    ):
        command = option(command)
    return command


def add_controls(group: click.Group) -> None:
    """Add the commands to `optiq jobs`."""
    for command in (pause, resume, change, cancel, publish, remove):
        group.add_command(command)


@click.command(epilog="\b\nExamples:\n  optiq jobs pause units-0001")
@click.argument("job", shell_complete=complete_job)
@connection_options
@json_option
def pause(job: str, connection: Connection, as_json: bool) -> None:
    """Hold a job. One that runs saves a checkpoint at its next step and gives its memory back."""
    with connection.client() as client:
        print_job(client.training.pause(job), as_json)


@click.command(epilog="\b\nExamples:\n  optiq jobs resume units-0001")
@click.argument("job", shell_complete=complete_job)
@connection_options
@json_option
def resume(job: str, connection: Connection, as_json: bool) -> None:
    """Let a held job go on from its checkpoint."""
    with connection.client() as client:
        print_job(client.training.resume(job), as_json)


@click.command(
    "set", epilog="\b\nExamples:\n  optiq jobs set units-0001 --priority 10\n  optiq jobs set units-0001 --at +2h"
)
@click.argument("job", shell_complete=complete_job)
@schedule_options
@click.option("--after-none", is_flag=True, help="It comes after no other job any more.")
@connection_options
@json_option
def change(
    job: str,
    *,
    priority: int | None,
    after: tuple[str, ...],
    after_none: bool,
    not_before: datetime | None,
    connection: Connection,
    as_json: bool,
) -> None:
    """Change when a job runs; one that runs already is not stopped."""
    if after and after_none:
        raise click.UsageError("--after and --after-none exclude each other")
    if priority is None and not after and not after_none and not_before is None:
        raise click.UsageError("nothing to change: give --priority, --after, --after-none or --at")
    with connection.client() as client:
        chosen = () if after_none else after or None
        print_job(client.training.update(job, priority=priority, after=chosen, not_before=not_before), as_json)


@click.command(epilog="\b\nExamples:\n  optiq jobs cancel units-0001")
@click.argument("job", shell_complete=complete_job)
@connection_options
@json_option
def cancel(job: str, connection: Connection, as_json: bool) -> None:
    """End a job at its next step."""
    with connection.client() as client:
        print_job(client.training.cancel(job), as_json)


@click.command(epilog="\b\nExamples:\n  optiq jobs publish units-0001")
@click.argument("job", shell_complete=complete_job)
@connection_options
@json_option
def publish(job: str, connection: Connection, as_json: bool) -> None:
    """Publish the adapter of a job that its gate kept."""
    with connection.client() as client:
        print_job(client.training.publish(job), as_json)


@click.command("rm", epilog="\b\nExamples:\n  optiq jobs rm units-0001")
@click.argument("job", shell_complete=complete_job)
@connection_options
@json_option
def remove(job: str, connection: Connection, as_json: bool) -> None:
    """Remove a job that has ended, with its checkpoints. Its adapter stays."""
    with connection.client() as client:
        client.training.delete(job)
    if as_json:
        output.print_json({"deleted": [job]})
    else:
        output.note(f"removed {job}")
