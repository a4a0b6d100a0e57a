"""Widgets that draw one part of the picture each. None of them knows the connection."""

from __future__ import annotations

from textual.widget import Widget

from optiq_tui.widgets.chart import Chart
from optiq_tui.widgets.slider import Slider
from optiq_tui.widgets.table import Table

KEYED: tuple[type[Widget], ...] = (Table, Chart, Slider)
"""Every widget that has keys."""
