"""``optiq demo``: the main job, end to end, on the embedded model."""

from __future__ import annotations

import signal

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import json_option


@click.command(
    epilog="\b\nExamples:\n  optiq demo\n  optiq demo --json > demo.json\n"
    "  optiq demo --keep      # leaves the daemon running, to look around"
)
@click.option("--keep", is_flag=True, help="Leave the daemon running and say how to reach it.")
@json_option
def demo(*, keep: bool, as_json: bool) -> None:
    """Run the whole loop in a temporary home: train two adapters, drop a third, serve all of them in one batch.

    Takes a few minutes on two CPU cores. Progress is on stderr, the result on stdout.
    """
    from optiq_core.base import EMBEDDED_MIXED
    from optiq_daemon.demo.host import DaemonHost
    from optiq_daemon.demo.narrator import Narrator
    from optiq_daemon.demo.run import STEPS, answers_table, run_demo

    # Told to end, it ends as on Ctrl-C: with the daemon stopped and the temporary home removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # The ready-made adapter was trained on the same model at the precision of its file, and says so.
    host = DaemonHost(model=EMBEDDED_MIXED, settings={"base_mismatch": "warn"})
    finished = False
    try:
        report = run_demo(host, Narrator(STEPS))
        finished = True
    finally:
        if not (keep and finished):
            host.stop()
    if as_json:
        output.print_json(report)
    else:
        output.print_table(
            ("PROMPT", "ADAPTER", "DIGEST", "ANSWER", "FIRST TOKEN", "TOKENS/S"),
            answers_table(report),
            right=("FIRST TOKEN", "TOKENS/S"),
        )
        click.echo()
        output.print_table(
            ("TASK", "BASE", "ADAPTER", "OF"),
            [(name, str(s["base"]), str(s["adapter"]), str(s["n"])) for name, s in report.scores.items()],
            right=("BASE", "ADAPTER", "OF"),
        )
    if keep:
        adapter = next(iter(report.scores))
        output.note(
            f"\nThe daemon goes on as process {host.pid}; `kill {host.pid}` ends it.\n"
            f"Look at it:      optiq tui --home {host.home}\n"
            f"Drop adapters:   cp -r ADAPTER {host.drop_folder}/\n"
            "Call it:\n"
            "    from optiq_client import Client\n"
            f"    with Client(home={str(host.home)!r}) as client:\n"
            f'        messages = [{{"role": "user", "content": "12"}}]\n'
            f"        for text in client.generate(messages, adapter={adapter!r}):\n"
            '            print(text, end="", flush=True)'
        )
