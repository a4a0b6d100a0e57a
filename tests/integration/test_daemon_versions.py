"""Versions that are kept, rolled back, pinned and let go, over the tiny base."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from optiq_client import (
    AdapterState,
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    OptiqClientError,
    Started,
)
from optiq_daemon.cli import main as cli
from tests.adapters import write_tiny_adapter
from tests.integration.conftest import Daemon, eventually, gone

RECONCILED_S = 0.6


def served(client: Client, adapter: str) -> str:
    generation = client.generate([5, 9, 13], adapter=adapter, max_tokens=2)
    return next(event.adapter_digest for event in generation.events() if isinstance(event, Started))


def drop(daemon: Daemon, client: Client, name: str, seed: int) -> str:
    """Publish a version and return its digest."""
    found = [a.digest for a in client.adapters.list() if a.id == name]
    write_tiny_adapter(daemon.drop / name, seed=seed)
    return eventually(lambda: (d := client.adapters.get(name).digest) not in ("", *found) and d)


def stored(daemon: Daemon) -> set[str]:
    return {folder.name for folder in (daemon.home / "store" / "adapters").iterdir()}


def test_a_rollback_is_not_undone_by_the_folder_until_that_changes(tiny_daemon: Daemon, tiny_client: Client) -> None:
    client = tiny_client
    one, two = (drop(tiny_daemon, client, "rolled", seed) for seed in (1, 2))
    before = client.adapters.get("rolled")
    assert before.version == 2 and not before.held_back_digest
    back = client.adapters.rollback("rolled")
    assert (back.digest, back.version, back.held_back_digest) == (one, 1, two)
    assert served(client, "rolled") == one
    # A touched file, a new file beside it, and a look at everything: the content is what was set aside.
    os.utime(tiny_daemon.drop / "rolled" / "adapters.safetensors")
    (tiny_daemon.drop / "rolled" / "README.md").write_text("a note")
    time.sleep(RECONCILED_S)
    assert client.adapters.get("rolled").digest == one and served(client, "rolled") == one
    assert served(client, f"rolled@{two}") == two and served(client, f"rolled@{two[:8]}") == two
    assert served(client, "rolled@v2") == two
    # -1 is what was served before, which is the newer one now.
    assert client.adapters.rollback("rolled").digest == two
    assert client.adapters.rollback("rolled", "v1").digest == one
    three = drop(tiny_daemon, client, "rolled", 3)
    assert [(v.number, v.digest, v.current) for v in client.adapters.history("rolled")] == [
        (3, three, True),
        (1, one, False),
        (2, two, False),
    ]


def test_importing_what_was_set_aside_publishes_it(tiny_daemon: Daemon, tiny_client: Client) -> None:
    client = tiny_client
    drop(tiny_daemon, client, "again", 4)
    source = write_tiny_adapter(tiny_daemon.home / "again", seed=5)
    newer = client.adapters.import_folder(source, "again").digest
    assert client.adapters.rollback("again").digest != newer
    imported = client.adapters.import_folder(source, "again")
    assert imported.digest == newer and not imported.held_back_digest
    assert [v.origin for v in client.adapters.history("again")] == ["import", "folder"]


def test_old_versions_go_but_not_under_a_request(tiny_daemon: Daemon, tiny_client: Client) -> None:
    client = tiny_client
    first = drop(tiny_daemon, client, "many", 10)
    with client.generate([5, 9], adapter="many", max_tokens=400) as running:
        started = next(e for e in running.events() if isinstance(e, Started))
        assert started.adapter_digest == first
        digests = [first, *(drop(tiny_daemon, client, "many", seed) for seed in (11, 12, 13))]
        assert [v.digest for v in client.adapters.history("many")] == digests[:0:-1]
        running.cancel()
    assert eventually(lambda: first not in stored(tiny_daemon))
    assert set(digests[1:]) <= stored(tiny_daemon)
    with pytest.raises(NotFound, match="kept are v4"):
        served(client, f"many@{first}")
    with pytest.raises(NotFound):
        client.adapters.rollback("many", "-3")
    with pytest.raises(OptiqClientError, match="has changed"):
        client.adapters.rollback("many", etag="old")
    shutil.rmtree(tiny_daemon.drop / "many")
    assert eventually(lambda: not set(digests) & stored(tiny_daemon)), "retiring a name forgets its versions"


def test_two_names_keep_one_version(tiny_daemon: Daemon, tiny_client: Client) -> None:
    client = tiny_client
    shared = drop(tiny_daemon, client, "twin-a", 20)
    assert drop(tiny_daemon, client, "twin-b", 20) == shared
    drop(tiny_daemon, client, "twin-a", 21)
    shutil.rmtree(tiny_daemon.drop / "twin-b")
    assert gone(lambda: client.adapters.get("twin-b"))
    assert client.adapters.rollback("twin-a").digest == shared


def test_a_pinned_adapter_stays_and_a_keep_alive_ends(tiny_daemon: Daemon, tiny_client: Client) -> None:
    client = tiny_client
    for name, seed in (("stay", 30), ("leave", 31)):
        drop(tiny_daemon, client, name, seed)
    assert client.adapters.pin("stay").pinned
    with pytest.raises(FailedPrecondition, match="unpin it first"):
        client.adapters.unload("stay")
    client.adapters.keep_alive("stay", 0.2)
    left = client.adapters.keep_alive("leave", 0.2)
    assert left.keep_alive_seconds == 0.2
    assert eventually(lambda: client.adapters.get("leave").state is AdapterState.AVAILABLE)
    assert client.adapters.get("stay").state is AdapterState.RESIDENT
    assert served(client, "leave") == left.digest
    assert client.adapters.keep_alive("leave", None).keep_alive_seconds is None
    with pytest.raises(InvalidRequest):
        client.adapters.keep_alive("leave", -1)
    drop(tiny_daemon, client, "stay", 32)
    assert client.adapters.get("stay").pinned, "the name is pinned, whatever version it points to"
    assert client.adapters.unpin("stay").pinned is False
    assert eventually(lambda: client.adapters.get("stay").state is AdapterState.AVAILABLE)


async def test_the_async_client_has_the_same_calls(tiny_daemon: Daemon, tiny_client: Client) -> None:
    one, two = (drop(tiny_daemon, tiny_client, "awaited", seed) for seed in (40, 41))
    async with AsyncClient(home=tiny_daemon.home) as client:
        assert [v.digest for v in await client.adapters.history("awaited")] == [two, one]
        assert (await client.adapters.rollback("awaited")).digest == one
        assert (await client.adapters.pin("awaited")).pinned
        assert not (await client.adapters.unpin("awaited")).pinned
        assert (await client.adapters.keep_alive("awaited", 5)).keep_alive_seconds == 5


def test_the_commands(tiny_daemon: Daemon, tiny_client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (drop(tiny_daemon, tiny_client, "typed", seed) for seed in (50, 51))
    home = ("--home", str(tiny_daemon.home))
    assert cli.main(["adapters", "history", "typed", *home]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:4] == ["VERSION", "BACK", "DIGEST", "FROM"]
    assert [row[:2] for row in rows[1:]] == [["v2", "now"], ["v1", "-1"]]
    assert cli.main(["adapters", "rollback", "typed", "-1", "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == one
    assert cli.main(["adapters", "rollback", "typed", two[:10], *home]) == 0
    capsys.readouterr()
    assert cli.main(["adapters", "history", "typed", "--json", *home]) == 0
    assert [v["number"] for v in json.loads(capsys.readouterr().out)] == [2, 1]
    assert cli.main(["adapters", "keep", "typed", "60", *home]) == 0
    assert "in the engine for 60 s unused" in capsys.readouterr().out
    assert cli.main(["adapters", "pin", "typed", *home]) == 0
    assert "pinned in the engine" in capsys.readouterr().out
    assert cli.main(["adapters", "unpin", "typed", *home]) == 0
    assert cli.main(["adapters", "keep", "typed", "soon", *home]) == 2
    assert cli.main(["adapters", "rollback", "typed", "v9", *home]) == 1
    assert "kept are v2" in capsys.readouterr().err


def test_history_rollback_and_pins_survive_a_killed_daemon(
    another_daemon: Callable[..., Daemon], tiny_folder: Path
) -> None:
    daemon = another_daemon("--model", str(tiny_folder), "--settle-ms", "100")
    client = daemon.start()
    one, two = (drop(daemon, client, "durable", seed) for seed in (60, 61))
    client.adapters.rollback("durable")
    client.adapters.pin("durable")
    before = client.adapters.history("durable")
    daemon.stop(signal.SIGKILL)
    client.close()
    with daemon.start() as client:
        time.sleep(RECONCILED_S)
        adapter = client.adapters.get("durable")
        assert (adapter.digest, adapter.held_back_digest, adapter.pinned) == (one, two, True)
        assert adapter.state is AdapterState.RESIDENT
        after = client.adapters.history("durable")
        assert [(v.number, v.digest, v.publish_time) for v in after] == [
            (v.number, v.digest, v.publish_time) for v in before
        ]
        assert stored(daemon) == {one, two}
    assert daemon.stop() == 0
