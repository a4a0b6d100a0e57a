"""Who watches adapters, and which names changed since they were last told."""

from __future__ import annotations

from collections.abc import Callable

from optiq_daemon.names import AdapterKey
from optiq_daemon.signals import Changed


class Subscription:
    """Names that changed since they were last taken; bounded by the number of names, whatever the reader does."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.changed = Changed()
        self._pending: dict[AdapterKey, None] = {}

    def mark(self, key: AdapterKey) -> None:
        """Note a change."""
        self._pending[key] = None
        self.changed.notify()

    async def take(self) -> list[AdapterKey]:
        """Wait for changes and take them."""
        while True:
            ticket = self.changed.ticket()
            if self._pending:
                taken, self._pending = list(self._pending), {}
                return taken
            await ticket.wait()


class Watchers:
    """All subscriptions: each is told of its tenant's adapters and of those that are shared."""

    def __init__(self) -> None:
        self.is_shared: Callable[[AdapterKey], bool] = lambda _: False
        self._subscriptions: set[Subscription] = set()

    def subscribe(self, tenant: str) -> Subscription:
        """Be told which names change that a tenant can use."""
        subscription = Subscription(tenant)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Be told no more."""
        self._subscriptions.discard(subscription)

    def mark(self, key: AdapterKey) -> None:
        """A name changed."""
        for subscription in self._subscriptions:
            if subscription.tenant == key.tenant or self.is_shared(key):
                subscription.mark(key)

    def share_changed(self, key: AdapterKey) -> None:
        """Every tenant may use a name from now, or only its own again."""
        for subscription in self._subscriptions:
            subscription.mark(key)
