"""Every row of README's table of folder operations, with real files and a real daemon; and crowds of folders."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from optiq_client import AdapterState, Client, Started
from tests.adapters import write_tiny_adapter
from tests.integration.conftest import Daemon, eventually, gone
from tests.integration.faults import digest_of
from tests.integration.folder_operations import (
    MOVED,
    OPERATIONS,
    QUARANTINED,
    RETIRED,
    SERVED_NEW,
    SERVED_OLD,
    Operation,
    Place,
    markdown,
)

README = Path(__file__).parents[2] / "README.md"
# Longer than the settle time: what must not happen would have happened by then.
QUIET_S = 0.35


def served(client: Client, name: str) -> str:
    events = client.generate([5, 9, 13], adapter=name, max_tokens=1).events()
    return next(event.adapter_digest for event in events if isinstance(event, Started))


def serves(client: Client, name: str, digest: str) -> bool:
    return eventually(lambda: client.adapters.get(name).digest == digest) and served(client, name) == digest


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=[operation.run.__name__ for operation in OPERATIONS])
def test_an_operation_has_its_effect(tiny_daemon: Daemon, tiny_client: Client, tmp_path: Path, number: int) -> None:
    operation, client = OPERATIONS[number], tiny_client
    elsewhere = tiny_daemon.home / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    place = Place(tiny_daemon.drop, elsewhere, f"operation-{number}", 1000 + 10 * number)
    old, new = digest_of(place.old), digest_of(place.new)
    if operation.installed:
        shutil.copytree(place.old, place.folder)
        assert serves(client, place.name, old)
    operation.run(place)
    check(client, place, operation, old, new)
    shutil.rmtree(place.folder, ignore_errors=True) if not place.folder.is_symlink() else place.folder.unlink()


def check(client: Client, place: Place, operation: Operation, old: str, new: str) -> None:
    name = place.name
    if operation.result == SERVED_NEW:
        expected = digest_of(place.folder)
        assert expected == new or operation.run.__name__ == "edit"
        assert serves(client, name, expected)
        assert client.adapters.get(name).quarantine is None
    elif operation.result == SERVED_OLD:
        time.sleep(QUIET_S)
        assert serves(client, name, old) and [v.digest for v in client.adapters.history(name)] == [old]
    elif operation.result == RETIRED:
        assert gone(lambda: client.adapters.get(name))
    elif operation.result == MOVED:
        assert serves(client, f"{name}-renamed", old) and gone(lambda: client.adapters.get(name))
    elif operation.result == QUARANTINED:
        assert eventually(lambda: client.adapters.get(name).state is AdapterState.QUARANTINED)
        quarantine = client.adapters.get(name).quarantine
        assert quarantine is not None and quarantine.code == operation.code
        if operation.installed:
            assert served(client, name) == old


def test_the_readme_has_this_table() -> None:
    assert markdown() in README.read_text()


def crowd(daemon: Daemon, client: Client, count: int, seconds: float) -> None:
    source = write_tiny_adapter(daemon.home / "crowd", seed=7)
    digest = digest_of(source)
    for number in range(count):
        shutil.copytree(source, daemon.drop / f"crowd-{number}")
    names = {f"crowd-{number}" for number in range(count)}

    def taken() -> bool:
        return {a.id for a in client.adapters.list() if a.digest == digest} >= names

    assert eventually(taken, seconds, every=0.2)
    assert served(client, f"crowd-{count - 1}") == digest
    for number in range(count):
        shutil.rmtree(daemon.drop / f"crowd-{number}")
    assert eventually(lambda: not names & {a.id for a in client.adapters.list()}, seconds, every=0.2)


def test_a_hundred_folders_at_once(tiny_daemon: Daemon, tiny_client: Client) -> None:
    crowd(tiny_daemon, tiny_client, 100, 60)


@pytest.mark.slow
def test_a_thousand_folders_at_once(tiny_daemon: Daemon, tiny_client: Client) -> None:
    crowd(tiny_daemon, tiny_client, 1000, 240)


@pytest.mark.slow
def test_a_folder_that_grows_for_a_minute_is_taken_once(tiny_daemon: Daemon, tiny_client: Client) -> None:
    source, folder = write_tiny_adapter(tiny_daemon.home / "growing", seed=8, rank=64), tiny_daemon.drop / "growing"
    content = (source / "adapters.safetensors").read_bytes()
    folder.mkdir()
    shutil.copy(source / "adapter_config.json", folder)
    with (folder / "adapters.safetensors").open("wb") as writing:
        for part in range(30):
            writing.write(content[part * len(content) // 30 : (part + 1) * len(content) // 30])
            writing.flush()
            # Twenty times the settle time: only the open file says that there is more to come.
            time.sleep(2.0)
            assert tiny_client.adapters.get("growing").state is AdapterState.DISCOVERED
    assert serves(tiny_client, "growing", digest_of(source))
    assert len(tiny_client.adapters.history("growing")) == 1
    shutil.rmtree(folder)


def test_a_drop_folder_without_events(another_daemon: Callable[..., Daemon], tiny_folder: Path) -> None:
    options = ("--watch", "polling", "--settle-ms", "100", "--reconcile-interval-s", "3600")
    daemon = another_daemon("--model", str(tiny_folder), *options)
    with daemon.start() as client:
        one, two = (write_tiny_adapter(daemon.home / f"source-{seed}", seed=seed) for seed in (1, 2))
        shutil.copytree(one, daemon.drop / "quiet")
        assert serves(client, "quiet", digest_of(one))
        shutil.copytree(two, daemon.drop / "quiet", dirs_exist_ok=True)
        assert serves(client, "quiet", digest_of(two))
        shutil.rmtree(daemon.drop / "quiet")
        assert gone(lambda: client.adapters.get("quiet"))
    assert daemon.stop() == 0
