"""What each tenant used, by adapter and UTC day; written as each request ends, so that a kill loses none that ended."""

from __future__ import annotations

import time

import msgspec

from optiq_daemon.store import Store

DAY_S = 86_400


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """One row; `day` counts from the epoch, `adapter` is empty for the bare base, `owner` is whose adapter it is."""

    tenant: str
    owner: str
    adapter: str
    day: int
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    training_seconds: float = 0.0

    @property
    def cursor(self) -> tuple[int, str, str, str]:
        """Its place in the order of :meth:`UsageTable.page`."""
        return (self.day, self.tenant, self.owner, self.adapter)


class UsageTable:
    """The rows of the `usage` table."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(
        self,
        tenant: str,
        owner: str,
        adapter: str,
        *,
        requests: int = 0,
        prompt_tokens: int = 0,
        cached_tokens: int = 0,
        completion_tokens: int = 0,
        training_seconds: float = 0.0,
    ) -> None:
        """Count on today's row. A tenant that has been deleted meanwhile is not counted."""
        added = (requests, prompt_tokens, cached_tokens, completion_tokens, training_seconds)
        self._store.execute(
            "INSERT INTO usage (tenant, owner, adapter, day, requests, prompt_tokens, cached_tokens,"
            " completion_tokens, training_seconds) SELECT id, ?, ?, ?, ?, ?, ?, ?, ? FROM tenants WHERE id = ?"
            " ON CONFLICT (tenant, owner, adapter, day) DO UPDATE SET requests = requests + excluded.requests,"
            " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
            " cached_tokens = cached_tokens + excluded.cached_tokens,"
            " completion_tokens = completion_tokens + excluded.completion_tokens,"
            " training_seconds = training_seconds + excluded.training_seconds",
            (owner, adapter, int(time.time() // DAY_S), *added, tenant),
        )

    def page(
        self, tenant: str, days: tuple[int, int], size: int, after: tuple[int, str, str, str] | None = None
    ) -> list[Usage]:
        """Rows of a tenant (of all if empty) between two days, both included, ordered by day, tenant and adapter."""
        rows = self._store.rows(
            "SELECT * FROM usage WHERE (? = '' OR tenant = ?) AND day BETWEEN ? AND ?"
            " AND (day, tenant, owner, adapter) > (?, ?, ?, ?) ORDER BY day, tenant, owner, adapter LIMIT ?",
            (tenant, tenant, *days, *(after or (-1, "", "", "")), size),
        )
        return [msgspec.convert(dict(row), Usage) for row in rows]
