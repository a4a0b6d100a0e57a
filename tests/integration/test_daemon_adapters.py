"""Drop, replace, break, mend and delete adapter folders under a running daemon."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from optiq_client import (
    AdapterState,
    ChangeType,
    Client,
    FailedPrecondition,
    Finished,
    InvalidRequest,
    NotFound,
    Started,
)
from tests.adapters import write_adapter
from tests.integration.conftest import Daemon, eventually, gone

PROMPT = "Name a colour."


def in_state(client: Client, adapter: str, state: AdapterState, timeout: float = 60.0) -> bool:
    return eventually(lambda: client.adapters.get(adapter).state is state, timeout)


def digest_of(client: Client, adapter: str) -> str:
    generation = client.generate(PROMPT, adapter=adapter, max_tokens=2)
    return next(event.adapter_digest for event in generation.events() if isinstance(event, Started))


def test_a_dropped_folder_is_served_soon(daemon: Daemon, client: Client) -> None:
    folder = write_adapter(daemon.drop / "dropped", seed=1)
    assert in_state(client, "dropped", AdapterState.RESIDENT)
    adapter = client.adapters.get("dropped")
    assert 250 <= adapter.drop_to_routable_ms < 1500
    assert adapter.format == "mlx-lm" and adapter.kind == "lora"
    assert (adapter.min_rank, adapter.max_rank, adapter.module_count) == (4, 4, 4)
    assert adapter.targets == ("q_proj", "v_proj")
    assert adapter.resident_bytes > 0 and adapter.source_path == str(folder)
    assert digest_of(client, "dropped") == adapter.digest
    assert digest_of(client, f"dropped@{adapter.digest}") == adapter.digest
    with pytest.raises(NotFound):
        digest_of(client, f"dropped@{'0' * 64}")


def test_an_adapter_changes_the_answer(daemon: Daemon, client: Client) -> None:
    write_adapter(daemon.drop / "loud", seed=2, rank=16, layers=tuple(range(20, 30)))
    assert in_state(client, "loud", AdapterState.RESIDENT)
    base = client.generate(PROMPT, max_tokens=8).read()
    assert client.generate(PROMPT, adapter="loud", max_tokens=8).read() != base
    assert client.generate(PROMPT, adapter="loud", adapter_scale=0, max_tokens=8).read() == base


def test_a_blend_is_served_by_all_of_its_adapters(daemon: Daemon, client: Client) -> None:
    for index, name in enumerate(("polite", "brief")):
        write_adapter(daemon.drop / name, seed=30 + index, rank=16, layers=tuple(range(20, 30)))
    assert all(in_state(client, name, AdapterState.RESIDENT) for name in ("polite", "brief"))
    with client.generate(PROMPT, adapters={"polite": 0.8, "brief": -0.4}, adapter_scale=0.5, max_tokens=200) as blend:
        events = blend.events()
        started = next(event for event in events if isinstance(event, Started))
        digests = {name: client.adapters.get(name).digest for name in ("polite", "brief")}
        assert [(a.name.rpartition("/")[2], a.digest, a.weight) for a in started.adapters] == [
            ("polite", digests["polite"], 0.4),
            ("brief", digests["brief"], -0.2),
        ]
        assert started.adapter == started.adapter_digest == ""
        (live,) = [one for one in client.runtime.status().requests if one.request_id == started.request_id]
        assert live.requested_adapter == "polite=0.8, brief=-0.4"
        assert live.adapters == started.adapters
        assert {client.adapters.get(name).active_leases for name in digests} == {1}
        blend.cancel()
    assert eventually(lambda: {client.adapters.get(name).active_leases for name in digests} == {0})
    base = client.generate(PROMPT, max_tokens=8).read()
    assert client.generate(PROMPT, adapters={"polite": 0, "brief": 0}, max_tokens=8).read() == base
    one = client.generate(PROMPT, adapter="polite", max_tokens=8).read()
    assert client.generate(PROMPT, adapters={"polite": 1, "brief": 0}, max_tokens=8).read() == one
    with pytest.raises(NotFound):
        client.generate(PROMPT, adapters={"polite": 1, "nobody": 1}).read()
    assert {client.adapters.get(name).active_leases for name in digests} == {0}


def test_a_conversation_does_not_compute_its_beginning_again(daemon: Daemon, client: Client) -> None:
    write_adapter(daemon.drop / "reader", seed=40)
    assert in_state(client, "reader", AdapterState.RESIDENT)
    system = {"role": "system", "content": "You answer questions about the sea, briefly and in plain words. " * 5}

    def ask(question: str, **kwargs: str) -> Started:
        turns = [system, {"role": "user", "content": question}]
        with client.generate(turns, max_tokens=2, **kwargs) as generation:
            generation.read()
            assert generation.started is not None and generation.finished is not None
            assert generation.finished.usage.cached_tokens == generation.started.cached_tokens
            return generation.started

    first = ask("What is a tide?", adapter="reader")
    assert first.cached_tokens == 0
    assert ask("Why is it blue?", adapter="reader").cached_tokens > first.prompt_tokens - 20
    assert ask("Why is it blue?").cached_tokens == 0, "the base computes other values"
    engine = client.runtime.status().engine
    assert engine.prefix_hits >= 1 and engine.prefix_cache_bytes > 0 and engine.kv_budget_bytes > 0


def test_a_second_copy_is_a_new_version_and_streams_keep_theirs(daemon: Daemon, client: Client) -> None:
    write_adapter(daemon.drop / "versions", seed=3)
    assert in_state(client, "versions", AdapterState.RESIDENT)
    first = client.adapters.get("versions").digest
    with client.generate(PROMPT, adapter="versions", max_tokens=200) as generation:
        events = generation.events()
        started = next(event for event in events if isinstance(event, Started))
        write_adapter(daemon.drop / "versions", seed=4)
        second = eventually(lambda: (d := client.adapters.get("versions").digest) != first and d)
        assert started.adapter_digest == first
        assert digest_of(client, "versions") == second
        assert (daemon.home / "store" / "adapters" / first).is_dir()
        generation.cancel()
    # The old version leaves the engine with its last request; the store keeps it for a rollback.
    assert eventually(lambda: client.adapters.history("versions")[1].resident_bytes == 0)
    assert (daemon.home / "store" / "adapters" / first).is_dir()
    assert digest_of(client, "versions") == second


def test_a_bad_folder_is_quarantined_while_the_old_version_is_served(daemon: Daemon, client: Client) -> None:
    write_adapter(daemon.drop / "mended", seed=5)
    assert in_state(client, "mended", AdapterState.RESIDENT)
    good = client.adapters.get("mended").digest
    write_adapter(daemon.drop / "mended", seed=5, hidden=512)
    assert in_state(client, "mended", AdapterState.QUARANTINED)
    adapter = client.adapters.get("mended")
    assert adapter.quarantine is not None
    assert adapter.quarantine.code == "SHAPE_MISMATCH"
    assert adapter.quarantine.file == "adapters.safetensors"
    assert "lora_a" in adapter.quarantine.tensor
    assert (adapter.quarantine.expected, adapter.quarantine.found) == ("[576, 4]", "[512, 4]")
    assert adapter.digest == good and digest_of(client, "mended") == good
    write_adapter(daemon.drop / "mended", seed=6)
    assert in_state(client, "mended", AdapterState.RESIDENT)
    mended = client.adapters.get("mended")
    assert mended.quarantine is None and mended.digest != good


def test_a_folder_that_was_never_good_says_why(daemon: Daemon, client: Client) -> None:
    folder = daemon.drop / "never-good"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{ not json")
    assert in_state(client, "never-good", AdapterState.QUARANTINED)
    with pytest.raises(FailedPrecondition) as caught:
        client.generate(PROMPT, adapter="never-good").read()
    assert caught.value.reason == "ADAPTER_QUARANTINED"
    assert caught.value.metadata["code"] == "BAD_JSON" and caught.value.metadata["file"] == "adapter_config.json"
    shutil.rmtree(folder)
    assert gone(lambda: client.adapters.get("never-good"))


def test_a_deleted_folder_is_not_found_while_others_go_on(daemon: Daemon, client: Client) -> None:
    for name in ("stays", "goes"):
        write_adapter(daemon.drop / name, seed=7)
        assert in_state(client, name, AdapterState.RESIDENT)
    # The same bytes under two names are one version; the name that stays keeps it.
    assert client.adapters.get("stays").digest == client.adapters.get("goes").digest
    shutil.rmtree(daemon.drop / "goes")
    assert gone(lambda: client.generate(PROMPT, adapter="goes", max_tokens=1).read())
    assert client.generate(PROMPT, adapter="stays", max_tokens=4).read()


def test_import_delete_load_and_unload(daemon: Daemon, client: Client, tmp_path: object) -> None:
    source = write_adapter(daemon.home / "elsewhere", seed=8)
    adapter = client.adapters.import_folder(source, "imported")
    assert adapter.state is AdapterState.RESIDENT
    assert (daemon.drop / "imported" / "adapters.safetensors").is_file()
    assert client.adapters.unload("imported").state is AdapterState.AVAILABLE
    assert digest_of(client, "imported") == adapter.digest, "a request loads it"
    # The request was left at its first event: its lease ends when the daemon has heard of that.
    client.adapters.unload("imported")
    assert eventually(lambda: client.adapters.get("imported").resident_bytes == 0)
    assert client.adapters.load("imported").resident_bytes > 0
    with pytest.raises(Exception, match="changed"):
        client.adapters.delete("imported", etag="old")
    client.adapters.delete("imported", etag=client.adapters.get("imported").etag)
    assert not (daemon.drop / "imported").exists()
    with pytest.raises(NotFound):
        client.adapters.get("imported")
    bad = write_adapter(daemon.home / "bad", hidden=100)
    with pytest.raises(FailedPrecondition) as caught:
        client.adapters.import_folder(bad, "imported")
    assert caught.value.reason == "SHAPE_MISMATCH" and not (daemon.drop / "imported").exists()


def test_watch_lists_and_then_follows(daemon: Daemon, client: Client) -> None:
    write_adapter(daemon.drop / "listed", seed=9)
    assert in_state(client, "listed", AdapterState.RESIDENT)
    seen: list[tuple[ChangeType, str, AdapterState]] = []
    with client.adapters.watch() as changes:

        def read() -> None:
            for change in changes:
                seen.append(
                    (
                        change.type,
                        change.adapter.id if change.adapter else "",
                        change.adapter.state if change.adapter else AdapterState.UNSPECIFIED,
                    )
                )
                if change.type is ChangeType.DELETED and change.adapter and change.adapter.id == "followed":
                    return

        reader = threading.Thread(target=read)
        reader.start()
        assert eventually(lambda: any(kind is ChangeType.LIST_END for kind, _, _ in seen))
        assert (ChangeType.LISTED, "listed", AdapterState.RESIDENT) in seen
        write_adapter(daemon.drop / "followed", seed=10)
        assert in_state(client, "followed", AdapterState.RESIDENT)
        shutil.rmtree(daemon.drop / "followed")
        reader.join(10)
        assert not reader.is_alive()
    assert (ChangeType.CHANGED, "followed", AdapterState.RESIDENT) in seen


def test_adapters_share_a_batch_and_cancelled_requests_leave_nothing(daemon: Daemon, client: Client) -> None:
    names = [f"row-{index}" for index in range(4)]
    for index, name in enumerate(names):
        write_adapter(daemon.drop / name, seed=20 + index, rank=2 + 3 * index)
    for name in names:
        assert in_state(client, name, AdapterState.RESIDENT)
    most: list[int] = []

    def ask(name: str) -> None:
        for event in client.generate(PROMPT, adapter=name, max_tokens=64).events():
            if isinstance(event, Finished):
                most.append(event.batch.max_adapters)

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    with client.generate(PROMPT, adapter="row-0", max_tokens=500) as cancelled:
        next(iter(cancelled))
        cancelled.cancel()
    for thread in threads:
        thread.join(60)
    assert max(most) >= 4
    assert eventually(lambda: all(client.adapters.get(name).active_leases == 0 for name in names))
    assert eventually(lambda: not client.runtime.status().requests)
    assert eventually(lambda: client.runtime.status().engine.active_rows == 0)


def test_a_slow_copy_is_not_taken_half_way(daemon: Daemon, client: Client) -> None:
    whole = write_adapter(daemon.home / "whole", seed=30)
    folder = daemon.drop / "slow"
    folder.mkdir()
    shutil.copy(whole / "adapter_config.json", folder)
    content = (whole / "adapters.safetensors").read_bytes()
    with (folder / "adapters.safetensors").open("wb") as writing:
        for part in range(4):
            writing.write(content[part * len(content) // 4 : (part + 1) * len(content) // 4])
            writing.flush()
            # Longer than the settle time: only the open file says that there is more to come.
            time.sleep(0.4)
            assert client.adapters.get("slow").state is AdapterState.DISCOVERED
    assert in_state(client, "slow", AdapterState.RESIDENT)


def test_links_and_bad_names_are_not_taken(daemon: Daemon, client: Client) -> None:
    outside = write_adapter(daemon.home / "outside", seed=31)
    (daemon.drop / "linked").symlink_to(outside, target_is_directory=True)
    write_adapter(daemon.drop / "Bad Name", seed=31)
    write_adapter(daemon.drop / ".hidden", seed=31)
    assert in_state(client, "linked", AdapterState.QUARANTINED)
    quarantine = client.adapters.get("linked").quarantine
    assert quarantine is not None and quarantine.code == "LINK"
    assert not {"Bad Name", ".hidden"} & {adapter.id for adapter in client.adapters.list()}
    client.adapters.delete("linked")
    until = time.monotonic() + 0.6
    while time.monotonic() < until:  # the removal is a change of the folder, too, and must not bring the name back
        assert gone(lambda: client.adapters.get("linked"), 0.001)
    assert outside.is_dir(), "deleting the name removes the link, not what it points to"
    with pytest.raises(InvalidRequest):
        client.adapters.get("Bad Name")


def test_a_folder_that_comes_and_goes_leaves_nothing(daemon: Daemon, client: Client) -> None:
    source = write_adapter(daemon.home / "flicker", seed=32)
    before = client.runtime.status().adapter_count
    for round_ in range(8):
        shutil.copytree(source, daemon.drop / "flicker")
        # From before the settle time is over to after the folder is taken.
        time.sleep(0.2 + 0.02 * round_)
        shutil.rmtree(daemon.drop / "flicker")
    assert gone(lambda: client.adapters.get("flicker"))
    assert client.runtime.status().adapter_count == before
    shutil.copytree(source, daemon.drop / "flicker")
    assert in_state(client, "flicker", AdapterState.RESIDENT)
