"""A method described once for both clients: :func:`blocking` makes one half of it, :func:`awaited` the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from optiq_client.calls import Call, Page

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Described(Generic[T]):
    """A call that a client is to make, with its deadline in seconds."""

    call: Call[T]
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Listed(Generic[T]):
    """A list that a client is to read page by page; ``page`` makes the call of a token."""

    page: Callable[[str], Call[Page[T]]]
    timeout: float | None


class Resource:
    """A part of a client; ``self`` of its described methods."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def _tenant(self) -> str:
        return str(self._client.tenant)


def blocking(describe: Callable[P, Described[T]]) -> Callable[P, T]:
    """The method of :class:`optiq_client.Client`."""

    @functools.wraps(describe)
    def method(*args: P.args, **kwargs: P.kwargs) -> T:
        made = describe(*args, **kwargs)
        result: T = _client(args).run(made.call, made.timeout)
        return result

    return method


def awaited(describe: Callable[P, Described[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The method of :class:`optiq_client.AsyncClient`."""

    @functools.wraps(describe)
    async def method(*args: P.args, **kwargs: P.kwargs) -> T:
        made = describe(*args, **kwargs)
        result: T = await _client(args).run(made.call, made.timeout)
        return result

    return method


def blocking_list(describe: Callable[P, Listed[T]]) -> Callable[P, list[T]]:
    """The method of :class:`optiq_client.Client` that reads all pages."""

    @functools.wraps(describe)
    def method(*args: P.args, **kwargs: P.kwargs) -> list[T]:
        made, found, token = describe(*args, **kwargs), list[T](), ""
        while True:
            page: Page[T] = _client(args).run(made.page(token), made.timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    return method


def awaited_list(describe: Callable[P, Listed[T]]) -> Callable[P, Coroutine[Any, Any, list[T]]]:
    """The method of :class:`optiq_client.AsyncClient` that reads all pages."""

    @functools.wraps(describe)
    async def method(*args: P.args, **kwargs: P.kwargs) -> list[T]:
        made, found, token = describe(*args, **kwargs), list[T](), ""
        while True:
            page: Page[T] = await _client(args).run(made.page(token), made.timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    return method


def _client(args: tuple[Any, ...]) -> Any:
    """The client of the method's own object, which is its first argument."""
    return args[0]._client
