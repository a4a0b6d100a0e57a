"""A route on a real daemon: canary by weight, fallback when a folder goes, shadow beside, promote and roll back."""

from __future__ import annotations

import shutil

from optiq_client import AdapterState, Client
from tests.adapters import write_adapter
from tests.integration.conftest import Daemon, eventually


def test_a_routes_life(daemon: Daemon, client: Client) -> None:
    for name, seed in (("canary-old", 11), ("canary-new", 12)):
        write_adapter(daemon.drop / name, seed=seed)
        assert eventually(lambda: client.adapters.get(name).state is AdapterState.RESIDENT)  # noqa: B023
    route = client.routes.set("canary", {"canary-old": 1}, fallbacks=["base"], shadow="canary-new")
    assert (route.generation, route.targets) == (1, {"canary-old": 1})

    def served(**fields: str) -> tuple[str, str]:
        generation = client.generate("hello", max_tokens=2, **fields)  # type: ignore[arg-type]
        generation.read()
        assert generation.started is not None
        return generation.started.adapter.rpartition("/")[2], generation.started.route_why

    assert served(adapter="canary") == ("canary-old", "weight 1 of 1")
    assert served(route="canary")[0] == "canary-old"
    assert served(adapter="canary-new") == ("canary-new", "")
    answers = eventually(lambda: [a for a in client.routes.shadow_answers("canary") if a.outcome == "ANSWERED"])
    assert answers
    assert answers[0].shadow_digest == client.adapters.get("canary-new").digest
    assert answers[0].completion_tokens == answers[0].shadow_completion_tokens == 2
    assert client.routes.promote("canary").targets == {"canary-new": 100, "canary-old": 0}
    assert served(adapter="canary")[0] == "canary-new"
    shutil.rmtree(daemon.drop / "canary-new")
    assert eventually(lambda: served(adapter="canary") == ("", "fallback: canary-new is missing"))
    assert client.routes.roll_back("canary").targets == {"canary-old": 1}
    assert [d.target for d in client.routes.decisions("canary")][-1] == "canary-old"
    assert len(client.routes.history("canary")) == 3
    client.routes.delete("canary")
    client.adapters.delete("canary-old")
    assert client.routes.list() == []
