"""Limits of each tenant, checked where something is about to be taken. All of them answer RESOURCE_EXHAUSTED."""

from __future__ import annotations

import time
from collections.abc import Callable

from optiq_daemon.errors import QuotaError
from optiq_daemon.tenants import Quotas, Tenants

MINUTE_S = 60.0


class TokenBucket:
    """Tokens per minute: full at first, spent as tokens come, filled evenly.

    What a request will take is not known when it begins, so it may run the bucket into debt; the next one waits for
    that to be paid. Over any span a tenant gets at most the limit times its minutes, plus one bucket and one debt.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._level = float(limit)
        self._at = now

    def resize(self, limit: int, now: float) -> None:
        """Take a changed limit; what was spent stays spent."""
        self._fill(now)
        self._level += limit - self.limit
        self.limit = limit

    def spend(self, tokens: float, now: float) -> None:
        """Take tokens out, below zero if need be."""
        self._fill(now)
        self._level -= tokens

    def wait(self, now: float) -> float:
        """Seconds until a request may begin; 0 if it may now."""
        self._fill(now)
        return max(0.0, (1.0 - self._level) * MINUTE_S / self.limit)

    def _fill(self, now: float) -> None:
        self._level = min(self.limit, self._level + max(0.0, now - self._at) * self.limit / MINUTE_S)
        self._at = max(self._at, now)


class QuotaGate:
    """Checks the quotas that are counted here; lives on the event loop.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, tenants: Tenants, clock: Callable[[], float] = time.monotonic) -> None:
        self._tenants = tenants
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    def limits(self, tenant: str) -> Quotas:
        """A tenant's limits now."""
        return self._tenants.find(tenant).quotas

    def check_rate(self, tenant: str) -> None:
        """Raise QuotaError if a tenant has spent its tokens of this minute."""
        bucket = self._bucket(tenant)
        if bucket is not None and (seconds := bucket.wait(self._clock())) > 0:
            raise exceeded(
                tenant, "tokens_per_minute", bucket.limit, f"its tokens are spent for {seconds:.1f} s", seconds
            )

    def spend(self, tenant: str, tokens: int) -> None:
        """Count tokens that were computed for a tenant."""
        bucket = self._bucket(tenant)
        if bucket is not None:
            bucket.spend(tokens, self._clock())

    def check(self, tenant: str, quota: str, used: int, added: int = 1, *, retry_seconds: float = 1.0) -> None:
        """Raise QuotaError if `used + added` is beyond the quota of this name."""
        limit = int(getattr(self.limits(tenant), quota))
        if limit and used + added > limit:
            raise exceeded(tenant, quota, limit, f"{used} in use, {added} asked for", retry_seconds)

    def _bucket(self, tenant: str) -> TokenBucket | None:
        limit, bucket = self.limits(tenant).tokens_per_minute, self._buckets.get(tenant)
        if not limit:
            self._buckets.pop(tenant, None)
            return None
        if bucket is None:
            bucket = self._buckets[tenant] = TokenBucket(limit, self._clock())
        elif bucket.limit != limit:
            bucket.resize(limit, self._clock())
        return bucket


def exceeded(tenant: str, quota: str, limit: int, what: str, retry_seconds: float) -> QuotaError:
    """The answer to a request beyond a quota; its subject is `tenants/{tenant}:{quota}`."""
    subject = f"tenants/{tenant}:{quota}"
    return QuotaError(subject, f"quota {quota} of tenant {tenant!r} is {limit}: {what}", retry_seconds=retry_seconds)
