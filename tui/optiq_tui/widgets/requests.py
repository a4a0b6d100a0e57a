"""Requests that are being served now."""

from __future__ import annotations

from datetime import datetime

from rich.text import Text

from optiq_client import Status, humanize
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.tones import PHASE


class RequestsPanel(Panel):
    """Adapter, phase and speed of each live request."""

    def __init__(self) -> None:
        super().__init__(
            "requests", "3 Requests", ("request", "adapter", "version", "phase", ">tokens", ">tok/s", ">first", ">age")
        )

    def on_mount(self) -> None:
        """Say how to make one."""
        self.empty.update('No live requests. Make one:\n  [b]optiq generate --adapter NAME "your prompt"[/b]')

    def show(self, status: Status, now: datetime) -> None:
        """Show the live requests of this status."""
        engine = status.engine
        self.show_rows(
            {
                r.request_id: (
                    r.request_id[:12],
                    Text(r.requested_adapter, style="bold")
                    if r.requested_adapter
                    else Text("base", style="italic dim"),
                    self.tones.text(humanize.short_digest(r.adapter_digest)[:8], "text-muted"),
                    self.tones.mark(PHASE, r.phase),
                    str(r.completion_tokens),
                    f"{r.tokens_per_second:.1f}" if r.tokens_per_second else "-",
                    f"{r.time_to_first_token_ms:.0f}ms" if r.time_to_first_token_ms else "-",
                    humanize.since(r.start_time, now),
                )
                for r in status.requests
            },
            count=f"{engine.active_rows} in the batch, {engine.queued_requests} queued" if status.requests else "",
        )
