"""``optiq ps``: what is resident and what runs now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import Connection, connection_options, json_option

if TYPE_CHECKING:
    from optiq_client import Adapter, Status


@click.command(epilog="\b\nExamples:\n  optiq ps\n  optiq ps --json | jq .engine.tokens_per_second")
@connection_options
@json_option
def ps(connection: Connection, as_json: bool) -> None:
    """Show the base, the engine, resident adapters and live requests."""
    from optiq_client import AdapterState

    with connection.client() as client:
        status = client.runtime.status()
        residents = [a for a in client.adapters.list() if a.state is AdapterState.RESIDENT]
    if as_json:
        output.print_json({**output.plain(status), "residents": residents})
        return
    _print_summary(status)
    if residents:
        click.echo()
        _print_residents(residents)
    if status.requests:
        click.echo()
        _print_requests(status)


def _print_summary(status: Status) -> None:
    from optiq_client import humanize

    base, engine, device = status.base, status.engine, status.device
    running = "".join(f", {job.rpartition('/')[2]} runs" for job in status.running_jobs)
    quarantined = status.quarantined_adapter_count
    output.print_fields(
        {
            "base": f"{base.model}  {humanize.size(base.memory_bytes)}  {base.bits_per_weight:.1f} bits a weight  "
            f"{base.layer_count} layers",
            "device": f"{device.kind}  {device.name}  {device.compute}",
            "engine": f"{engine.state.lower()}  pid {engine.pid}  {engine.restarts} restarts"
            + (f"  {engine.message}" if engine.message else ""),
            "speed": f"{engine.tokens_per_second:.1f} tokens/s  {engine.active_rows} rows  "
            f"{engine.queued_requests} queued  at most {engine.max_adapters_in_one_step} adapters in one step",
            "memory": f"{humanize.size(status.process_memory_bytes)} of {humanize.size(status.memory_limit_bytes)}  "
            f"adapters {humanize.size(engine.adapter_bytes)}",
            "kv cache": f"{humanize.size(engine.kv_cache_bytes)} of {humanize.size(engine.kv_budget_bytes)}  "
            f"{engine.kv_cache or 'float'}"
            + (f"  {humanize.size(int(engine.kv_bytes_per_token))} a token" if engine.kv_bytes_per_token else ""),
            "prefixes": f"{humanize.size(engine.prefix_cache_bytes)}  {engine.prefix_cache_entries} kept  "
            f"{engine.prefix_hits} hits  {engine.prefix_hit_tokens} tokens not computed again",
            "adapters": f"{status.adapter_count}, {engine.resident_adapters} resident"
            + (f", {quarantined} quarantined" if quarantined else ""),
            "jobs": f"{status.queued_jobs} queued{running}",
            "home": status.home_path,
            "up": humanize.since(status.start_time),
        }
    )


def _print_residents(residents: list[Adapter]) -> None:
    from optiq_client import humanize

    output.print_table(
        ("ADAPTER", "DIGEST", "KIND", "RANK", "MEMORY", "REQUESTS"),
        [
            (
                a.id,
                humanize.short_digest(a.digest),
                a.kind,
                humanize.ranks(a.min_rank, a.max_rank),
                humanize.size(a.resident_bytes),
                str(a.active_leases),
            )
            for a in residents
        ],
        right=("RANK", "MEMORY", "REQUESTS"),
    )


def _print_requests(status: Status) -> None:
    from optiq_client import humanize

    output.print_table(
        ("REQUEST", "ADAPTER", "PHASE", "TOKENS", "TOKENS/S", "AGE"),
        [
            (
                r.request_id,
                f"{r.requested_adapter} > {r.route_target}" if r.route else r.requested_adapter or "(base)",
                f"queued ({r.queue_position})" if r.queue_position else r.phase,
                str(r.completion_tokens),
                f"{r.tokens_per_second:.1f}",
                humanize.since(r.start_time),
            )
            for r in status.requests
        ],
        right=("TOKENS", "TOKENS/S", "AGE"),
    )
