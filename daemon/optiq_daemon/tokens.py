"""Bearer tokens: made once, shown once, kept as a hash.

A token is `optiq_<tenant>_<id>_<secret>`: the tenant tells a client whom it acts for, the id finds the row, the secret
has 256 random bits. Such a secret cannot be guessed from its SHA-256, so no slow password hash is needed, and a call
costs microseconds.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

import msgspec

from optiq_daemon.names import ID_PATTERN
from optiq_daemon.store import Store

PREFIX = "optiq"
USE_TIME_STEP_S = 60.0
_FORM = re.compile(rf"{PREFIX}_({ID_PATTERN.pattern})_(?P<id>[0-9a-f]{{12}})_(?P<secret>[A-Za-z0-9_-]{{43}})")


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token's row without its hash; times are in seconds since the epoch, 0 for never."""

    id: str
    tenant: str
    create_time: float
    use_time: float = 0.0

    @property
    def name(self) -> str:
        """`tenants/{tenant}/tokens/{token}`."""
        return f"tenants/{self.tenant}/tokens/{self.id}"


class TokenTable:
    """The rows of the `tokens` table."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, tenant: str, *, rotate: bool = False) -> tuple[Token, str]:
        """Make a token; returns it and its text, which cannot be had again.

        Args:
            rotate: revoke all other tokens of the tenant.
        """
        made = Token(id=secrets.token_hex(6), tenant=tenant, create_time=time.time())
        secret = secrets.token_urlsafe(32)
        with self._store.transaction():
            if rotate:
                self._store.execute("DELETE FROM tokens WHERE tenant = ?", (tenant,))
            self._store.execute(
                "INSERT INTO tokens (id, tenant, hash, create_time) VALUES (?, ?, ?, ?)",
                (made.id, tenant, _hash(secret), made.create_time),
            )
        return made, f"{PREFIX}_{tenant}_{made.id}_{secret}"

    def tenant_of(self, text: str) -> str:
        """Whose token this is; empty if it is nobody's."""
        form = _FORM.fullmatch(text)
        if form is None:
            return ""
        row = self._store.row("SELECT tenant, hash, use_time FROM tokens WHERE id = ?", (form["id"],))
        # Compared also where there is no row, so that the time taken does not tell ids that exist.
        valid = hmac.compare_digest(row["hash"] if row else bytes(32), _hash(form["secret"]))
        if row is None or not valid:
            return ""
        now = time.time()
        if form[1] != row["tenant"]:
            return ""
        if now - row["use_time"] >= USE_TIME_STEP_S:
            self._store.execute("UPDATE tokens SET use_time = ? WHERE id = ?", (now, form["id"]))
        return str(row["tenant"])

    def of(self, tenant: str) -> list[Token]:
        """A tenant's tokens, oldest first."""
        rows = self._store.rows(
            "SELECT id, tenant, create_time, use_time FROM tokens WHERE tenant = ? ORDER BY create_time, id", (tenant,)
        )
        return [msgspec.convert(dict(row), Token) for row in rows]

    def any(self) -> bool:
        """Whether there is any token at all."""
        return self._store.row("SELECT 1 FROM tokens") is not None

    def delete(self, tenant: str, token: str) -> bool:
        """Revoke a token; False if the tenant has none with this id."""
        return self._store.execute("DELETE FROM tokens WHERE tenant = ? AND id = ?", (tenant, token)).rowcount > 0


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
