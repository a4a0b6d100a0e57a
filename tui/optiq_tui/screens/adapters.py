"""2 Adapters: all of a tenant's, and everything about the one under the cursor."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input

from optiq_client import Adapter, AdapterState, humanize
from optiq_tui.adapter_text import describe, uses
from optiq_tui.messages import Look
from optiq_tui.screens.board import Board
from optiq_tui.screens.choose import Choose
from optiq_tui.view import Part, View
from optiq_tui.widgets.chart import Chart
from optiq_tui.widgets.classes import mark
from optiq_tui.widgets.columns import Column
from optiq_tui.widgets.filter_box import FilterBox
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.table import Table
from optiq_tui.widgets.tones import ADAPTER
from optiq_tui.widgets.words import Words

LAYER = re.compile(r"\.(\d+)\.")
ACTIONS = {"toggle_load": "load", "toggle_pin": "pin", "roll_back": "roll back"}


class Adapters(Board):
    """A filtered, sorted list, and detail: ranks per layer, versions, who uses it, why it is refused."""

    NAME = "adapters"
    HELP = "Adapters of this tenant. `/` filters, `s` sorts, `enter` gives the detail the whole screen."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", id="adapters.filter", tooltip="Filter the list", key_display="/"),
        Binding("l", "toggle_load", "Load", id="adapters.load", tooltip="Load or unload the adapter"),
        Binding("p", "toggle_pin", "Pin", id="adapters.pin", tooltip="Keep the adapter in the engine, or let it go"),
        Binding("b", "roll_back", "Roll back", id="adapters.rollback", tooltip="Serve another version of the adapter"),
        Binding("enter", "zoom", "Detail", id="adapters.zoom", tooltip="Detail on the whole screen, and back"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.filter = FilterBox("by name, state, kind, target", id="adapters-filter")
        self.table: Table[Adapter] = Table(
            (
                Column("adapter", lambda a: Text(a.id, style="bold"), 14, flex=3, sort=lambda a: a.id),
                Column("state", self._state, 13, sort=lambda a: (a.state, a.id)),
                Column("ver", lambda a: f"v{a.version}" if a.version else "-", 3, drop=5, sort=lambda a: a.version),
                Column("kind", lambda a: a.kind or "-", 4, drop=4, sort=lambda a: a.kind),
                Column("rank", _ranks, 5, right=True, drop=3, sort=lambda a: a.max_rank),
                Column("memory", _memory, 8, right=True, drop=1, sort=lambda a: a.resident_bytes),
                Column("leases", _leases, 6, right=True, drop=2, sort=lambda a: a.active_leases),
                Column("used", self._used, 6, right=True, drop=6, sort=lambda a: a.last_use_time is not None),
            ),
            lambda a: a.name,
            id="adapters-table",
        )
        self.facts = Words(id="adapter-facts")
        self.chart = Chart(id="ranks")
        self.history = Words(id="adapter-history")
        self._adapters: tuple[Adapter, ...] = ()

    def body(self) -> Iterator[Widget]:
        """List and detail."""
        yield Container(
            Panel("Adapters", self.filter, self.table, id="adapters"),
            Container(
                Panel("Adapter", VerticalScroll(self.facts, id="adapter-scroll", can_focus=False), id="adapter"),
                Panel("Ranks per layer", self.chart, id="adapter-ranks"),
                Panel("Versions", Vertical(self.history), id="adapter-versions"),
                id="adapter-detail",
            ),
            id="adapters-body",
        )

    def home(self) -> Widget | None:
        """The list."""
        return self.table

    def look(self) -> Look:
        """The adapter under the cursor; routes, because they use adapters."""
        selected = self.table.selected
        return Look(adapter=selected.name if selected else "", routing=True)

    def show(self, view: View, parts: frozenset[Part]) -> None:
        """Draw what has changed."""
        if parts & {Part.ADAPTERS, Part.STATUS}:
            self._adapters = view.adapters
            folder = view.status.adapters_path if view.status else ""
            self.table.empty_text = (
                Text("No adapter matches.")
                if view.adapters
                else Text.assemble(
                    "No adapters yet.\n\nCopy an adapter folder here and it is served:\n  ",
                    (f"{folder}/{self.optiq.tenant}/NAME", "bold"),
                    "\n\nor train one:\n  ",
                    ("optiq jobs submit --adapter NAME --data FOLDER", "bold"),
                )
            )
            self._show_list()
        if parts & {Part.ADAPTERS, Part.STATUS, Part.DETAIL, Part.ROUTING, Part.JOBS}:
            self._show_detail(view)

    def _show_list(self) -> None:
        box = self.filter
        shown = [a for a in self._adapters if not box.value or box.matches(_searched(a))]
        self.table.show(shown)
        resident = sum(a.state is AdapterState.RESIDENT for a in self._adapters)
        of = f"{len(shown)} of {len(self._adapters)}" if box.value else f"{len(self._adapters)}"
        self.query_one("#adapters", Panel).count(f"{of}, {resident} resident" if self._adapters else "")

    def _show_detail(self, view: View) -> None:
        adapter = self.table.selected
        mark(self, adapter is None, "-nothing")
        if adapter is None:
            return
        self.query_one("#adapter", Panel).rename(adapter.id)
        detail = view.detail if view.detail and view.detail.name == adapter.name else None
        facts = describe(adapter, self.tones, self.optiq.now())
        facts.append_text(uses(adapter, view, self.tones))
        self.facts.update(facts)
        self._show_ranks(detail.ranks if detail else {})
        lines = []
        for version in detail.versions if detail else ():
            now = self.tones.text("● " if version.current else "  ", "success")
            line = Text.assemble(now, (f"v{version.number:<3} ", "bold"), version.digest[:8])
            published = humanize.since(version.publish_time, self.optiq.now())
            line.append(f"  {version.origin:<8} {published:>6} ago", "dim")
            line.append(f"  rank {humanize.ranks(version.min_rank, version.max_rank)}", "dim")
            lines.append(line)
        self.history.update(Text("\n").join(lines) if lines else Text(detail.error if detail else "", style="dim"))

    def _show_ranks(self, ranks: Mapping[str, int]) -> None:
        layers: dict[int, list[int]] = defaultdict(list)
        for path, rank in ranks.items():
            if found := LAYER.search(path):
                layers[int(found[1])].append(rank)
        last = max(layers, default=-1)
        self.chart.show_bars({str(n): max(layers.get(n, [0])) for n in range(last + 1)})
        panel = self.query_one("#adapter-ranks", Panel)
        per_layer = {len(found) for found in layers.values()}
        panel.count(f"{sum(ranks.values())} in all" if per_layer else "")
        panel.footnote(f"each the largest of {max(per_layer)} modules" if per_layer and max(per_layer) > 1 else "")

    # Messages

    @on(Table.Highlighted, "#adapters-table")
    def _highlighted(self) -> None:
        self._show_detail(self.optiq.view)
        self.send_look()
        self.refresh_keys()

    @on(Input.Changed, "#adapters-filter")
    def _filtered(self) -> None:
        self._show_list()
        self._show_detail(self.optiq.view)

    @on(Input.Submitted, "#adapters-filter")
    def _filter_done(self) -> None:
        self.table.focus()

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Actions appear where they mean something; with --readonly never."""
        if action in ACTIONS:
            return not self.optiq.readonly and self.table.selected is not None
        return True

    def action_filter(self) -> None:
        """Type a filter."""
        self.filter.focus()

    def action_zoom(self) -> None:
        """Detail on the whole screen, and back."""
        self.toggle_class("-zoom")

    def action_leave(self) -> None:
        """Back from the detail, or from the filter."""
        self.remove_class("-zoom")
        super().action_leave()

    def action_toggle_load(self) -> None:
        """Load the adapter, or unload it if it is resident."""
        if (adapter := self.table.selected) is not None:
            verb, doing = ("unload", "unloading") if adapter.state is AdapterState.RESIDENT else ("load", "loading")
            self.act(f"{doing} {adapter.id}", verb, adapter.name)

    def action_toggle_pin(self) -> None:
        """Pin the adapter, or let it go."""
        if (adapter := self.table.selected) is not None:
            verb, doing = ("unpin", "letting go of") if adapter.pinned else ("pin", "pinning")
            self.act(f"{doing} {adapter.id}", verb, adapter.name)

    def action_roll_back(self) -> None:
        """Choose a kept version to serve."""
        adapter, detail = self.table.selected, self.optiq.view.detail
        if adapter is None:
            return
        kept = detail.versions if detail is not None and detail.name == adapter.name else ()
        others = [version for version in kept if not version.current]
        if not others:
            self.notify(f"{adapter.id} keeps no other version", severity="warning", markup=False)
            return
        now = self.optiq.now()
        options = [
            (
                f"v{v.number}",
                Text(f"v{v.number}  {v.digest[:12]}  {v.origin}, {humanize.since(v.publish_time, now)} ago"),
            )
            for v in others
        ]

        def chosen(version: str | None) -> None:
            if version:
                self.act(f"serving {adapter.id}@{version}", "roll back", adapter.name, version)

        self.app.push_screen(Choose(f"Which version of {adapter.id} is to be served?", options), chosen)

    # Cells

    def _state(self, adapter: Adapter) -> Text:
        mark = self.tones.mark(ADAPTER, adapter.state)
        if adapter.pinned:
            mark.append(" ⊙")
        if adapter.warning or (adapter.quarantine and adapter.state is not AdapterState.QUARANTINED):
            mark.append(" !", self.tones.style("warning"))
        return mark

    def _used(self, adapter: Adapter) -> str:
        return humanize.since(adapter.last_use_time, self.optiq.now())


def _searched(adapter: Adapter) -> str:
    parts: list[Any] = [adapter.id, adapter.state, adapter.kind, adapter.format, *adapter.targets]
    return " ".join(parts + (["pinned"] if adapter.pinned else [])).lower()


def _ranks(adapter: Adapter) -> str:
    return humanize.ranks(adapter.min_rank, adapter.max_rank)


def _memory(adapter: Adapter) -> str:
    return humanize.size(adapter.resident_bytes)


def _leases(adapter: Adapter) -> str:
    return str(adapter.active_leases or "-")
