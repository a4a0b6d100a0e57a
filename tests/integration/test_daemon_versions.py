"""Versions that are kept, rolled back, pinned and let go, over the tiny base."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from optiq_client import (
    AdapterState,
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    OptiqClientError,
    Started,
    calls,
)
from optiq_daemon.cli import main as cli
from optiq_protos.v1 import adapter_pb2
from tests.adapters import write_tiny_adapter
from tests.integration.conftest import Daemon, eventually, gone
from tests.integration.faults import digest_of

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


@pytest.mark.slow
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


def test_upload_export_and_merge(tiny_daemon: Daemon, tiny_client: Client, tmp_path: Path) -> None:
    client = tiny_client
    source = write_tiny_adapter(tmp_path / "source", seed=70)
    sent = client.adapters.upload(source, "sent")
    assert sent.digest == digest_of(source) and served(client, "sent") == sent.digest
    assert client.adapters.history("sent")[0].origin == "upload"
    assert client.adapters.export("sent", tmp_path / "back") == sent.digest == digest_of(tmp_path / "back")
    with pytest.raises(FileExistsError):
        client.adapters.export("sent", tmp_path / "back")
    client.adapters.export("sent", tmp_path / "peft", form="peft", version="v1")
    again = client.adapters.import_folder(tmp_path / "peft", "as-peft")
    assert again.format == "peft"
    merged = client.adapters.merge({"sent": 0.5, f"sent@{sent.digest[:8]}": 0.5}, "merged")
    assert (merged.format, merged.min_rank, merged.max_rank) == ("optiq", 8, 8)
    names = ("sent", "as-peft", "merged")
    answers = {client.generate([5, 9, 13, 21], adapter=name, max_tokens=12).read() for name in names}
    assert len(answers) == 1, "one function in three formats"
    with pytest.raises(FailedPrecondition, match="two adapters or more"):
        client.adapters.merge({"sent": 1.0}, "alone")


def test_a_merge_with_dora_is_the_blend_of_its_parts(tiny_daemon: Daemon, tiny_client: Client, tmp_path: Path) -> None:
    client = tiny_client
    client.adapters.upload(write_tiny_adapter(tmp_path / "plain", seed=72), "plain")
    dora = write_tiny_adapter(tmp_path / "dora", seed=73)
    tensors = load_file(dora / "adapters.safetensors")
    for name in [name for name in tensors if name.endswith("lora_b")]:
        tensors[name.replace("lora_b", "m")] = np.full(tensors[name].shape[1], 0.5, np.float32)
    save_file(tensors, dora / "adapters.safetensors")
    config = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps({**config, "fine_tune_type": "dora"}))
    assert client.adapters.upload(dora, "dora").kind == "dora"
    parts = {"plain": 0.75, "dora": 0.5}
    merged = client.adapters.merge(parts, "merged-dora")
    assert (merged.kind, merged.max_rank) == ("dora", 8)
    prompt = [5, 9, 13, 21]
    blend = client.generate(prompt, adapters=parts, max_tokens=24).read()
    assert client.generate(prompt, adapter="merged-dora", max_tokens=24).read() == blend
    assert client.generate(prompt, adapter="plain", max_tokens=24).read() != blend
    for name in ("plain", "dora", "merged-dora"):
        client.adapters.delete(name)


def test_an_upload_that_lies_installs_nothing(tiny_daemon: Daemon, tiny_client: Client, tmp_path: Path) -> None:
    source = write_tiny_adapter(tmp_path / "source", seed=71)
    good = calls.upload_adapter("default", "lied", source)
    header = good.request.header  # type: ignore[attr-defined]

    def send(change: Callable[[list[adapter_pb2.UploadAdapterRequest]], None]) -> None:
        requests = [copy.deepcopy(request) for request in good.requests()]
        change(requests)
        tiny_client.upload(dataclasses.replace(good, requests=lambda: iter(requests)), 20)

    def flipped(requests: list[adapter_pb2.UploadAdapterRequest]) -> None:
        requests[-1].chunk.data = requests[-1].chunk.data[:-1] + b"?"

    def escaping(requests: list[adapter_pb2.UploadAdapterRequest]) -> None:
        requests[0].header.files[0].name = "../../adapter_config.json"

    def endless(requests: list[adapter_pb2.UploadAdapterRequest]) -> None:
        requests[0].header.files[-1].size_bytes = 1 << 60

    cases: list[tuple[Callable[[list[adapter_pb2.UploadAdapterRequest]], None], str]] = [
        (flipped, "SHA-256"),
        (escaping, "must be one of"),
        (endless, "size_bytes"),
        (lambda requests: requests.pop(), "ended before"),
        (lambda requests: requests.append(requests[-1]), "more follows"),
        (lambda requests: requests.insert(1, requests[-1]), "in the order"),
        (lambda requests: requests.pop(0), "begins with a header"),
    ]
    for change, message in cases:
        with pytest.raises(InvalidRequest, match=message):
            send(change)
    assert header.files and gone(lambda: tiny_client.adapters.get("lied"), 0.5)
    assert not list((tiny_daemon.home / "store" / "staging").glob("scratch-*"))
    bad = write_tiny_adapter(tmp_path / "bad", hidden=80)
    with pytest.raises(FailedPrecondition) as caught:
        tiny_client.adapters.upload(bad, "lied")
    assert caught.value.reason == "SHAPE_MISMATCH"


async def test_the_async_client_moves_files_too(tiny_daemon: Daemon, tiny_client: Client, tmp_path: Path) -> None:
    source = write_tiny_adapter(tmp_path / "source", seed=72)
    async with AsyncClient(home=tiny_daemon.home) as client:
        sent = await client.adapters.upload(source, "async-sent")
        assert await client.adapters.export("async-sent", tmp_path / "back") == sent.digest
        merged = await client.adapters.merge({"async-sent": 0.25, "async-sent@v1": 0.75}, "async-merged")
        assert merged.max_rank == 8


def test_the_commands_that_move_files(
    tiny_daemon: Daemon, tiny_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ("--home", str(tiny_daemon.home))
    source = write_tiny_adapter(tmp_path / "typed-files", seed=73)
    assert cli.main(["adapters", "upload", str(source), "--json", *home]) == 0
    digest = json.loads(capsys.readouterr().out)["digest"]
    out = tmp_path / "out"
    assert cli.main(["adapters", "export", "typed-files", "-o", str(out), "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(out), "digest": digest}
    assert cli.main(["adapters", "export", "typed-files", "-o", str(out), *home]) == 2
    assert cli.main(["lora", "export", str(out), "--format", "peft", "-o", str(tmp_path / "peft")]) == 0
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()
    merge = ["adapters", "merge", "typed-files=0.5", "typed-files=0.25", "--into", "typed-merged", *home]
    assert cli.main(merge) == 1, "one adapter named twice is one"
    assert cli.main(["adapters", "merge", "typed-files", "--into", "x", *home]) == 2
    drop(tiny_daemon, tiny_client, "typed-other", 74)
    assert cli.main(["adapters", "merge", "typed-files=0.5", "typed-other=0.5", "--into", "typed-merged", *home]) == 0
    fuse = ["adapters", "fuse", "typed-files", "-o", str(tmp_path / "f"), "--json", *home]
    fused = subprocess.run([sys.executable, "-m", "optiq_daemon", *fuse], capture_output=True, text=True, check=True)
    report = json.loads(fused.stdout)
    assert (report["modules"], report["quantized"], report["warning"]) == (4, 0, "")
    assert (tmp_path / "f" / "config.json").is_file()


def test_an_adapter_that_changes_nothing_is_served_with_a_warning(tiny_daemon: Daemon, tiny_client: Client) -> None:
    folder = write_tiny_adapter(tiny_daemon.home / "idle", seed=80)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] = 0.0
    (folder / "adapter_config.json").write_text(json.dumps(config))
    idle = tiny_client.adapters.import_folder(folder, "idle")
    assert eventually(lambda: tiny_client.adapters.get("idle").warning).startswith("NO_EFFECT")
    assert idle.digest and tiny_client.adapters.get("idle").state is AdapterState.RESIDENT
    assert tiny_client.adapters.import_folder(write_tiny_adapter(folder, seed=80), "idle").digest != idle.digest
    assert eventually(lambda: not tiny_client.adapters.get("idle").warning)
