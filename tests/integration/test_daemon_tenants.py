"""Two tenants over TCP with TLS: neither sees, reads or uses what is the other's; tokens are nowhere; quotas hold."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from optiq_client import (
    AdapterState,
    ChangeType,
    Client,
    ConnectionFailed,
    CredentialsError,
    Event,
    NotFound,
    OptiqClientError,
    PermissionDenied,
    ResourceExhausted,
    Tls,
    TrainingConfig,
)
from tests.adapters import write_adapter
from tests.integration.conftest import Daemon, eventually

SECRET = "orchid"


class Pair(NamedTuple):
    daemon: Daemon
    address: str
    tls: Tls
    owner: Client
    acme: Client
    bolt: Client
    tokens: dict[str, str]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    address = free_address()
    daemon = Daemon("--address", address, "--tls", "generate", "--max-tokens", "4")
    try:
        owner = daemon.start()
        tls = Tls(ca_file=daemon.home / "tls" / "certificate.pem")
        tokens = {}
        for tenant in ("acme", "bolt"):
            owner.tenants.create(tenant)
            _, tokens[tenant] = owner.tenants.create_token(tenant)
        write_adapter(daemon.home / "adapters" / "acme" / SECRET, seed=3)
        clients = [Client(address, tls=tls, token=tokens[tenant]) for tenant in ("acme", "bolt")]
        eventually(lambda: clients[0].adapters.get(SECRET).state is AdapterState.RESIDENT)
        yield Pair(daemon, address, tls, owner, *clients, tokens)
        assert daemon.stop() == 0, daemon.output()
    finally:
        daemon.remove()


def test_a_token_is_needed_and_says_who_calls(pair: Pair) -> None:
    assert (pair.acme.tenant, pair.bolt.tenant) == ("acme", "bolt")
    assert [a.id for a in pair.acme.adapters.list()] == [SECRET]
    assert pair.bolt.adapters.list() == []
    for token in ("", "optiq_acme_000000000000_" + "x" * 43, pair.tokens["acme"][:-1]):
        with Client(pair.address, tls=pair.tls, token=token, tenant="acme") as nobody:
            with pytest.raises(PermissionDenied) as caught:
                nobody.adapters.list()
            assert caught.value.code == "UNAUTHENTICATED"
            with pytest.raises(PermissionDenied):
                nobody.generate("hello").read()
            assert nobody.health() == "SERVING"


def test_without_the_certificate_nobody_connects(pair: Pair) -> None:
    with Client(pair.address, token=pair.tokens["acme"]) as plain, pytest.raises(ConnectionFailed):
        plain.adapters.list(timeout=5)
    with pytest.raises(CredentialsError, match="in the clear"):
        Client("192.0.2.1:5000", token=pair.tokens["acme"])


def foreign_calls(bolt: Client, name: str, job: str) -> list[Callable[[], Any]]:
    full = f"tenants/acme/adapters/{name}"
    return [
        lambda: bolt.adapters.get(full),
        lambda: bolt.adapters.load(full),
        lambda: bolt.adapters.unload(full),
        lambda: bolt.adapters.delete(full),
        lambda: bolt.generate("hi", adapter=full, max_tokens=1).read(),
        lambda: bolt.generate("hi", adapter=name, max_tokens=1).read(),
        lambda: bolt.training.get(f"tenants/acme/jobs/{job}"),
        lambda: bolt.training.cancel(f"tenants/acme/jobs/{job}"),
        lambda: bolt.training.delete(f"tenants/acme/jobs/{job}"),
        lambda: list(bolt.training.watch(f"tenants/acme/jobs/{job}")),
        lambda: bolt.tenants.get("acme"),
        lambda: bolt.tenants.usage("acme"),
        lambda: bolt.tenants.tokens("acme"),
        lambda: bolt.tenants.create_token("acme"),
        lambda: bolt.tenants.usage("-"),
    ]


def test_what_is_anothers_answers_exactly_as_what_is_not_there(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "x"}\n')
    with Client(home=pair.daemon.home, tenant="acme") as owner_for_acme:
        job = owner_for_acme.training.create("trained", TrainingConfig(data_path=str(tmp_path), iters=1))
        owner_for_acme.training.cancel(job.id)
    there = foreign_calls(pair.bolt, SECRET, job.id)
    absent = foreign_calls(pair.bolt, "absent", "absent-1234")
    for real, imagined in zip(there, absent, strict=True):
        answers = []
        for call in (real, imagined):
            with pytest.raises(NotFound) as caught:
                call()
            answers.append(caught.value)
        assert answers[0].reason == answers[1].reason
        blank = str(answers[0]).replace(SECRET, "absent").replace(job.id, "absent-1234")
        assert blank == str(answers[1])


def test_a_tenant_changes_no_tenants(pair: Pair) -> None:
    for call in (
        lambda: pair.bolt.tenants.create("carl"),
        lambda: pair.bolt.tenants.update("bolt", weight=100.0),
        lambda: pair.bolt.tenants.delete("bolt"),
        lambda: pair.bolt.tenants.share("x"),
        lambda: pair.bolt.adapters.import_folder(pair.daemon.home / "adapters" / "acme" / SECRET, "stolen"),
        lambda: pair.bolt.adapters.import_folder(pair.daemon.home / "store", "stolen"),
        lambda: pair.bolt.training.create("x", TrainingConfig(data_path=str(pair.daemon.home))),
    ):
        with pytest.raises(PermissionDenied):
            call()
    assert [t.id for t in pair.bolt.tenants.list()] == ["bolt"]


def test_events_and_status_show_only_ones_own(pair: Pair) -> None:
    with pair.acme.generate("Count to one hundred.", adapter=SECRET, max_tokens=60) as running:
        next(iter(running))
        mine = pair.acme.runtime.status()
        theirs = pair.bolt.runtime.status()
        all_ = pair.owner.runtime.status()
    assert [r.tenant for r in mine.requests] == ["acme"] and theirs.requests == ()
    assert [r.tenant for r in all_.requests] == ["acme"]
    assert (mine.adapter_count, theirs.adapter_count) == (1, 0)
    for status in (mine, theirs):
        assert (status.home_path, status.adapters_path, status.base.path, status.pid) == ("", "", "", 0)
    assert SECRET not in repr(theirs)

    def first(client: Client, count: int) -> list[Event]:
        with client.events.watch(from_revision=1) as events:
            return [next(events) for _ in range(count)]

    last = pair.owner.tenants.create("marker")
    assert last.id == "marker"
    pair.owner.tenants.delete("marker")
    seen = first(pair.bolt, 3)
    assert {e.resource for e in seen} <= {"", "tenants/bolt"} and SECRET not in repr(seen)
    assert any(SECRET in e.resource for e in first(pair.acme, 5))


def test_a_shared_adapter_is_anybodys(pair: Pair) -> None:
    with Client(home=pair.daemon.home, tenant="acme") as owner_for_acme:
        full = owner_for_acme.tenants.share(SECRET)
        try:
            assert pair.bolt.tenants.shared() == [full]
            for name in (SECRET, full):
                generation = pair.bolt.generate("hi", adapter=name, max_tokens=2)
                generation.read()
                assert generation.started is not None and generation.started.adapter == full
            used = {u.adapter: u.requests for u in pair.bolt.tenants.usage()}
            assert used[full] == 2, "counted on who asked, not on whose it is"
            listed = [a for a in pair.bolt.adapters.list() if a.shared]
            assert [a.name for a in listed] == [full] and listed[0] == pair.bolt.adapters.get(full)
            assert (listed[0].state, listed[0].source_path, listed[0].etag) == (AdapterState.RESIDENT, "", "")
            assert pair.acme.adapters.get(SECRET).source_path, "its owner sees the rest"
            for call in (pair.bolt.adapters.unload, pair.bolt.adapters.delete, pair.bolt.adapters.history):
                with pytest.raises(NotFound):
                    call(full)
            with pair.bolt.adapters.watch(timeout=20) as changes:
                assert full in [change.adapter.name for change in itertools.islice(changes, 2) if change.adapter]
                owner_for_acme.tenants.unshare(SECRET)
                gone = next(change for change in changes if change.adapter and change.adapter.name == full)
                assert gone.type is ChangeType.DELETED
        finally:
            with contextlib.suppress(NotFound):
                owner_for_acme.tenants.unshare(SECRET)
    assert not any(a.shared for a in pair.bolt.adapters.list())
    with pytest.raises(NotFound):
        pair.bolt.adapters.get(full)
    with pytest.raises(NotFound):
        pair.bolt.generate("hi", adapter=SECRET, max_tokens=2).read()


def test_one_tenants_prefix_is_not_anothers(pair: Pair) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 12
    for client in (pair.acme, pair.acme, pair.bolt):
        generation = client.generate(prompt, max_tokens=1)
        generation.read()
        assert generation.finished is not None
    assert generation.finished.usage.cached_tokens == 0


def test_quotas_name_themselves_and_when_to_come_back(pair: Pair) -> None:
    owner, bolt = pair.owner, pair.bolt
    owner.tenants.update("bolt", tokens_per_minute=2)
    bolt.generate("Count to one hundred.", max_tokens=20).read()
    with pytest.raises(ResourceExhausted) as caught:
        bolt.generate("hello", max_tokens=1).read()
    assert caught.value.reason == "QUOTA_EXCEEDED" and caught.value.retry_after
    assert caught.value.violations[0].field == "tenants/bolt:tokens_per_minute"
    owner.tenants.update("bolt", tokens_per_minute=0, concurrent_requests=1)
    with bolt.generate("Count to one hundred.", max_tokens=60) as running:
        next(iter(running))
        with pytest.raises(ResourceExhausted) as caught:
            bolt.generate("hello", max_tokens=1).read()
    assert caught.value.violations[0].field == "tenants/bolt:concurrent_requests"
    owner.tenants.update("bolt", concurrent_requests=0, disk_bytes=1)
    write_adapter(pair.daemon.home / "adapters" / "bolt" / "big", seed=4)
    found = eventually(lambda: bolt.adapters.get("big").quarantine)
    assert found is not None and found.code == "DISK_QUOTA"
    owner.tenants.update("bolt", disk_bytes=0, queued_jobs=1)


def test_a_revoked_token_is_refused_and_no_token_is_in_any_file(pair: Pair) -> None:
    token, text = pair.acme.tenants.create_token()
    with Client(pair.address, tls=pair.tls, token=text) as another:
        assert another.adapters.list()
        pair.acme.tenants.revoke_token("acme", token.id)
        with pytest.raises(PermissionDenied) as caught:
            another.adapters.list()
    assert caught.value.reason == "TOKEN_INVALID" and text not in repr(another._credentials)
    with Client(pair.address, tls=pair.tls, token=f"{text}bad") as wrong, pytest.raises(OptiqClientError) as refused:
        wrong.generate("hello").read()
    # optiq_<tenant>_<id>_<secret>, and the secret is base64 for URLs, which has underscores of its own.
    secrets = [one.split("_", 3)[3] for one in (text, *pair.tokens.values())]
    assert all(len(secret) > 40 for secret in secrets)
    assert not any(secret in str(refused.value) for secret in secrets)
    read = 0
    for file in pair.daemon.home.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_size < 50_000_000:
            content, read = file.read_bytes(), read + 1
            assert not any(secret.encode() in content for secret in secrets), file
    assert read > 5
