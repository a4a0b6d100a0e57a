"""``optiq routes``: canaries, fallbacks and shadows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import Connection, connection_options, json_option

if TYPE_CHECKING:
    from optiq_client import Route


def _targets(values: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for text in values:
        target, equals, weight = text.rpartition("=")
        if not equals or not target or not weight.isdecimal():
            raise click.UsageError(f"{text!r} is not TARGET=WEIGHT, for example v4=5 or support@v3=95")
        found[target] = int(weight)
    return found


@click.group(
    epilog="\b\nExamples:\n  optiq routes set support v4=5 v3=95     # versions of the adapter 'support'\n"
    "  optiq generate --adapter support 'Hello'\n  optiq routes show support\n  optiq routes promote support v4\n"
    "  optiq routes rollback support"
)
def routes() -> None:
    """Send a name's requests to several adapter versions by weight."""


@routes.command(
    "set",
    epilog="\b\nExamples:\n  optiq routes set support v4=5 v3=95 --fallback base\n"
    "  optiq routes set support --shadow v5        # the rest stays as it is\n"
    "  optiq routes set triage legal@v2=1 medical=1 --sticky",
)
@click.argument("name")
@click.argument("targets", nargs=-1, metavar="[TARGET=WEIGHT]...")
@click.option("--fallback", "fallbacks", multiple=True, help="Next if the targets cannot be used; 'base' allows it.")
@click.option("--no-fallback", is_flag=True, help="Take the fallbacks away.")
@click.option("--shadow", help="Runs a copy of each request when nobody needs the row; '' for none.")
@click.option("--sticky/--no-sticky", default=None, help="Same sticky key, same target.")
@connection_options
@json_option
def set_(
    *,
    name: str,
    targets: tuple[str, ...],
    fallbacks: tuple[str, ...],
    no_fallback: bool,
    shadow: str | None,
    sticky: bool | None,
    connection: Connection,
    as_json: bool,
) -> None:
    """Create a route, or change what is given.

    A TARGET is an adapter, adapter@version, 'base', or a version of the adapter NAME such as v3.
    """
    if fallbacks and no_fallback:
        raise click.UsageError("--fallback and --no-fallback do not go together")
    with connection.client() as client:
        route = client.routes.set(
            name,
            _targets(targets) if targets else None,
            fallbacks=fallbacks or ([] if no_fallback else None),
            shadow=shadow,
            sticky=sticky,
        )
    _print(route, as_json)


@routes.command(epilog="\b\nExamples:\n  optiq routes ls\n  optiq routes ls --json")
@connection_options
@json_option
def ls(connection: Connection, as_json: bool) -> None:
    """List the routes of a tenant."""
    from optiq_client import humanize

    with connection.client() as client:
        found = client.routes.list()
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("ROUTE", "TARGETS", "FALLBACK", "SHADOW", "STICKY", "REQUESTS", "GENERATION", "CHANGED"),
        [
            (
                r.id,
                _shares(r),
                ", ".join(r.fallbacks),
                r.shadow,
                "yes" if r.sticky else "",
                str(sum(c.requests for c in r.counts)),
                str(r.generation),
                humanize.since(r.update_time),
            )
            for r in found
        ],
        right=("REQUESTS", "GENERATION", "CHANGED"),
    )


@routes.command(
    epilog="\b\nExamples:\n  optiq routes show support\n  optiq routes show support --decisions\n"
    "  optiq routes show support --shadow --json | jq '.[] | [.answer, .shadow_answer]'"
)
@click.argument("name")
@click.option("--history", "what", flag_value="history", help="List its generations.")
@click.option("--decisions", "what", flag_value="decisions", help="List the latest requests and where they went.")
@click.option("--shadow", "what", flag_value="shadow", help="Compare the latest answers with the shadow's.")
@connection_options
@json_option
def show(name: str, what: str | None, connection: Connection, as_json: bool) -> None:
    """Show a route and what its targets were used for."""
    with connection.client() as client:
        if what is None:
            _print(client.routes.get(name), as_json)
            return
        found: Any
        if what == "history":
            found = client.routes.history(name)
        elif what == "decisions":
            found = client.routes.decisions(name)
        else:
            found = client.routes.shadow_answers(name)
    if as_json:
        output.print_json(found)
    else:
        _TABLES[what](found)


def _print_history(found: list[Route]) -> None:
    from optiq_client import humanize

    rows = [(str(r.generation), _shares(r), r.shadow, r.change, humanize.since(r.update_time)) for r in found]
    output.print_table(("GENERATION", "TARGETS", "SHADOW", "CHANGE", "WHEN"), rows, right=("GENERATION", "WHEN"))


def _print_decisions(found: list[Any]) -> None:
    from optiq_client import humanize

    rows = [(d.request_id, d.requested, d.target, d.why, humanize.since(d.time)) for d in found]
    output.print_table(("REQUEST", "ASKED", "TARGET", "WHY", "WHEN"), rows, right=("WHEN",))


def _print_shadow(found: list[Any]) -> None:
    rows = [
        (
            a.request_id,
            a.target,
            a.shadow,
            a.outcome.lower(),
            ("same" if a.answer == a.shadow_answer else "other") if a.outcome == "ANSWERED" else "",
            f"{a.completion_tokens} / {a.shadow_completion_tokens}",
        )
        for a in found
    ]
    output.print_table(("REQUEST", "TARGET", "SHADOW", "OUTCOME", "ANSWER", "TOKENS"), rows)


_TABLES = {"history": _print_history, "decisions": _print_decisions, "shadow": _print_shadow}


@routes.command(epilog="\b\nExamples:\n  optiq routes delete support")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@connection_options
@json_option
def delete(name: str, yes: bool, connection: Connection, as_json: bool) -> None:
    """Remove a route with its history; adapters stay."""
    if not yes:
        click.confirm(f"Delete route {name}?", abort=True, err=True)
    with connection.client() as client:
        client.routes.delete(name)
    if as_json:
        output.print_json({"deleted": name})
    else:
        output.note(f"deleted {name}")


@routes.command(epilog="\b\nExamples:\n  optiq routes promote support\n  optiq routes promote support v4")
@click.argument("name")
@click.argument("target", default="")
@connection_options
@json_option
def promote(name: str, target: str, connection: Connection, as_json: bool) -> None:
    """Give one target all of the weight: TARGET, else the shadow, else the one with the least."""
    with connection.client() as client:
        _print(client.routes.promote(name, target), as_json)


@routes.command(epilog="\b\nExamples:\n  optiq routes rollback support\n  optiq routes rollback support --to 3")
@click.argument("name")
@click.option("--to", "generation", type=click.IntRange(min=1), help="Generation; the one before if not given.")
@connection_options
@json_option
def rollback(name: str, generation: int | None, connection: Connection, as_json: bool) -> None:
    """Take up the content of an earlier generation."""
    with connection.client() as client:
        _print(client.routes.roll_back(name, generation or 0), as_json)


@routes.command(
    "try", epilog="\b\nExamples:\n  optiq routes try support\n  optiq routes try support --sticky-key user-17 -n 1000"
)
@click.argument("name")
@click.option("--sticky-key", default="", help="As a request would send it.")
@click.option("--count", "-n", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Requests to try.")
@connection_options
@json_option
def try_(name: str, sticky_key: str, count: int, connection: Connection, as_json: bool) -> None:
    """Say where requests would go now; nothing is served."""
    with connection.client() as client:
        trial = client.routes.attempt(name, sticky_key=sticky_key, count=count)
    if as_json:
        output.print_json(trial)
    elif count == 1:
        click.echo(f"{trial.decision.target}  ({trial.decision.why})")
    else:
        rows = [(c.target, str(c.requests), str(c.fallbacks)) for c in trial.counts]
        output.print_table(("TARGET", "REQUESTS", "FALLBACKS"), rows, right=("REQUESTS", "FALLBACKS"))


def _shares(route: Route) -> str:
    return " ".join(f"{target}={weight}" for target, weight in route.targets.items())


def _print(route: Route, as_json: bool) -> None:
    if as_json:
        output.print_json(route)
        return
    output.print_fields(
        {
            "name": route.name,
            "targets": _shares(route),
            "fallback": ", ".join(route.fallbacks),
            "shadow": route.shadow,
            "sticky": "yes" if route.sticky else "",
            "generation": f"{route.generation} ({route.change})",
            "used": ", ".join(
                f"{c.target} {c.requests}" + (f" ({c.fallbacks} fallbacks)" if c.fallbacks else "")
                for c in route.counts
            ),
        }
    )
