"""``optiq serve`` and ``optiq daemon``: run the daemon in this terminal, or in the background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from optiq_daemon.config import flag_of

_OPTIONS: tuple[tuple[str, str, type, str], ...] = (
    ("model", "MODEL", str, "Base: 'embedded' (SmolLM2-135M), an mlx-lm folder, a .gguf file, or a hub id."),
    ("load-in", "PRECISION", str, "Quantize an unquantized base at load: 4bit, 6bit, 8bit or mxfp4."),
    ("home", "DIR", str, "Folder of this daemon: sockets, drop folder, store, jobs, logs. One daemon per home."),
    ("address", "ADDR", str, "Also listen here: unix:/path, or host:port for gRPC over TCP (not HTTP)."),
    ("http-host", "HOST", str, "Address of the HTTP gateway [127.0.0.1]; others than loopback need --tls and tokens."),
    ("http-port", "PORT", int, "Also serve HTTP here: OpenAI's and Anthropic's APIs, /metrics, /healthz."),
    ("tls", "HOW", str, "TLS of a TCP address: off, generate (a certificate in HOME/tls), or files."),
    ("tls-certificate", "FILE", str, "With --tls files: PEM file with the certificate chain."),
    ("tls-private-key", "FILE", str, "With --tls files: PEM file with the private key."),
    ("tls-client-ca", "FILE", str, "Clients on TCP must show a certificate that this PEM file's CA signed (mTLS)."),
    ("settle-ms", "MS", int, "Milliseconds that a dropped folder must be still before it is taken."),
    ("max-batch", "N", int, "Most requests decoded in one step; more rows, more tokens per second and memory."),
    ("max-queue", "N", int, "Most requests waiting for a place in the batch; more get RESOURCE_EXHAUSTED."),
    (
        "kv",
        "METHOD:BITS[:WINDOW]",
        str,
        "KV cache: float, or compressed: turboquant:4, turboquant:3.5, rotated:4, affine:8. WINDOW: recent tokens that "
        "are kept as they came [64; affine: 0].",
    ),
    ("kv-config", "FILE", str, "KV cache of each layer: a kv_config.json as `optiq kv-cache` writes it."),
    ("prefill-chunk", "N", int, "Most prompt tokens processed at once; fewer while requests decode."),
    ("kv-cache-mb", "MB", int, "KV caches of all running requests; more wait. 0: half of what the base leaves free."),
    ("prefix-cache-mb", "MB", int, "KV caches of earlier prompts, for prompts that begin the same way; 0: none."),
    ("default-max-tokens", "N", int, "Tokens to generate at most, where a request does not say."),
    ("default-temperature", "T", float, "Temperature where a request does not say; 0 for greedy."),
    ("default-top-p", "P", float, "Nucleus mass where a request does not say; 1 for off."),
    ("default-top-k", "K", int, "Most likely tokens to keep where a request does not say; 0 for off."),
    ("reconcile-interval-s", "S", float, "Seconds between looks at the drop folder for changes without an event."),
    ("watch", "HOW", str, "events or polling: how changes of the drop folder are noticed."),
    ("base-mismatch", "HOW", str, "refuse or warn: adapters that record the digest of another base."),
    ("keep-versions", "N", int, "Versions that each adapter name keeps for rollback, the served one included."),
    ("keep-versions-days", "D", float, "Days that a version is kept after another took its place; 0: no limit."),
    ("adapter-budget-mb", "MB", float, "Adapters in the engine at a time; 0: a quarter of what the base leaves free."),
    ("keep-alive-s", "S", float, "Seconds without a request after which an adapter leaves the engine; 0: never."),
    ("log-level", "LEVEL", str, "debug, info, warning or error."),
    ("log-format", "FORM", str, "text or json."),
    ("drain-seconds", "S", float, "Seconds that running requests get to finish when the daemon is told to stop."),
)


def _daemon_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, metavar, kind, text in reversed(_OPTIONS):
        key = name.replace("-", "_")
        command = click.option(flag_of(key), key, metavar=metavar, type=kind, default=None, help=text)(command)
    return click.option(
        "--adapter",
        "adapters",
        metavar="[NAME=]PATH",
        multiple=True,
        help="Import this adapter folder at start; NAME defaults to the folder's. May be given several times.",
    )(command)


@click.command(
    epilog="\b\nEvery option is also a setting: OPTIQ_MAX_BATCH=32, or max_batch = 32 in config.toml\n"
    "('optiq config show --origin' says where each value comes from).\n\n"
    "\b\nExamples:\n  optiq serve\n  optiq serve --host 127.0.0.1 --port 8080\n"
    "  optiq serve --model ./my-base --adapter ./my-adapter\n"
    "  optiq serve --model mlx-community/SmolLM2-135M-Instruct --adapter roman=./runs/17/adapter\n"
    "  cp -r ./my-adapter ~/.local/share/optiq/adapters/default/mine   # installs while it runs"
)
@_daemon_options
def serve(adapters: tuple[str, ...], **flags: Any) -> None:
    """Run the daemon in this terminal until Ctrl-C.

    One base model stays in memory; adapters are mounted by copying their folders into the drop folder
    (HOME/adapters/default/NAME), and unmounted by deleting them. Ctrl-C lets running requests finish first; a second
    Ctrl-C does not.
    """
    from optiq_core.errors import OptiqError
    from optiq_daemon.config import load_configuration
    from optiq_daemon.logs import configure_logging

    try:
        configuration = load_configuration(flags)
        mounts = _mounts(adapters)
        configure_logging(configuration.settings)
        from optiq_daemon.server import run

        run(configuration, mounts)
    except OptiqError as error:
        raise click.ClickException(str(error)) from None


@click.group(epilog="\b\nExamples:\n  optiq daemon start --model ./my-base\n  optiq daemon status\n  optiq daemon stop")
def daemon() -> None:
    """Start, stop and look at a daemon in the background."""


@daemon.command(epilog="\b\nExamples:\n  optiq daemon start\n  OPTIQ_HOME=/tmp/o optiq daemon start --wait 300")
@_daemon_options
@click.option("--wait", "wait_s", metavar="S", type=float, default=600.0, show_default=True, help="Seconds to wait.")
def start(adapters: tuple[str, ...], wait_s: float, **flags: Any) -> None:
    """Start a daemon in the background and wait until it serves."""
    from optiq_core.errors import OptiqError
    from optiq_daemon.background import spawn, wait_until_serving
    from optiq_daemon.config import load_configuration

    try:
        settings = load_configuration(flags).settings
        _mounts(adapters)
        arguments = [f"{flag_of(key)}={value}" for key, value in flags.items() if value is not None]
        arguments += [f"--adapter={_absolute(adapter)}" for adapter in adapters]
        click.echo(f"starting a daemon for {settings.home} (log: {settings.home}/logs/daemon.log)", err=True)
        pid = wait_until_serving(settings, spawn(settings, arguments), wait_s)
    except OptiqError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"serving, pid {pid}", err=True)


@daemon.command(epilog="\b\nExamples:\n  optiq daemon stop")
@click.option("--home", metavar="DIR", default=None, help="Folder of the daemon.")
@click.option("--wait", "wait_s", metavar="S", type=float, default=60.0, show_default=True, help="Seconds to wait.")
def stop(home: str | None, wait_s: float) -> None:
    """Let running requests finish, save the training checkpoint, and stop."""
    from optiq_core.errors import OptiqError
    from optiq_daemon.background import stop_daemon
    from optiq_daemon.config import load_configuration

    try:
        pid = stop_daemon(load_configuration({"home": home}).settings.home_path, wait_s)
    except OptiqError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"stopped pid {pid}" if pid else "no daemon is running", err=True)


@daemon.command(epilog="\b\nExamples:\n  optiq daemon status\n  optiq daemon status --json | jq .running")
@click.option("--home", metavar="DIR", default=None, help="Folder of the daemon.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def status(home: str | None, as_json: bool) -> None:
    """Say whether a daemon runs for this home; exit code 3 if none does."""
    import json

    from optiq_core.errors import OptiqError
    from optiq_daemon.background import running_pid
    from optiq_daemon.config import load_configuration

    try:
        settings = load_configuration({"home": home}).settings
    except OptiqError as error:
        raise click.ClickException(str(error)) from None
    pid = running_pid(settings.home_path)
    if as_json:
        click.echo(json.dumps({"running": pid != 0, "pid": pid or None, "home": settings.home}))
    else:
        click.echo(f"running, pid {pid}, home {settings.home}" if pid else f"not running, home {settings.home}")
    raise SystemExit(0 if pid else 3)


def _mounts(adapters: tuple[str, ...]) -> dict[Any, Path]:
    from optiq_daemon.names import DEFAULT_TENANT, ID_RULE, AdapterKey, is_id

    mounts = {}
    for text in adapters:
        name, path = _split(text)
        if not is_id(name):
            raise click.UsageError(f"--adapter {text}: {name!r} is not an adapter id ({ID_RULE}); write NAME=PATH")
        if not path.is_dir():
            raise click.UsageError(f"--adapter {text}: {path} is not a folder")
        mounts[AdapterKey(DEFAULT_TENANT, name)] = path
    return mounts


def _split(text: str) -> tuple[str, Path]:
    name, equals, rest = text.partition("=")
    path = Path(rest if equals else text).expanduser().absolute()
    return (name if equals else path.name.lower().replace("_", "-")), path


def _absolute(text: str) -> str:
    name, path = _split(text)
    return f"{name}={path}"
