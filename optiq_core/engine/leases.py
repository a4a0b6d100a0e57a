"""Which adapters the requests hold, and the blends that are made for them."""

from __future__ import annotations

from collections import Counter

from ..adapters.bank import BASE, AdapterBank, SlotHandle
from .row import Row
from .types import InUseError, NotLoadedError


class AdapterLeases:
    """Counts the users of every adapter in a bank. Belongs to the engine's thread.

    Args:
        bank: holds the adapters.
    """

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank
        self._users: Counter[str] = Counter()
        self._blends: dict[Row, str] = {}

    def take(self, row: Row) -> None:
        """Hold every adapter of a row that arrives.

        Raises:
            NotLoadedError: one of them is not loaded; none is held then.
        """
        for digest, _ in row.adapters:
            if digest not in self._bank:
                raise NotLoadedError(f"adapter {digest} is not loaded")
        self._users.update(digest for digest, _ in row.adapters)

    def place(self, row: Row) -> tuple[SlotHandle, float]:
        """Return the slot and the factor that a row decodes with; several adapters become one blend."""
        if not row.adapters:
            return BASE, 1.0
        factor = row.request.factor
        if len(row.adapters) == 1:
            digest, weight = row.adapters[0]
            return self._bank.handle(digest), weight * factor
        # Requests that differ in the factor share the blend.
        key = self._bank.blend(row.adapters)
        self._blends[row] = key
        self._users[key] += 1
        return self._bank.handle(key), factor

    def release(self, row: Row) -> None:
        """Give up what a row held; a blend leaves with its last user."""
        for digest, _ in row.adapters:
            self._drop(digest)
        key = self._blends.pop(row, None)
        if key is not None and not self._drop(key):
            self._bank.unload(key)

    def unload(self, digest: str) -> None:
        """Free an adapter's slot; unknown digests are ignored.

        Raises:
            InUseError: requests still use it.
        """
        if self._users[digest]:
            raise InUseError(f"{self._users[digest]} requests use adapter {digest}")
        self._bank.unload(digest)

    def _drop(self, key: str) -> int:
        self._users[key] -= 1
        left = self._users[key]
        if not left:
            del self._users[key]
        return left
