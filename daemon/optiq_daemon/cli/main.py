"""The root of ``optiq``: finds commands by entry point and imports only the one that is called."""

from __future__ import annotations

import os
import sys
from importlib import metadata

import click

from optiq_daemon.cli.entry_points import EntryPointGroup
from optiq_daemon.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, exit_code_of

GROUP = "optiq.commands"

# What `optiq --help` says, so that it needs no command's module. A test compares these with the commands.
SUMMARIES = {
    "serve": "Run the daemon in this terminal until Ctrl-C.",
    "daemon": "Start, stop and look at a daemon in the background.",
    "demo": "Run the whole loop in a temporary home.",
    "tui": "Watch and steer adapters, requests, jobs and routes in a dashboard.",
    "ps": "Show the base, the engine, resident adapters and live requests.",
    "generate": "Generate text with an adapter.",
    "call": "Call SERVICE/METHOD with a REQUEST in JSON, or list the methods.",
    "chat": "Talk with an adapter, and switch adapters on the way.",
    "adapters": "List, import, load and remove adapters.",
    "jobs": "Submit, watch, pause and cancel training jobs.",
    "lora": "Train LoRA adapters and inspect them.",
    "plan": "Predict the memory of a training run on BASE, before anything is allocated.",
    "data": "Check training data before training on it.",
    "kv-cache": "Measure how sensitive each layer's KV cache is, and write which layer keeps it in how many bits.",
    "convert": "Quantize MODEL with more bits where it is sensitive.",
    "eval": "Score MODEL: perplexity on a text, KL to a reference, exact-match accuracy on questions.",
    "routes": "Send a name's requests to several adapter versions by weight.",
    "tenants": "Make tenants and tokens, set weights and quotas, read usage.",
    "experiment": "Compare rank and precision schemes on checkable tasks.",
    "bench": "Measure against a named baseline in one run.",
    "logs": "Show the logs of daemon, engine and trainer, in order of time.",
    "doctor": "Look at versions, settings, disk, socket, daemon, engine, device, BLAS and memory ceilings.",
    "service": "Start the daemon at login.",
    "completion": "Print the completion script of a shell.",
    "config": "Show the settings and where they come from.",
}

EPILOG = """\b
Examples:
  optiq serve                                   run the daemon
  cp -r my-adapter ~/.local/share/optiq/adapters/default/roman
  optiq generate --adapter roman "What is 12?"  use it
  optiq tui                                     watch
\b
Completion: eval "$(optiq completion zsh)"  (or bash, fish)
\b
Exit codes: 0 ok, 1 failed, 2 usage, 3 try again.
"""


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"optiq {metadata.version('optiq')}")
        ctx.exit()


@click.group(
    cls=EntryPointGroup,
    entry_points=GROUP,
    summaries=SUMMARIES,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def root(ctx: click.Context) -> None:
    """One quantized base, an adapter per request, training in the same daemon."""
    from optiq_daemon.cli.options import default_address

    ctx.obj = default_address  # commands of other packages find the daemon with it


def main(args: list[str] | None = None) -> int:
    """Run ``optiq``; the exit code. Errors are one line on stderr, never a stack trace."""
    try:
        result = root.main(args, prog_name="optiq", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        code = _report(error)
        if code is None:
            raise
        return code
    return result if isinstance(result, int) else EXIT_OK


def _report(error: BaseException) -> int | None:
    """Say what went wrong; the exit code, or None for a bug, which deserves its stack trace."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show(sys.stderr)
        return EXIT_USAGE if isinstance(error, click.UsageError) else error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):  # `optiq adapters ls | head`
        # The interpreter's own flush at exit would fail once more, and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    code = exit_code_of(error)
    if code is not None:
        click.echo(f"Error: {error}", err=True)
    return code
