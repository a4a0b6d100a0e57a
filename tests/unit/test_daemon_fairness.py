"""Virtual token counters, and the rows that they give out."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq_daemon.admission import Admission, Ticket
from optiq_daemon.errors import QueueFullError
from optiq_daemon.events import EventLog
from optiq_daemon.fairness import VirtualCounters
from optiq_daemon.quotas import QuotaGate
from optiq_daemon.store import Store
from optiq_daemon.tenants import Tenants

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 1.0}


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 50)), min_size=1, max_size=300),
    st.integers(0, 2**32),
)
def test_backlogged_clients_differ_by_one_piece_at_most(arrivals: list[tuple[str, int]], seed: int) -> None:
    """The bound of VTC: max over pairs of |served| <= the largest piece over the smallest weight."""
    counters, queues, chance = VirtualCounters(WEIGHTS.__getitem__), {name: [] for name in "abcd"}, random.Random(seed)
    bound = 50 / min(WEIGHTS.values())
    todo = list(arrivals)
    while todo or any(queues.values()):
        if todo and chance.random() < 0.6:
            name, size = todo.pop()
            counters.enter(name)
            queues[name].append(size)
            continue
        waiting = [name for name, queue in queues.items() if queue]
        name = counters.next(waiting)
        if name is None:
            continue
        counters.charge(name, queues[name].pop())
        levels = [counters.served(other) for other in waiting]
        assert max(levels) - min(levels) <= bound + 1e-9
        counters.leave(name)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=50))
def test_idleness_saves_up_no_claim(pieces: list[int]) -> None:
    counters = VirtualCounters(lambda _: 1.0)
    counters.enter("idle")
    counters.leave("idle")
    counters.enter("busy")
    for piece in pieces:
        counters.charge("busy", piece)
    counters.enter("idle")
    assert counters.served("idle") == counters.served("busy") == sum(pieces)
    counters.leave("busy")
    counters.leave("idle")
    counters.enter("new")
    assert counters.served("new") == sum(pieces), "also when nobody is there"


class Bench:
    """An admission over an engine in which every row makes one token a step."""

    def __init__(self, folder: Path, rows: int, *, several: bool = True, max_waiting: int = 1000) -> None:
        store = Store(folder / "optiq.sqlite3")
        self.gate = QuotaGate(Tenants(store, EventLog(store)))
        self.admission = Admission(
            rows, max_waiting, self.gate, weight=lambda t: WEIGHTS.get(t, 1.0), tenants=lambda: 4 if several else 1
        )
        self.tokens: Counter[str] = Counter()
        self.held: dict[Ticket, tuple[ExitStack, int]] = {}

    def ask(self, tenant: str, length: int = 10) -> Ticket:
        stack = ExitStack()
        ticket = stack.enter_context(self.admission.enter(tenant, 0, length))
        self.held[ticket] = (stack, length)
        return ticket

    @property
    def running(self) -> list[Ticket]:
        return [ticket for ticket in self.held if ticket._state.name == "RUNNING"]

    def end(self, ticket: Ticket) -> None:
        self.held.pop(ticket)[0].close()

    def step(self) -> None:
        for ticket in self.running:
            ticket.generated(1)
            self.tokens[ticket.tenant] += 1
            stack, left = self.held[ticket]
            self.held[ticket] = (stack, left - 1)
            if left == 1:
                self.end(ticket)


@pytest.mark.parametrize(("rows", "lengths"), [(2, (1, 1, 1)), (4, (40, 3, 17)), (16, (8, 40, 8))])
def test_shares_are_the_weights(tmp_path: Path, rows: int, lengths: tuple[int, ...]) -> None:
    """Rows are not taken back, so with very few of them a share comes in pieces as long as an answer."""
    bench = Bench(tmp_path, rows)
    names = dict(zip("abc", lengths, strict=True))
    for step in range(4000):
        for name, length in names.items():
            while bench.admission.waiting(name) <= rows:
                bench.ask(name, length)
        if step == 400:
            bench.tokens.clear()
        bench.step()
    total = sum(bench.tokens.values())
    for name in names:
        share = WEIGHTS[name] / sum(WEIGHTS[other] for other in names)
        assert bench.tokens[name] / total == pytest.approx(share, rel=0.05)


def test_a_newcomer_finds_a_row_while_another_floods(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=8)
    flood = [bench.ask("a", 100) for _ in range(64)]
    assert len(bench.running) == 7 and bench.admission.waiting("a") == 57
    assert [ticket.position for ticket in flood[7:10]] == [1, 2, 3]
    newcomer = bench.ask("b")
    assert newcomer in bench.running and len(bench.running) == 8
    second = bench.ask("b")
    assert second not in bench.running, "the engine has no more rows"
    third = bench.ask("d")
    bench.end(bench.running[0])
    assert third in bench.running, "the next row is for who has none"


def test_the_kept_row_is_for_who_has_one_request_even_if_it_had_its_share(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=8)
    flood = [bench.ask("a", 100) for _ in range(64)]
    for _ in range(5):
        single = bench.ask("b")
        assert single in bench.running and single.urgent, "it holds no other row, and somebody holds several"
        bench.admission.charge("b", 1_000_000)
        bench.end(bench.running[0])
        assert sum(ticket.tenant == "a" for ticket in bench.running) == 6, "a row is kept although b holds one"
        bench.end(single)
    assert not any(ticket.urgent for ticket in flood)
    backlog = [bench.ask("b") for _ in range(3)]
    assert [ticket in bench.running for ticket in backlog] == [True, False, False], "more of them wait for their turn"


def test_an_answer_is_charged_in_advance_and_corrected(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=8)
    first = bench.ask("a", 10)
    while first in bench.held:
        bench.step()
    assert bench.admission.served("a") == 20
    second, third = bench.ask("a", 10), bench.ask("a", 3)
    assert bench.admission.served("a") == 20 + 20 + 6, "as long as the last one, but no longer than asked for"
    second.generated(12)
    assert bench.admission.served("a") == 20 + 24 + 6
    third.generated(1)
    bench.end(second)
    bench.end(third)
    assert bench.admission.served("a") == 20 + 24 + 2


def test_a_tenant_alone_has_all_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=4, several=False)
    for _ in range(5):
        bench.ask("a")
    assert len(bench.running) == 4
    single = Bench(tmp_path, rows=1)
    single.ask("a")
    assert len(single.running) == 1


def test_each_queue_has_its_own_bound(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=2, max_waiting=3)
    for _ in range(5):
        bench.ask("a")
    with pytest.raises(QueueFullError):
        bench.ask("a")
    for _ in range(3):
        bench.ask("b")


async def test_positions_are_told_as_they_change(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=1, several=False)
    first, second, third = (bench.ask("a") for _ in range(3))
    told: list[int] = []

    async def wait() -> None:
        told.extend([position async for position in third.turn()])

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    bench.end(second)  # went away while it waited
    await asyncio.sleep(0)
    bench.end(first)
    await asyncio.wait_for(waiting, 5)
    assert told == [2, 1] and bench.running == [third]


def test_a_shadow_takes_only_what_nobody_needs(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=4, several=False)
    with bench.admission.shadow() as first, bench.admission.shadow() as second, bench.admission.shadow() as third:
        assert first.given.is_set() and second.given.is_set() and not third.given.is_set(), "half of the rows"
        asked = [bench.ask("a") for _ in range(2)]
        assert len(bench.running) == 2 and not second.evicted.is_set(), "two rows were still free"
        asked += [bench.ask("a")]
        assert len(bench.running) == 3 and second.evicted.is_set() and not first.evicted.is_set()
        asked += [bench.ask("a"), bench.ask("a")]
        assert len(bench.running) == 4 and first.evicted.is_set()
        for ticket in asked[:4]:
            bench.end(ticket)
        assert third.given.is_set(), "nobody waits and the rows are free again"
