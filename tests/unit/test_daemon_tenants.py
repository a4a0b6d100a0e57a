"""Tokens, callers, what callers may name, quotas, and usage rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq_daemon.auth import Gatekeeper
from optiq_daemon.base_info import BaseInfo
from optiq_daemon.blobs import Blobs
from optiq_daemon.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    QuotaError,
    UnauthenticatedError,
)
from optiq_daemon.events import EventLog
from optiq_daemon.identity import OWNER, Caller
from optiq_daemon.names import AdapterKey
from optiq_daemon.quotas import QuotaGate, TokenBucket
from optiq_daemon.records import AdapterRecord, Description
from optiq_daemon.registry import Registry
from optiq_daemon.resident_quota import ResidentQuota
from optiq_daemon.scope import Scope
from optiq_daemon.slots import Lease
from optiq_daemon.store import Store
from optiq_daemon.tenants import Quotas, TenantRecord, Tenants
from optiq_daemon.usage import UsageTable
from optiq_protos.v1 import adapter_pb2, generation_pb2, tenant_pb2, training_pb2

ACME = Caller("acme", admin=False, trusted=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "optiq.sqlite3")


@pytest.fixture
def tenants(store: Store) -> Tenants:
    made = Tenants(store, EventLog(store))
    made.create(TenantRecord(id="acme"))
    made.create(TenantRecord(id="ops", role="admin"))
    return made


@pytest.fixture
def gatekeeper(tenants: Tenants, tmp_path: Path) -> Gatekeeper:
    return Gatekeeper(tenants, Scope(tenants, tmp_path / "adapters"))


def test_a_token_is_valid_until_it_is_revoked_or_rotated_away(store: Store, tenants: Tenants) -> None:
    tokens = tenants.tokens
    assert not tokens.any()
    first, text = tokens.create("acme")
    second, other = tokens.create("acme")
    assert tokens.tenant_of(text) == tokens.tenant_of(other) == "acme"
    assert tokens.delete("acme", first.id) and not tokens.delete("acme", first.id)
    assert tokens.tenant_of(text) == "" and tokens.tenant_of(other) == "acme"
    assert not tokens.delete("ops", second.id), "another tenant's token is not there"
    _, newest = tokens.create("acme", rotate=True)
    assert tokens.tenant_of(other) == "" and tokens.tenant_of(newest) == "acme"
    assert [token.use_time > 0 for token in tokens.of("acme")] == [True]
    content = b"".join(bytes(str(tuple(row)), "utf-8") for row in store.rows("SELECT * FROM tokens"))
    assert newest.encode() not in content and newest.split("_", 3)[3].encode() not in content


@given(st.text(max_size=90) | st.from_regex(r"optiq_[a-z]{1,8}_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", fullmatch=True))
def test_no_other_text_is_a_token(text: str) -> None:
    table = _tokens()
    assert table.tenant_of(text) == ""


def _tokens() -> object:  # one store for all examples
    if not hasattr(_tokens, "made"):
        store = Store(Path(":memory:"))
        made = Tenants(store, EventLog(store)).tokens
        made.create("default")
        _tokens.made = made  # type: ignore[attr-defined]
    return _tokens.made  # type: ignore[attr-defined]


def test_a_token_with_another_tenants_name_in_it_is_not_valid(tenants: Tenants) -> None:
    _, text = tenants.tokens.create("acme")
    assert tenants.tokens.tenant_of(text.replace("optiq_acme_", "optiq_ops_")) == ""


def test_who_calls(tenants: Tenants, gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    assert gatekeeper.authenticate([], local=True) == OWNER
    anybody = gatekeeper.authenticate([], local=False)
    assert (anybody.tenant, anybody.admin) == ("default", False), "loopback without tokens is the default tenant"
    _, acme = tenants.tokens.create("acme")
    _, ops = tenants.tokens.create("ops")
    for local in (True, False):
        assert gatekeeper.authenticate([f"Bearer {acme}"], local=local) == ACME
        assert gatekeeper.authenticate([f"bearer {ops}"], local=local).admin
    with pytest.raises(UnauthenticatedError) as missing:
        gatekeeper.authenticate([], local=False)
    assert missing.value.reason == "TOKEN_MISSING"
    for sent in ([acme], [f"Basic {acme}"], [f"Bearer {acme}x"], [f"Bearer {acme}", f"Bearer {ops}"], [""]):
        with pytest.raises(UnauthenticatedError) as invalid:
            gatekeeper.authenticate(sent, local=True)
        assert acme.split("_", 3)[3] not in str(invalid.value)
    strict = Gatekeeper(tenants, Scope(tenants, tmp_path), require_tokens=True)
    with pytest.raises(UnauthenticatedError):
        strict.authenticate([], local=True)
    for token in tenants.tokens.of("acme") + tenants.tokens.of("ops"):
        tenants.tokens.delete(token.tenant, token.id)
    # Revoking the last token must not open a daemon that other machines reach.
    public = Gatekeeper(tenants, Scope(tenants, tmp_path), public=True)
    with pytest.raises(UnauthenticatedError):
        public.authenticate([], local=False)
    assert public.authenticate([], local=True) == OWNER


def test_names_of_others_are_not_there_whatever_the_method(gatekeeper: Gatekeeper) -> None:
    foreign = [
        adapter_pb2.ListAdaptersRequest(parent="tenants/ops"),
        adapter_pb2.DeleteAdapterRequest(name="tenants/ops/adapters/x"),
        adapter_pb2.DeleteAdapterRequest(name="tenants/nobody/adapters/x"),
        tenant_pb2.UpdateTenantRequest(tenant=tenant_pb2.Tenant(name="tenants/ops")),
        tenant_pb2.ListTenantUsageRequest(parent="tenants/-"),
    ]
    for request in foreign:
        gatekeeper.check(OWNER, request)
        with pytest.raises(NotFoundError):
            gatekeeper.check(ACME, request)
    own = adapter_pb2.ListAdaptersRequest()
    gatekeeper.check(ACME, own)
    assert own.parent == "tenants/acme", "a parent that is left out is the caller's"
    says = generation_pb2.GenerateRequest(prompt="tenants/ops/adapters/x", stop=["tenants/ops"])
    gatekeeper.check(ACME, says)


def test_paths_stay_in_the_callers_folders(tenants: Tenants, gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    drop = tmp_path / "adapters"
    allowed, secret = tmp_path / "data", tmp_path / "secret"
    for folder in (drop / "acme" / "mine", drop / "ops", allowed, secret):
        folder.mkdir(parents=True)
    (allowed / "link").symlink_to(secret)
    tenants.update(TenantRecord(id="acme", allowed_paths=(str(allowed),)))

    def imports(path: Path | str) -> None:
        gatekeeper.check(ACME, adapter_pb2.ImportAdapterRequest(source_path=str(path)))

    def trains(path: Path | str) -> None:
        config = training_pb2.TrainingConfig(data_path=str(path))
        gatekeeper.check(ACME, training_pb2.CreateTrainingJobRequest(config=config))

    for check in (imports, trains):
        check(drop / "acme" / "mine")
        check(allowed / "anything")
        for path in (drop / "ops", secret, allowed / "link", allowed / ".." / "secret", f"{allowed}\0", "/", "rel"):
            with pytest.raises(ForbiddenError):
                check(path)
    gatekeeper.check(OWNER, adapter_pb2.ImportAdapterRequest(source_path=str(secret)))


def test_tenants_are_kept_and_changed_by_etag(store: Store, tenants: Tenants) -> None:
    with pytest.raises(AlreadyExistsError):
        tenants.create(TenantRecord(id="acme"))
    before = tenants.get("acme")
    changed = tenants.update(TenantRecord(id="acme", weight=3.0, quotas=Quotas(queued_jobs=2)), before.etag)
    with pytest.raises(ConflictError):
        tenants.update(changed, before.etag)
    with pytest.raises(InvalidRequestError) as wrong:
        tenants.update(TenantRecord(id="acme", weight=float("nan"), quotas=Quotas(disk_bytes=-1), allowed_paths=("x",)))
    assert [field for field, _ in wrong.value.violations] == [
        "tenant.weight",
        "tenant.quotas.disk_bytes",
        "tenant.allowed_paths[0]",
    ]
    assert Tenants(store, EventLog(store)).get("acme") == changed
    tenants.delete("acme")
    with pytest.raises(NotFoundError):
        tenants.get("acme")


def test_an_id_is_shared_by_one_owner(tenants: Tenants) -> None:
    tenants.share(AdapterKey("acme", "support"))
    with pytest.raises(AlreadyExistsError):
        tenants.share(AdapterKey("ops", "support"))
    assert tenants.shared_owner("support") == "acme"
    with pytest.raises(NotFoundError):
        tenants.unshare(AdapterKey("ops", "support"))
    tenants.unshare(AdapterKey("acme", "support"))
    assert tenants.shared() == []


@given(
    limit=st.integers(1, 10_000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 5_000)), max_size=60),
)
def test_a_bucket_gives_no_more_than_its_limit(limit: int, steps: list[tuple[float, int]]) -> None:
    """Over any run: at most the limit times the minutes, plus one bucket and the last request's debt."""
    bucket, now, spent, largest = TokenBucket(limit, 0.0), 0.0, 0, 0
    for pause, tokens in steps:
        now += pause
        if bucket.wait(now) == 0:
            bucket.spend(tokens, now)
            spent += tokens
            largest = max(largest, tokens)
    assert spent <= limit * (now / 60 + 1) + largest + 1e-6
    later = now + bucket.wait(now)
    assert bucket.wait(later + 1e-6) == 0, "the named wait is enough"


def test_quotas_say_which_and_when(tenants: Tenants) -> None:
    now = [0.0]
    gate = QuotaGate(tenants, lambda: now[0])
    gate.check("acme", "queued_jobs", 10**9)
    tenants.update(TenantRecord(id="acme", quotas=Quotas(queued_jobs=2, tokens_per_minute=60)))
    gate.check("acme", "queued_jobs", 1)
    with pytest.raises(QuotaError) as full:
        gate.check("acme", "queued_jobs", 2)
    assert full.value.subject == "tenants/acme:queued_jobs" and full.value.reason == "QUOTA_EXCEEDED"
    gate.check_rate("acme")
    gate.spend("acme", 65)
    with pytest.raises(QuotaError) as spent:
        gate.check_rate("acme")
    assert spent.value.retry_seconds == pytest.approx(6.0)
    now[0] = 6.1
    gate.check_rate("acme")
    gate.check_rate("ops")


def test_usage_adds_up_and_pages(store: Store, tenants: Tenants) -> None:
    table = UsageTable(store)
    for _ in range(3):
        table.add("acme", "acme", "roman", requests=1, prompt_tokens=10, completion_tokens=5)
    table.add("acme", "acme", "", requests=1)
    table.add("ops", "acme", "roman", requests=1, cached_tokens=4)
    table.add("gone", "gone", "x", requests=1)
    rows = table.page("", (0, 10**6), 2)
    assert [(r.tenant, r.adapter, r.requests, r.prompt_tokens) for r in rows] == [
        ("acme", "", 1, 0),
        ("acme", "roman", 3, 30),
    ]
    rest = table.page("", (0, 10**6), 2, rows[-1].cursor)
    assert [(r.tenant, r.owner, r.cached_tokens) for r in rest] == [("ops", "acme", 4)]
    assert len(table.page("ops", (0, 10**6), 10)) == 1 and not table.page("ops", (0, 1), 10)


class Engine:
    """An engine in memory in which every version takes 10 bytes."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()

    async def load(self, digest: str, path: Path) -> int:
        self.loaded.add(digest)
        return 10

    async def unload(self, digest: str) -> None:
        self.loaded.discard(digest)


async def test_beyond_its_resident_bytes_a_tenant_gives_up_its_own_idle_adapters(
    store: Store, tenants: Tenants, tmp_path: Path
) -> None:
    registry = Registry(store, EventLog(store), Blobs(tmp_path / "store"))
    registry.restore()
    quota = ResidentQuota(registry, QuotaGate(tenants))
    engine = Engine()
    await registry.engine_up(engine, BaseInfo("base", {}))
    digests = [letter * 64 for letter in "abc"]
    for digest in digests:
        description = Description(
            format="mlx-lm",
            kind="lora",
            base_model="",
            module_count=1,
            min_rank=1,
            max_rank=1,
            parameter_count=1,
            targets=(),
            disk_bytes=10,
        )
        registry.publish(AdapterRecord(tenant="acme", adapter=digest[0], digest=digest, description=description))

    async def use(digest: str) -> Lease:
        lease = registry.residency.lease(digest)
        try:
            await quota.make_room("acme", [digest])
            await registry.residency.enter(lease)
        except QuotaError:
            lease.release()
            raise
        return lease

    for digest in digests:
        (await use(digest)).release()
    assert engine.loaded == set(digests), "no quota, no limit"
    tenants.update(TenantRecord(id="acme", quotas=Quotas(resident_bytes=20)))
    held = await use(digests[2])
    assert engine.loaded == set(digests[1:]), "the longest unused left"
    second = await use(digests[1])
    with pytest.raises(QuotaError) as caught:
        await use(digests[0])
    assert caught.value.subject == "tenants/acme:resident_bytes"
    second.release()
    (await use(digests[0])).release()
    assert engine.loaded == {digests[0], digests[2]}
    held.release()
    await registry.close()
