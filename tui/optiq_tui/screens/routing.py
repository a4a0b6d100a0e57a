"""3 Routing: where each request went and why; routes with their weights; tenants with their shares."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input

from optiq_client import LiveRequest, Route, Status, Tenant, TenantRole, humanize
from optiq_tui import route_cells as cells
from optiq_tui.messages import Look
from optiq_tui.route_text import describe_route
from optiq_tui.screens.board import Board
from optiq_tui.screens.confirm import Confirm
from optiq_tui.view import Part, View
from optiq_tui.widgets.classes import mark
from optiq_tui.widgets.columns import Column
from optiq_tui.widgets.filter_box import FilterBox
from optiq_tui.widgets.gauge import bar
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.table import Table
from optiq_tui.widgets.tones import PHASE
from optiq_tui.widgets.words import Words

VIEWS = ("routes", "tenants")


class Routing(Board):
    """Live requests above; routes or tenants below, both where there is room."""

    NAME = "routing"
    HELP = (
        "Live requests with what they asked for, what serves them and why; routes and their shadows; tenants. "
        "`tab` goes from list to list, `v` changes between routes and tenants where there is no room for both."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", id="routing.filter", tooltip="Filter the requests", key_display="/"),
        Binding("v", "turn", "Tenants", id="routing.view", tooltip="Show routes, or tenants"),
        Binding("enter", "zoom", "Detail", id="routing.zoom", tooltip="The route on the whole screen, and back"),
        Binding("o", "promote", "Promote", id="routing.promote", tooltip="Give the shadow or canary all of the weight"),
        Binding("b", "roll_back", "Roll back", id="routing.rollback", tooltip="Back to the weights before"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._now = datetime.min
        self._requests: tuple[LiveRequest, ...] = ()
        self._steady = ""
        self._shown = VIEWS[0]
        self._most = 1.0
        self._weights = 1.0
        self.filter = FilterBox("by tenant, adapter, route, phase", id="routing-filter")
        self.requests: Table[LiveRequest] = Table(
            (
                Column("tenant", lambda r: r.tenant.rpartition("/")[2], 7, flex=1, sort=lambda r: r.tenant),
                Column("asked for", cells.asked, 11, flex=2, sort=lambda r: r.requested_adapter),
                Column("served by", self._served, 15, flex=3, sort=lambda r: r.adapter_digest),
                Column("why", lambda r: r.route_why or "-", 10, flex=3, drop=1),
                Column("phase", self._phase, 9, sort=lambda r: (r.phase, r.queue_position)),
                Column("batch", self._batch, 5, right=True, drop=5),
                Column(
                    "tokens",
                    lambda r: str(r.completion_tokens),
                    6,
                    right=True,
                    drop=4,
                    sort=lambda r: r.completion_tokens,
                ),
                Column("first", cells.first, 7, right=True, drop=2, sort=lambda r: r.time_to_first_token_ms),
                Column("tok/s", cells.speed, 5, right=True, drop=3, sort=lambda r: r.tokens_per_second),
                Column("age", self._age, 5, right=True, drop=6, sort=lambda r: r.request_id),
            ),
            lambda r: r.request_id,
            id="requests-table",
            empty=Text.assemble(
                "No live requests. Make one:\n  ", ('optiq generate --adapter NAME "your prompt"', "bold")
            ),
        )
        self.routes: Table[Route] = Table(
            (
                Column("route", lambda r: Text(r.id, style="bold"), 9, flex=1),
                Column("targets", cells.targets, 16, flex=3),
                Column("shadow", lambda r: r.shadow or "-", 8, flex=1, drop=2),
                Column("used", cells.used, 6, right=True),
                Column("gen", lambda r: str(r.generation), 3, right=True, drop=3),
                Column("sticky", lambda r: "yes" if r.sticky else "-", 6, drop=1),
            ),
            lambda r: r.name,
            id="routes-table",
            empty=Text.assemble(
                "No routes. Make one:\n  ", ("optiq routes set NAME ADAPTER@v1=90 ADAPTER@v2=10", "bold")
            ),
        )
        self.tenants: Table[Tenant] = Table(
            (
                Column("tenant", self._tenant, 9, flex=1, sort=lambda t: t.id),
                Column("share", self._share, 14, flex=1, sort=lambda t: t.weight),
                Column("served", self._counter, 14, flex=1, drop=1, sort=lambda t: t.load.virtual_tokens),
                Column("requests", cells.load, 10, sort=lambda t: t.load.running_requests),
                Column("tok/min", lambda t: cells.limit(t.quotas.tokens_per_minute), 7, right=True, drop=2),
                Column("memory", cells.memory, 18, right=True, drop=3, sort=lambda t: t.load.resident_bytes),
                Column("jobs", cells.jobs, 5, right=True, drop=4),
            ),
            lambda t: t.name,
            id="tenants-table",
            empty="Not allowed to see tenants.",
        )
        self.route = Words(id="route-text")

    def body(self) -> Iterator[Widget]:
        """Requests, routes, the route under the cursor, tenants."""
        yield Container(
            Panel("Live requests", self.filter, self.requests, id="requests"),
            Container(
                Panel("Routes", self.routes, id="routes"),
                Panel("Route", VerticalScroll(self.route, can_focus=False), id="route"),
                Panel("Tenants", self.tenants, id="tenants"),
                id="routing-below",
            ),
            id="routing-body",
        )

    def home(self) -> Widget | None:
        """The requests."""
        return self.requests

    def look(self) -> Look:
        """Routes and tenants, and what the route under the cursor decided."""
        selected = self.routes.selected
        return Look(routing=True, route=selected.name if selected else "")

    def show(self, view: View, parts: frozenset[Part]) -> None:
        """Draw what has changed."""
        self._now = self.optiq.now()
        mark(self, self._shown == "tenants", "-tenants")
        if Part.STATUS in parts and view.status is not None:
            self._show_requests(view.status)
        if Part.ROUTING in parts:
            routing = view.routing
            self._most = max([1.0, *(t.load.virtual_tokens for t in routing.tenants)])
            self._weights = sum(t.weight for t in routing.tenants) or 1.0
            self.tenants.empty_text = Text(routing.error or "Reading …")
            self.routes.show(routing.routes)
            self.tenants.show(routing.tenants)
            self._show_route(view)

    def _show_requests(self, status: Status) -> None:
        self._requests = status.requests
        rows = sum(request.phase != "queued" for request in status.requests)
        served = {part.digest for r in status.requests if r.phase == "decode" for part in r.adapters}
        bare = any(r.phase == "decode" and not r.adapters for r in status.requests)
        self._steady = str(status.engine.active_rows or rows)
        self._list_requests()
        batch = f"one batch of {self._steady} rows with {len(served) + bare} adapters"
        waiting = f" · {status.engine.queued_requests} queued" if status.engine.queued_requests else ""
        self.query_one("#requests", Panel).count(f"{len(status.requests)}: {batch}{waiting}" if status.requests else "")

    def _list_requests(self) -> None:
        box = self.filter
        self.requests.show([r for r in self._requests if not box.value or box.matches(cells.searched(r))])

    def _show_route(self, view: View) -> None:
        route = self.routes.selected
        detail = view.routing.detail
        self.query_one("#route", Panel).rename(f"Route {route.id}" if route else "Route")
        known = detail if route and detail and detail.name == route.name else None
        self.route.update(describe_route(route, known, self.tones, self._now) if route else "")

    # Messages

    @on(Table.Highlighted, "#routes-table")
    def _route_highlighted(self) -> None:
        self._show_route(self.optiq.view)
        self.send_look()
        self.refresh_keys()

    @on(Input.Changed, "#routing-filter")
    def _filtered(self) -> None:
        self._list_requests()

    @on(Input.Submitted, "#routing-filter")
    def _filter_done(self) -> None:
        self.requests.focus()

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Actions appear where they mean something; with --readonly never."""
        if action in {"promote", "roll_back"}:
            return not self.optiq.readonly and self.focused is self.routes and self.routes.selected is not None
        return True

    def action_filter(self) -> None:
        """Type a filter."""
        self.filter.focus()

    def action_zoom(self) -> None:
        """The route's decisions and shadow answers in place of the requests, and back."""
        self.toggle_class("-zoom")
        self.routes.focus()

    def action_leave(self) -> None:
        """Back from the detail, or from the filter."""
        self.remove_class("-zoom")
        super().action_leave()

    def action_turn(self) -> None:
        """Routes in place of tenants, or the other way round."""
        self._shown = VIEWS[1 - VIEWS.index(self._shown)]
        mark(self, self._shown == "tenants", "-tenants")
        (self.tenants if self._shown == "tenants" else self.routes).focus()

    def action_promote(self) -> None:
        """Promote, after asking."""
        if (route := self.routes.selected) is not None:
            by_weight = sorted((weight, target) for target, weight in route.targets.items() if weight)
            target = route.shadow or by_weight[0][1]
            self._ask(
                f"Give {target} all of the weight of {route.id}?", f"promoting {target}", "promote", route, target
            )

    def action_roll_back(self) -> None:
        """Back to the generation before, after asking."""
        if (route := self.routes.selected) is not None:
            question = f"Make generation {route.generation - 1} of {route.id} the newest again?"
            self._ask(question, f"rolling {route.id} back", "roll back route", route)

    def _ask(self, question: str, doing: str, verb: str, route: Route, argument: str = "") -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.act(doing, verb, route.name, argument)

        self.app.push_screen(
            Confirm(question, "New requests follow at once; those that run stay where they are."), answered
        )

    # Cells

    def _served(self, request: LiveRequest) -> Text:
        if not request.adapters:
            return Text("base", style="italic dim")
        parts = []
        for part in request.adapters:
            weight = f"{part.weight:g}x" if part.weight != 1 else ""
            parts.append(f"{weight}{part.name.rpartition('/')[2]}@{part.digest[:6]}")
        return self.tones.text(" + ".join(parts), "primary")

    def _phase(self, request: LiveRequest) -> Text:
        mark = self.tones.mark(PHASE, request.phase)
        if request.queue_position:
            return self.tones.text(f"{mark.plain[0]} queue {request.queue_position}", "warning")
        return mark

    def _batch(self, request: LiveRequest) -> str:
        return "-" if request.phase == "queued" else f"1/{self._steady}"

    def _age(self, request: LiveRequest) -> str:
        return humanize.since(request.start_time, self._now)

    def _tenant(self, tenant: Tenant) -> Text:
        name = Text(tenant.id, style="bold")
        return name.append(" admin", "not bold dim") if tenant.role is TenantRole.ADMIN else name

    def _share(self, tenant: Tenant) -> Text:
        share = tenant.weight / self._weights
        return bar(share, 6, self.tones.style("primary")).append(f" {share:>4.0%} w{tenant.weight:g}", "dim")

    def _counter(self, tenant: Tenant) -> Text:
        tokens = tenant.load.virtual_tokens
        return bar(tokens / self._most, 6, self.tones.style("accent")).append(
            f" {humanize.count(round(tokens))}", "dim"
        )
