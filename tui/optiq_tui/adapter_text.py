"""What there is to say about one adapter, in words."""

from __future__ import annotations

from datetime import datetime

from rich.text import Text

from optiq_client import Adapter, QuarantineReason, humanize
from optiq_tui.view import View
from optiq_tui.widgets.tones import ADAPTER, Tones

LABEL = 8


def describe(adapter: Adapter, tones: Tones, now: datetime) -> Text:
    """State, why it is refused, and facts; one of them a line."""
    text = tones.mark(ADAPTER, adapter.state)
    if adapter.version:
        text = Text.assemble(text, f"  v{adapter.version} ", (humanize.short_digest(adapter.digest), "dim"))
    if adapter.pinned:
        text.append("  ⊙ pinned", tones.style("accent"))
    if adapter.quarantine is not None:
        text.append_text(_refused(adapter.quarantine, tones))
    if adapter.warning:
        text.append(f"\n! {adapter.warning}", tones.style("warning"))
    if adapter.held_back_digest:
        text.append(f"\nA rollback holds back what is in the folder ({adapter.held_back_digest[:8]}).", "dim")
    keep = (
        "" if adapter.keep_alive_seconds is None else f" · keep-alive {humanize.duration(adapter.keep_alive_seconds)}"
    )
    changes = f"{adapter.module_count} modules: {', '.join(adapter.targets)}"
    size = f"{humanize.count(adapter.parameter_count)} parameters, {humanize.size(adapter.disk_bytes)}"
    resident = f"{humanize.size(adapter.resident_bytes)} in the engine{keep}"
    routable = f"{adapter.drop_to_routable_ms:.0f} ms after that" if adapter.drop_to_routable_ms else ""
    for label, value in (
        ("changes", changes if adapter.module_count else ""),
        ("size", size if adapter.parameter_count else ""),
        ("memory", resident if adapter.resident_bytes else ""),
        ("leases", str(adapter.active_leases) if adapter.resident_bytes else ""),
        ("format", f"{adapter.format} {adapter.kind}".strip()),
        ("base", adapter.base_model),
        ("changed", f"{humanize.since(adapter.update_time, now)} ago"),
        ("routable", routable),
        ("from", adapter.source_path),
    ):
        if value:
            text.append(f"\n{label:<{LABEL}} ", "dim")
            text.append(value)
    return text


def uses(adapter: Adapter, view: View, tones: Tones) -> Text:
    """Live requests, routes and jobs that have to do with it."""
    text = Text()
    requests = [
        request
        for request in (view.status.requests if view.status else ())
        if any(served.name == adapter.name for served in request.adapters)
    ]
    ids = {adapter.id, f"{adapter.id}@v{adapter.version}"}
    routes = [
        route.id
        for route in view.routing.routes
        if any(target.partition("@")[0] == adapter.id for target in (*route.targets, *route.fallbacks, route.shadow))
    ]
    jobs = [job.id for job in view.jobs if job.adapter_id in ids and not job.state.ended]
    for label, found in (
        ("requests", [f"{r.request_id[:10]} ({r.tenant.rpartition('/')[2]})" for r in requests]),
        ("routes", routes),
        ("jobs", jobs),
    ):
        if found:
            text.append(f"\n{label:<{LABEL}} ", "dim")
            text.append(", ".join(found), tones.style("primary"))
    return text


def _refused(reason: QuarantineReason, tones: Tones) -> Text:
    text = tones.text(f"\n{reason.code}: {reason.message}", "error")
    for label, value in (
        ("file", reason.file),
        ("tensor", reason.tensor),
        ("expected", reason.expected),
        ("found", reason.found),
    ):
        if value:
            text.append(f"\n{label:<{LABEL}} ", "dim")
            text.append(value, tones.style("foreground"))
    return text
