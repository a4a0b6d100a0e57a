"""``optiq adapters`` that move files: export, upload, merge, fuse."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import Connection, complete_adapter, connection_options, json_option

_TARGET = click.Path(path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(
    epilog="\b\nExamples:\n  optiq adapters export roman -o ./roman\n"
    "  optiq adapters export roman --format peft -o ./roman-peft\n  optiq adapters export roman --version v2 -o ./old"
)
@click.argument("name", shell_complete=complete_adapter)
@click.option("-o", "--output", "target", type=_TARGET, required=True, help="Folder to write.")
@click.option("--format", "form", type=click.Choice(["as-is", "mlx-lm", "peft"]), default="as-is", show_default=True)
@click.option("--version", default="", help="A kept version: a digest or its beginning, v3, or -1.")
@click.option("--overwrite", is_flag=True, help="Replace the folder.")
@connection_options
@json_option
def export(
    *, name: str, target: Path, form: str, version: str, overwrite: bool, connection: Connection, as_json: bool
) -> None:
    """Write an adapter's files to a folder here, as they are or in another program's format."""
    _check_target(target, overwrite)
    with connection.client() as client:
        form = "" if form == "as-is" else form
        digest = client.adapters.export(name, target, form=form, version=version, overwrite=overwrite)
    if as_json:
        output.print_json({"path": str(target), "digest": digest})
    else:
        click.echo(target)


@click.command(epilog="\b\nExamples:\n  optiq adapters upload ./roman --address gpu-box.local:50070")
@click.argument("folder", type=_FOLDER)
@click.option("--name", help="Name to serve it under; the folder's own name if not given.")
@connection_options
@json_option
def upload(folder: Path, name: str | None, connection: Connection, as_json: bool) -> None:
    """Send an adapter folder of this machine to a daemon that may be on another."""
    with connection.client() as client:
        adapter = client.adapters.upload(folder, name or folder.absolute().name)
    output.print_json(adapter) if as_json else output.print_fields({"name": adapter.name, "digest": adapter.digest})


@click.command(epilog="\b\nExamples:\n  optiq adapters merge roman=0.5 units=0.5 --into both")
@click.argument("parts", nargs=-1, required=True, metavar="NAME=WEIGHT...")
@click.option("--into", required=True, help="Name of the new adapter.")
@connection_options
@json_option
def merge(parts: tuple[str, ...], into: str, connection: Connection, as_json: bool) -> None:
    """Serve the weighted sum of several adapters as one: ranks are concatenated, nothing is approximated."""
    weights: dict[str, float] = {}
    for part in parts:
        name, equals, weight = part.rpartition("=")
        try:
            weights[name] = weights.get(name, 0.0) + float(weight)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise click.BadParameter(f"{part!r} is not of the form NAME=WEIGHT", param_hint="NAME=WEIGHT")
    with connection.client() as client:
        adapter = client.adapters.merge(weights, into)
    output.print_json(adapter) if as_json else output.print_fields({"name": adapter.name, "digest": adapter.digest})


@click.command(
    epilog="\b\nExamples:\n  optiq adapters fuse roman -o ./roman-base\n"
    "  optiq adapters fuse roman -o ./roman-base --keep-float"
)
@click.argument("name", shell_complete=complete_adapter)
@click.option("-o", "--output", "target", type=_TARGET, required=True, help="Folder to write.")
@click.option("--keep-float", is_flag=True, help="Keep adapted modules as float16: larger, and nothing is lost.")
@click.option("--overwrite", is_flag=True, help="Replace the folder.")
@connection_options
@json_option
def fuse(*, name: str, target: Path, keep_float: bool, overwrite: bool, connection: Connection, as_json: bool) -> None:
    """Add an adapter into the daemon's base, in this process, and say how much of it survives there.

    Quantizing the sum again loses most of a small adapter. Serving it unfused loses nothing.
    """
    from optiq_core.base import setup_device

    _check_target(target, overwrite)
    with tempfile.TemporaryDirectory() as folder, connection.client() as client:
        base = Path(client.runtime.status().base.path)
        client.adapters.export(name, Path(folder) / "adapter")
        setup_device()
        from optiq_core.adapters.fuse import fuse_adapter

        report = fuse_adapter(base, Path(folder) / "adapter", target, keep_float=keep_float, overwrite=overwrite)
    if report.warning:
        output.note(f"warning: {report.warning}")
    if as_json:
        output.print_json({"path": str(target), **dataclasses.asdict(report), "warning": report.warning})
    else:
        click.echo(target)


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise click.UsageError(f"{target} exists; --overwrite replaces it")


COMMANDS = (export, upload, merge, fuse)
