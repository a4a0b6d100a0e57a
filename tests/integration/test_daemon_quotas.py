"""Every quota on a real daemon: what is beyond it says which one it is, how much there is, and when to come back."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optiq_client import AdapterState, Chunk, Client, FailedPrecondition, ResourceExhausted, TrainingConfig
from tests.adapters import write_tiny_adapter
from tests.integration.conftest import Daemon, eventually

PROMPT = [5, 9, 13]


@pytest.fixture(scope="module")
def narrow(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with one row, which others wait for; its base has room for answers that do not end by themselves."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("base") / "roomy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 200_000}))
    daemon = Daemon("--model", str(folder), "--settle-ms", "100", "--max-batch", "1", "--drain-seconds", "1")
    try:
        daemon.start().close()
        yield daemon
        assert daemon.stop() == 0, daemon.output()
    finally:
        daemon.remove()


@pytest.fixture
def owner(narrow: Daemon) -> Iterator[Client]:
    with Client(home=narrow.home) as client:
        client.tenants.create("acme")
        try:
            yield client
        finally:
            client.tenants.delete("acme", force=True)


@pytest.fixture
def acme(owner: Client, narrow: Daemon) -> Iterator[Client]:
    with Client(home=narrow.home, tenant="acme") as client:
        yield client


def refused(call: Callable[[], object], quota: str) -> ResourceExhausted:
    with pytest.raises(ResourceExhausted) as caught:
        call()
    error = caught.value
    assert error.reason == "QUOTA_EXCEEDED" and error.retry_after
    assert [violation.field for violation in error.violations] == [f"tenants/acme:{quota}"]
    assert f"quota {quota} of tenant 'acme' is " in str(error)
    return error


@contextlib.contextmanager
def streaming(client: Client, **options: str) -> Iterator[None]:
    """A request that runs, with its row, until the end of the block."""
    with client.generate(PROMPT, max_tokens=100_000, **options) as running:  # type: ignore[arg-type]
        begun = threading.Event()

        def read() -> None:
            for event in running.events():
                if isinstance(event, Chunk):
                    begun.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        assert begun.wait(30)
        yield
        running.cancel()
    reader.join(10)


def test_concurrent_requests(owner: Client, acme: Client) -> None:
    owner.tenants.update("acme", concurrent_requests=1)
    with streaming(acme):
        error = refused(lambda: acme.generate(PROMPT, max_tokens=1).read(), "concurrent_requests")
        assert "1 in use, 1 asked for" in str(error)
        assert {live.tenant for live in owner.runtime.status().requests} <= {"acme"}
    assert eventually(lambda: not acme.runtime.status().requests)
    assert acme.generate(PROMPT, max_tokens=1).read() is not None


def test_queued_requests(owner: Client, acme: Client) -> None:
    owner.tenants.update("acme", queued_requests=1)
    with streaming(owner):
        waiting = acme.generate(PROMPT, max_tokens=1)
        reader = threading.Thread(target=waiting.read, daemon=True)
        reader.start()
        assert eventually(lambda: owner.tenants.get("acme").load.queued_requests == 1)
        refused(lambda: acme.generate(PROMPT, max_tokens=1).read(), "queued_requests")
    reader.join(30)
    assert not reader.is_alive(), "the one that waited got its row"


def test_tokens_per_minute(owner: Client, acme: Client) -> None:
    owner.tenants.update("acme", tokens_per_minute=30)
    acme.generate(PROMPT, max_tokens=40).read()
    error = refused(lambda: acme.generate(PROMPT, max_tokens=1).read(), "tokens_per_minute")
    assert error.retry_after is not None and 1 < error.retry_after < 60, "until the debt is paid"
    owner.tenants.update("acme", tokens_per_minute=0)
    assert acme.generate(PROMPT, max_tokens=1).read() is not None


def test_resident_bytes(owner: Client, acme: Client, narrow: Daemon) -> None:
    for number in (1, 2):
        write_tiny_adapter(narrow.home / "adapters" / "acme" / f"own-{number}", seed=number)
    resident = AdapterState.RESIDENT
    assert eventually(lambda: [a.state for a in acme.adapters.list()] == [resident, resident])
    size = acme.adapters.get("own-1").resident_bytes
    owner.tenants.update("acme", resident_bytes=size * 3 // 2)
    with streaming(acme, adapter="own-1"):
        # The one in use cannot go, and both do not fit.
        refused(lambda: acme.generate(PROMPT, adapter="own-2", max_tokens=1).read(), "resident_bytes")
    assert acme.generate(PROMPT, adapter="own-2", max_tokens=1).read() is not None
    assert acme.adapters.get("own-1").state is AdapterState.AVAILABLE, "an idle one of its own made room"
    assert owner.tenants.get("acme").load.resident_bytes == size


def test_disk_bytes(owner: Client, acme: Client, narrow: Daemon, tmp_path: Path) -> None:
    source = write_tiny_adapter(tmp_path / "source", seed=3)
    acme.adapters.upload(source, "first")
    size = acme.adapters.get("first").disk_bytes
    owner.tenants.update("acme", disk_bytes=size + 10)
    other = write_tiny_adapter(tmp_path / "other", seed=4)
    refused(lambda: acme.adapters.upload(other, "second"), "disk_bytes")
    refused(lambda: acme.adapters.import_folder(other, "second"), "disk_bytes")
    dropped = write_tiny_adapter(narrow.home / "adapters" / "acme" / "third", seed=5)
    found = eventually(lambda: acme.adapters.get("third").quarantine)
    assert found is not None and found.code == "DISK_QUOTA" and "disk_bytes" in found.message
    with pytest.raises(FailedPrecondition, match="DISK_QUOTA"):
        acme.generate(PROMPT, adapter="third", max_tokens=1).read()
    acme.adapters.upload(other, "first")
    assert acme.adapters.get("first").version == 2, "in place of its own old version"
    assert dropped.is_dir()


def test_queued_jobs(owner: Client, acme: Client, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one two three"}\n' * 8)
    config = TrainingConfig(data_path=str(tmp_path), iters=100_000)
    owner.tenants.update("acme", queued_jobs=1)
    first = acme.training.create("first", config, request_id="same")
    assert acme.training.create("first", config, request_id="same").name == first.name, "asked again, not another"
    refused(lambda: acme.training.create("second", config), "queued_jobs")
    acme.training.cancel(first.id)
    assert eventually(lambda: acme.training.get(first.id).state.ended, 60)
    second = acme.training.create("second", config)
    acme.training.cancel(second.id)
    assert eventually(lambda: acme.training.get(second.id).state.ended, 60)
