"""Adapters of the tenant, and what there is to say about the one under the cursor."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import DataTable, Static

from optiq_client import Adapter, AdapterState, humanize
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.tones import ADAPTER


class AdaptersPanel(Panel):
    """Name, state, version, size and use of each adapter."""

    def __init__(self) -> None:
        super().__init__(
            "adapters", "1 Adapters", ("adapter", "state", "version", "kind", ">rank", ">memory", ">leases")
        )
        self._adapters: dict[str, Adapter] = {}
        self._detail = Static("", classes="detail", id="adapter-detail")

    def compose(self) -> ComposeResult:
        """Table, then the detail of the selected row."""
        yield from super().compose()
        yield self._detail

    @property
    def selected(self) -> Adapter | None:
        """The adapter under the cursor."""
        return self._adapters.get(self.table.selected_key)

    def show(self, adapters: tuple[Adapter, ...]) -> None:
        """Show this list."""
        self._adapters = {a.name: a for a in adapters}
        resident = sum(a.state is AdapterState.RESIDENT for a in adapters)
        self.show_rows(
            {
                a.name: (
                    Text(a.id, style="bold"),
                    self.tones.mark(ADAPTER, a.state),
                    self.tones.text(humanize.short_digest(a.digest)[:8], "text-muted"),
                    a.kind or "-",
                    humanize.ranks(a.min_rank, a.max_rank),
                    humanize.size(a.resident_bytes),
                    str(a.active_leases) if a.active_leases else "-",
                )
                for a in adapters
            },
            count=f"{resident} of {len(adapters)} resident" if adapters else "",
        )
        self._show_detail()

    def show_empty(self, folder: str) -> None:
        """What to do when there are no adapters; ``folder`` is the drop folder of the tenant."""
        self.empty.update(
            Text.assemble(
                "No adapters yet.\n\nCopy an adapter folder here and it is served:\n  ",
                (f"{folder}/NAME", "bold"),
                "\n\nor train one:\n  ",
                ("optiq jobs submit --adapter NAME --data FOLDER", "bold"),
            )
        )

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Another row is under the cursor."""
        self._show_detail()

    def _show_detail(self) -> None:
        adapter = self.selected
        if adapter is None:
            self._detail.update("")
            return
        reason = adapter.quarantine
        if reason is not None:
            text = self.tones.text(f"{reason.code}: {reason.message}\n", "error")
            text.append(" ".join(p for p in (reason.file, reason.tensor) if p))
            if reason.expected or reason.found:
                text.append(f"\nexpected {reason.expected}, found {reason.found}")
        else:
            text = Text(f"{adapter.module_count} modules ({', '.join(adapter.targets)})", style="dim")
            text.append(f" · {humanize.count(adapter.parameter_count)} parameters · {adapter.format}")
            text.append(f"\n{humanize.size(adapter.disk_bytes)} on disk")
            if adapter.drop_to_routable_ms:
                text.append(f" · routable {adapter.drop_to_routable_ms:.0f} ms after the last change")
        self._detail.update(text)
