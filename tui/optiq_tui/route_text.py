"""What there is to say about one route, in words."""

from __future__ import annotations

from datetime import datetime

from rich.text import Text

from optiq_client import Route, humanize
from optiq_tui.view import RouteDetail
from optiq_tui.widgets.gauge import bar
from optiq_tui.widgets.tones import Tones

SHOWN = 12


def describe_route(route: Route, detail: RouteDetail | None, tones: Tones, now: datetime) -> Text:
    """Targets by weight and by use, fallbacks, shadow; then the latest decisions and shadow answers."""
    total = sum(route.targets.values()) or 1
    used = {count.target: count for count in route.counts}
    all_used = sum(count.requests for count in route.counts) or 1
    text = Text()
    width = max((len(target) for target in (*route.targets, *used)), default=0)
    for target in dict.fromkeys((*route.targets, *used)):
        weight = route.targets.get(target, 0)
        count = used.get(target)
        text.append(f"{target:<{width}}  ", "bold")
        text.append_text(bar(weight / total, 8, tones.style("primary")))
        text.append(f" {weight / total:>4.0%} wanted  ", "dim")
        if count is not None:
            text.append(f"{count.requests / all_used:>4.0%} of {humanize.count(all_used)}", "dim")
            if count.fallbacks:
                text.append(f", {count.fallbacks} fallbacks", tones.style("warning"))
        text.append("\n")
    facts = [f"shadow {route.shadow}"] if route.shadow else []
    facts += [f"fallbacks {', '.join(route.fallbacks)}"] if route.fallbacks else []
    facts += ["sticky"] if route.sticky else []
    facts.append(f"generation {route.generation}: {route.change}, {humanize.since(route.update_time, now)} ago")
    text.append(" · ".join(facts), "dim")
    if detail is not None:
        for decision in detail.decisions[:SHOWN]:
            text.append(f"\n{humanize.since(decision.time, now):>6}  ", "dim")
            text.append(decision.target, tones.style("primary"))
            text.append(f"  {decision.why}")
        for shadow in detail.shadows[:SHOWN]:
            text.append(
                f"\n{humanize.since(shadow.time, now):>6}  shadow {shadow.shadow} {shadow.outcome.lower()}", "dim"
            )
            if shadow.shadow_answer:
                text.append(f"\n        {_line(shadow.answer)}")
                text.append(f"\n        {_line(shadow.shadow_answer)}", tones.style("accent"))
    return text


def _line(answer: str) -> str:
    return " ".join(answer.split())
