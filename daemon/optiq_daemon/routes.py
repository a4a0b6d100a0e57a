"""Routes as records: targets with weights, fallbacks, a shadow, and every generation that there was."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable

import msgspec

from optiq_daemon.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from optiq_daemon.events import EventLog
from optiq_daemon.names import RouteKey, parse_adapter_ref
from optiq_daemon.store import Store

BASE = "base"
MAX_TARGETS = 16
MAX_WEIGHT = 1_000_000
KEPT_GENERATIONS = 100
_BARE_VERSION = re.compile(r"v[1-9][0-9]*")


class Target(msgspec.Struct, frozen=True):
    """An adapter id, `id@version`, or `base`, with its share of the requests."""

    target: str
    weight: int


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What a user sets of a route."""

    targets: tuple[Target, ...] = ()
    fallbacks: tuple[str, ...] = ()
    shadow: str = ""
    sticky: bool = False


class RouteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of a route. Times are in seconds since the epoch."""

    tenant: str
    id: str
    shape: Shape
    generation: int = 1
    change: str = "created"
    create_time: float = 0.0
    update_time: float = 0.0

    @property
    def key(self) -> RouteKey:
        """Its name's parts."""
        return RouteKey(self.tenant, self.id)

    @property
    def etag(self) -> str:
        """Changes with every change of the record."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


class Routes:
    """All routes; lives on the event loop.

    Args:
        has_adapter: whether a tenant has an adapter with this id.
    """

    def __init__(self, store: Store, events: EventLog, has_adapter: Callable[[str, str], bool]) -> None:
        self._store = store
        self._events = events
        self._has_adapter = has_adapter
        rows = store.rows("SELECT document FROM routes")
        records = [msgspec.json.decode(row["document"], type=RouteRecord) for row in rows]
        self._records = {record.key: record for record in records}

    def find(self, key: RouteKey) -> RouteRecord | None:
        """A route, if there is one."""
        return self._records.get(key)

    def get(self, key: RouteKey) -> RouteRecord:
        """A route.

        Raises:
            NotFoundError: there is none.
        """
        record = self._records.get(key)
        if record is None:
            raise NotFoundError("route", key.name, f"there is no route {key.route!r} in tenant {key.tenant!r}")
        return record

    def of(self, tenant: str) -> list[RouteRecord]:
        """A tenant's routes, ordered by id."""
        return [self._records[key] for key in sorted(self._records) if key.tenant == tenant]

    def create(self, key: RouteKey, shape: Shape) -> RouteRecord:
        """Add a route.

        Raises:
            AlreadyExistsError: there is one of this name.
            InvalidRequestError: names every field that is wrong.
        """
        if key in self._records:
            raise AlreadyExistsError("route", key.name, f"there is a route {key.route!r} already")
        now = time.time()
        made = RouteRecord(
            tenant=key.tenant, id=key.route, shape=self._checked(key, shape), create_time=now, update_time=now
        )
        self._write(made)
        return made

    def update(self, key: RouteKey, shape: Shape, change: str, etag: str = "") -> RouteRecord:
        """Make a new generation.

        Raises:
            ConflictError: the etag is not the record's.
            InvalidRequestError: names every field that is wrong.
        """
        old = self.get(key)
        if etag and etag != old.etag:
            raise ConflictError("route", key.name, f"{key.name} has changed since it was read; read it again")
        made = msgspec.structs.replace(
            old,
            shape=self._checked(key, shape),
            generation=old.generation + 1,
            change=change,
            update_time=time.time(),
        )
        self._write(made)
        return made

    def delete(self, key: RouteKey, etag: str = "") -> None:
        """Remove a route with its history and its shadow's answers."""
        old = self.get(key)
        if etag and etag != old.etag:
            raise ConflictError("route", key.name, f"{key.name} has changed since it was read; read it again")
        with self._store.transaction():
            self._store.execute("DELETE FROM routes WHERE tenant = ? AND id = ?", key)
            self._events.append("route.deleted", key.name, "removed with its history")
        del self._records[key]

    def forget(self, tenant: str) -> None:
        """The tenant is gone, and its rows with it."""
        self._records = {key: record for key, record in self._records.items() if key.tenant != tenant}

    def names_version(self, adapter: str, number: int, digest: str) -> bool:
        """Whether some route names this version of an adapter, so that it must be kept."""
        for record in self._records.values():
            shape = record.shape
            for text in (*(t.target for t in shape.targets), *shape.fallbacks, shape.shadow):
                name, at, version = text.partition("@")
                if at and name == adapter and (version == f"v{number}" or digest.startswith(version)):
                    return True
        return False

    def promote(self, key: RouteKey, target: str) -> RouteRecord:
        """Give one target all of the weight; by default the shadow, else the one with the least weight above 0."""
        shape = self.get(key).shape
        running = sorted((t.weight, t.target) for t in shape.targets if t.weight)
        chosen = self._target(key, target, "target") if target else shape.shadow or running[0][1]
        others = tuple(Target(t.target, 0) for t in shape.targets if t.target != chosen)
        promoted = msgspec.structs.replace(
            shape, targets=(Target(chosen, 100), *others), shadow="" if shape.shadow == chosen else shape.shadow
        )
        return self.update(key, promoted, f"promoted {chosen}")

    def roll_back(self, key: RouteKey, generation: int) -> RouteRecord:
        """Take up the content of an earlier generation, by default of the one before.

        Raises:
            NotFoundError: it is not kept.
        """
        now = self.get(key).generation
        wanted = generation or now - 1
        old = next((record for record in self.history(key) if record.generation == wanted), None)
        if old is None or wanted == now:
            raise NotFoundError("route generation", key.name, f"{key.name} has no generation {wanted} to go back to")
        return self.update(key, old.shape, f"rolled back to generation {wanted}")

    def history(self, key: RouteKey) -> list[RouteRecord]:
        """Generations that are kept, newest first."""
        self.get(key)
        rows = self._store.rows(
            "SELECT document FROM route_history WHERE tenant = ? AND route = ? ORDER BY generation DESC", key
        )
        return [msgspec.json.decode(row["document"], type=RouteRecord) for row in rows]

    def _write(self, record: RouteRecord) -> None:
        document = msgspec.json.encode(record).decode()
        shares = ", ".join(f"{t.target}={t.weight}" for t in record.shape.targets)
        with self._store.transaction():
            self._store.execute(
                "INSERT INTO routes (tenant, id, document) VALUES (?, ?, ?)"
                " ON CONFLICT (tenant, id) DO UPDATE SET document = excluded.document",
                (*record.key, document),
            )
            self._store.execute(
                "INSERT INTO route_history (tenant, route, generation, document) VALUES (?, ?, ?, ?)",
                (*record.key, record.generation, document),
            )
            self._store.execute(
                "DELETE FROM route_history WHERE tenant = ? AND route = ? AND generation <= ?",
                (*record.key, record.generation - KEPT_GENERATIONS),
            )
            fields = {"generation": str(record.generation), "shadow": record.shape.shadow}
            self._events.append("route.changed", record.key.name, f"{record.change}: {shares}", fields)
        self._records[record.key] = record

    def _checked(self, key: RouteKey, shape: Shape) -> Shape:
        """The shape with every target written out.

        Raises:
            InvalidRequestError: names every field that is wrong.
        """
        wrong: list[tuple[str, str]] = []

        def target(text: str, field: str) -> str:
            try:
                return self._target(key, text, field)
            except InvalidRequestError as error:
                wrong.extend(error.violations)
                return text

        if not 1 <= len(shape.targets) <= MAX_TARGETS:
            wrong.append(("route.targets", f"1 to {MAX_TARGETS} targets, found {len(shape.targets)}"))
        targets = tuple(
            Target(target(t.target, f"route.targets[{i}].target"), t.weight) for i, t in enumerate(shape.targets)
        )
        for index, one in enumerate(targets):
            if not 0 <= one.weight <= MAX_WEIGHT:
                wrong.append((f"route.targets[{index}].weight", f"must be 0 to {MAX_WEIGHT}, is {one.weight}"))
            if any(one.target == other.target for other in targets[:index]):
                wrong.append((f"route.targets[{index}].target", f"{one.target} is there twice"))
        if targets and not any(one.weight > 0 for one in targets):
            wrong.append(("route.targets", "at least one weight must be above 0"))
        if len(shape.fallbacks) > MAX_TARGETS:
            wrong.append(("route.fallbacks", f"at most {MAX_TARGETS}, found {len(shape.fallbacks)}"))
        fallbacks = tuple(target(text, f"route.fallbacks[{i}]") for i, text in enumerate(shape.fallbacks))
        shadow = target(shape.shadow, "route.shadow") if shape.shadow else ""
        if wrong:
            raise InvalidRequestError(wrong)
        return Shape(targets=targets, fallbacks=fallbacks, shadow=shadow, sticky=shape.sticky)

    def _target(self, key: RouteKey, text: str, field: str) -> str:
        """A target written out: `v3` becomes `{route}@v3`. What could mean two things is refused."""
        adapter, _ = parse_adapter_ref(text, field)
        if text == BASE and self._has_adapter(key.tenant, BASE):
            raise InvalidRequestError.of(field, "'base' is the bare base, and an adapter too; name the adapter base@v1")
        if not _BARE_VERSION.fullmatch(text):
            return text
        here, own = self._has_adapter(key.tenant, adapter), self._has_adapter(key.tenant, key.route)
        if here and own:
            raise InvalidRequestError.of(
                field, f"{text!r} is an adapter, and a version of {key.route!r}; write {text}@v1 or {key.route}@{text}"
            )
        return text if here else f"{key.route}@{text}"
