"""Routes: what they may be, where they send requests, and how little a change moves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq_daemon.blobs import Blobs
from optiq_daemon.errors import ConflictError, InvalidRequestError, NotFoundError
from optiq_daemon.events import EventLog
from optiq_daemon.names import AdapterKey, RouteKey
from optiq_daemon.records import AdapterRecord, Quarantine
from optiq_daemon.registry import Registry
from optiq_daemon.router import Router, rendezvous
from optiq_daemon.routes import RouteRecord, Routes, Shape, Target
from optiq_daemon.store import Store
from optiq_daemon.tenants import TenantRecord, Tenants

SUPPORT = RouteKey("default", "support")
weights = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 1000), min_size=1, max_size=8)


def targets(shares: dict[str, int]) -> tuple[Target, ...]:
    return tuple(Target(name, weight) for name, weight in shares.items())


@given(shares=weights, changed=weights, keys=st.lists(st.text(max_size=12), min_size=1, max_size=40))
def test_a_changed_weight_moves_only_its_own_keys(
    shares: dict[str, int], changed: dict[str, int], keys: list[str]
) -> None:
    name, weight = next(iter(changed.items()))
    after = {**shares, name: weight}
    for key in keys:
        old, new = rendezvous(targets(shares), key), rendezvous(targets(after), key)
        if old != new:
            assert (new if weight > shares.get(name, 0) else old) == name


def test_sticky_keys_are_spread_by_weight_and_stay() -> None:
    shape = targets({"v3": 95, "v4": 5})
    keys = [f"user-{number}" for number in range(20_000)]
    found = Counter(rendezvous(shape, key) for key in keys)
    assert found["v4"] / len(keys) == pytest.approx(0.05, rel=0.1)
    assert all(rendezvous(shape, key) == rendezvous(shape[::-1], key) for key in keys[:500])


class Bench:
    """Routes over adapters that exist, or do not, or are quarantined."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "optiq.sqlite3")
        self.events = EventLog(self.store)
        self.tenants = Tenants(self.store, self.events)
        self.registry = Registry(self.store, self.events, Blobs(folder / "store"))
        self.registry.restore()
        self.routes = self.load()
        self.number = 0.0
        self.router = Router(self.registry, self.tenants, self.routes, self.events, lambda: self.number)

    def load(self) -> Routes:
        return Routes(self.store, self.events, lambda t, a: self.registry.find(AdapterKey(t, a)) is not None)

    def publish(self, adapter: str, digest: str = "") -> None:
        key = AdapterKey("default", adapter)
        number = self.registry.record(key).last_number if self.registry.find(key) else 0
        found = (digest or adapter).encode().hex().ljust(64, "0")[:64]
        made = AdapterRecord(tenant="default", adapter=adapter, digest=found, last_number=number)
        self.registry.publish(made)

    def quarantine(self, adapter: str) -> None:
        reason = Quarantine(code="SHAPE_MISMATCH", message="wrong")
        self.registry.quarantine(AdapterKey("default", adapter), reason, fingerprint="", source="")

    def set(self, shares: dict[str, int], **fields: Any) -> RouteRecord:
        shape = Shape(targets=targets(shares), **fields)
        if self.routes.find(SUPPORT) is None:
            return self.routes.create(SUPPORT, shape)
        return self.routes.update(SUPPORT, shape, "set")

    def ask(self, **fields: Any) -> tuple[str, str, str]:
        chosen = self.router.choose("default", fields.pop("adapter", "support"), "", **fields)
        assert chosen.decision is not None
        return chosen.adapter, chosen.version, chosen.decision.why


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    for digest in ("one", "two", "three"):
        made.publish("support", digest)
    return made


async def test_requests_go_by_weight_and_by_version(bench: Bench) -> None:
    record = bench.set({"v3": 95, "v2": 5})
    assert record.shape.targets == (Target("support@v3", 95), Target("support@v2", 5))
    found: Counter[str] = Counter()
    for number in range(1000):
        bench.number = (number + 0.5) / 1000
        found[bench.ask()[1]] += 1
    assert found == {"v3": 950, "v2": 50}
    assert bench.ask() == ("support", "v2", "weight 5 of 100")
    assert {(t, n) for t, n, _ in bench.router.counts(SUPPORT)} == {("support@v3", 950), ("support@v2", 51)}
    assert bench.router.decisions(SUPPORT)[0].target == "support@v2"


async def test_a_pinned_version_or_a_full_name_goes_around_the_route(bench: Bench) -> None:
    bench.set({"base": 1})
    assert bench.router.choose("default", "support", "").adapter == ""
    assert bench.router.choose("default", "support", "v1").version == "v1"
    full = "tenants/default/adapters/support"
    assert bench.router.choose("default", full, "").adapter == full
    assert bench.router.choose("default", "", "", route="support").decision is not None
    with pytest.raises(NotFoundError):
        bench.router.choose("default", "", "", route="absent")
    bench.tenants.create(TenantRecord(id="acme"))
    assert bench.router.choose("acme", "support", "").decision is None, "a route is its tenant's own"


async def test_what_cannot_be_used_falls_back_and_says_why(bench: Bench) -> None:
    bench.set({"support@v9": 90, "bad": 10}, fallbacks=("spare", "base"))
    bench.quarantine("bad")
    assert bench.ask() == ("", "", "fallback: support@v9 is missing")
    bench.publish("spare")
    assert bench.ask()[0] == "spare"
    bench.number = 0.95
    assert bench.ask() == ("spare", "", "fallback: bad is quarantined")
    bench.publish("bad")
    assert bench.ask() == ("bad", "", "weight 10 of 100")
    bench.set({"support@v9": 1})
    with pytest.raises(NotFoundError, match="v9"):
        bench.ask()
    with pytest.raises(NotFoundError):
        bench.router.attempt(SUPPORT, "")


async def test_sticky_routes_look_at_the_key(bench: Bench) -> None:
    bench.set({"v1": 1, "v2": 1, "v3": 1}, sticky=True)
    found = set()
    for number in range(20):
        bench.number = number / 20
        found.add(bench.ask(sticky_key="one")[1])
    assert len(found) == 1
    assert len({bench.ask(sticky_key=f"key-{number}")[1] for number in range(50)}) == 3


async def test_wrong_routes_name_every_field(bench: Bench) -> None:
    wrong: list[tuple[dict[str, int], dict[str, Any], str]] = [
        ({}, {}, "route.targets"),
        ({"v1": 0}, {}, "route.targets"),
        ({"v1": -1, "v2": 1}, {}, "route.targets[0].weight"),
        ({"UPPER": 1}, {}, "route.targets[0].target"),
        ({"v1": 1, "support@v1": 1}, {}, "route.targets[1].target"),
        ({"v1": 1}, {"fallbacks": ("../x",)}, "route.fallbacks[0]"),
        ({"v1": 1}, {"shadow": "a b"}, "route.shadow"),
    ]
    for shares, fields, field in wrong:
        with pytest.raises(InvalidRequestError) as caught:
            bench.set(shares, **fields)
        assert field in [name for name, _ in caught.value.violations]
    bench.publish("v1")
    with pytest.raises(InvalidRequestError, match="support@v1"):
        bench.set({"v1": 1})
    bench.publish("base")
    with pytest.raises(InvalidRequestError, match="base@v1"):
        bench.set({"base": 1})


async def test_promote_and_roll_back_are_generations(bench: Bench) -> None:
    first = bench.set({"v2": 95, "v3": 5}, shadow="v1")
    promoted = bench.routes.promote(SUPPORT, "")
    assert promoted.shape.targets[0] == Target("support@v1", 100)
    assert promoted.shape.shadow == ""
    assert bench.routes.promote(SUPPORT, "v3").shape.targets[0] == Target("support@v3", 100)
    back = bench.routes.roll_back(SUPPORT, 1)
    assert (back.shape, back.generation) == (first.shape, 4)
    assert [record.generation for record in bench.load().history(SUPPORT)] == [4, 3, 2, 1]
    with pytest.raises(NotFoundError):
        bench.routes.roll_back(SUPPORT, 9)
    with pytest.raises(ConflictError):
        bench.routes.update(SUPPORT, back.shape, "set", first.etag)
    assert bench.load().get(SUPPORT) == back
    bench.routes.delete(SUPPORT, back.etag)
    assert bench.load().of("default") == []


async def test_versions_that_a_route_names_are_not_pruned(bench: Bench) -> None:
    bench.registry.history.is_held = lambda one: bench.routes.names_version(one.adapter, one.number, one.digest)
    bench.set({"v1": 1, "v3": 1})
    record = bench.registry.record(AdapterKey("default", "support"))
    bench.registry.history.prune(record, 1)
    assert [version.number for version in bench.registry.history.of(record.key)] == [3, 1]


async def test_events_about_decisions_are_coalesced(bench: Bench) -> None:
    bench.set({"v1": 1})
    for _ in range(500):
        bench.ask()
    assert len(bench.store.rows("SELECT 1 FROM events WHERE type = 'route.decisions'")) <= 2
