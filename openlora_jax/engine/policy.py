"""Who goes first: the order in which requests start, and who gives way to whom. Plain data, no clock of its own.

Two policies. `fcfs`: in the order of arrival, and nobody gives way but for KV blocks, the youngest first. `fair`:

* A higher class starts first, and may take rows, KV blocks and pages from running requests of a lower one.
* Within a class, whoever had to give way goes first; then the tenant that was served the fewest tokens. Within a
  tenant, whose adapters are on the device goes first until the others have been ready for `PATIENCE` seconds; then the
  adapter that was served the fewest tokens; then the earliest deadline; then the oldest.
* A request that has waited half of `max_wait` is overdue: it stands above every class, the longest wait first, and
  gives way to nobody. So it waits no longer than `max_wait` while runs end within the other half of it. The overdue
  have half of the rows: a queue too long to be served in time leaves the other half to the classes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from math import inf
from typing import Any, Protocol, runtime_checkable

from openlora_jax.config import EngineConfig
from openlora_jax.engine.fairness import VirtualTokens
from openlora_jax.engine.scheduling_params import Priority
from openlora_jax.engine.sequence import LiveRequest, Party, Rank

PATIENCE = 1.0
"""Seconds for which others may pass a request that finds no room on the device for its adapters."""

LEVELS: dict[Priority, int] = {"low": 0, "normal": 1, "high": 2}
OVERDUE = 3

OUTPUT_WEIGHT = 2
"""What an output token counts beside a prompt token (Sheng et al.)."""


@runtime_checkable
class Policy(Protocol):
    """Engine thread only. Every request arrives once, starts any number of times, and leaves once."""

    def arrives(self, live: LiveRequest) -> None:
        """It begins to wait for the first time."""

    def level(self, live: LiveRequest) -> int:
        """Its class. It may take from who runs at a lower one."""

    def order(self, waiting: Iterable[Party], now: float) -> Iterator[Party]:
        """Those whose adapters are loaded, who starts first. What `starts` meanwhile counts for the rest."""

    def urgent(self, live: LiveRequest) -> bool:
        """Whether a request, of those that `order` saw last, need not spare what others wait for."""

    def starts(self, live: LiveRequest) -> Rank:
        """Its place among the running; the smaller goes first, the largest gives way first."""

    def leaves(self, live: LiveRequest) -> None:
        """It has ended."""


def policy_of(config: EngineConfig) -> Policy:
    """The configured one."""
    return Fair(config.max_wait, config.max_rows) if config.policy == "fair" else Fcfs()


class Fcfs:
    """First come, first served."""

    def arrives(self, live: LiveRequest) -> None:
        """Everybody is alike."""

    def level(self, live: LiveRequest) -> int:
        return 0

    def order(self, waiting: Iterable[Party], now: float) -> Iterator[Party]:
        return iter([party for party in waiting if party[0].request.ready is not None])

    def urgent(self, live: LiveRequest) -> bool:
        return False

    def starts(self, live: LiveRequest) -> Rank:
        return (0, 0.0, live.order)

    def leaves(self, live: LiveRequest) -> None:
        """Everybody is alike."""


@dataclass(eq=False, slots=True)
class Account:
    """What one request was charged for, to its tenant and, within it, to its adapters."""

    tenant: str
    adapters: tuple[str, ...]
    level: int
    charged: int = 0


class Fair:
    """Priority classes, ageing, and fairness by served tokens. See the head of this file.

    Args:
        max_wait: seconds that no request shall wait, while runs end within half of it.
        max_rows: of the engine.
    """

    def __init__(self, max_wait: float, max_rows: int) -> None:
        self._overdue_after = max_wait / 2
        self._overdue_rows = max(1, max_rows // 2)
        self._accounts: dict[LiveRequest, Account] = {}
        self._running: set[LiveRequest] = set()
        self._tenants = VirtualTokens[str]()
        self._adapters: dict[str, VirtualTokens[tuple[str, ...]]] = {}
        self._overdue: set[LiveRequest] = set()
        self._lowest = 0

    def arrives(self, live: LiveRequest) -> None:
        params = live.request.scheduling
        adapters = tuple(item.adapter for mix in live.request.mixes for item in mix)
        self._accounts[live] = Account(params.tenant, adapters, LEVELS[params.priority])
        self._tenants.join(params.tenant)
        self._adapters.setdefault(params.tenant, VirtualTokens()).join(adapters)

    def level(self, live: LiveRequest) -> int:
        return self._accounts[live].level

    def order(self, waiting: Iterable[Party], now: float) -> Iterator[Party]:
        for live in self._running:
            self._charge(live)
        ready = [party for party in waiting if party[0].request.ready is not None]
        self._lowest = min((self.level(party[0].request) for party in ready), default=0)
        self._overdue = self._longest_waits(ready, now)
        heap = [(self._place(party, now), party) for party in ready]
        heapify(heap)
        while heap:
            place, party = heap[0]
            current = self._place(party, now)
            if current != place:  # somebody of its tenant has started since
                heapreplace(heap, (current, party))
            else:
                yield heappop(heap)[1]

    def urgent(self, live: LiveRequest) -> bool:
        return live in self._overdue or self.level(live) > self._lowest

    def starts(self, live: LiveRequest) -> Rank:
        self._running.add(live)
        self._charge(live)
        return (-OVERDUE if live in self._overdue else -self.level(live), _due(live), live.order)

    def leaves(self, live: LiveRequest) -> None:
        if live in self._running:
            self._charge(live)
            self._running.remove(live)
        self._overdue.discard(live)
        account = self._accounts.pop(live)
        self._tenants.leave(account.tenant)
        adapters = self._adapters[account.tenant]
        adapters.leave(account.adapters)
        if not adapters.busy:
            del self._adapters[account.tenant]

    def _place(self, party: Party, now: float) -> tuple[Any, ...]:
        """Its place in the order; parties of equal standing compare by age."""
        live = party[0].request
        if live in self._overdue:
            return (-OVERDUE, live.waiting_since, *party[0].age)
        account = self._accounts[live]
        return (
            -account.level,
            live.started is None,
            self._tenants[account.tenant],
            not live.resident and now - (live.ready or 0.0) < PATIENCE,
            self._adapters[account.tenant][account.adapters],
            _due(live),
            *party[0].age,
        )

    def _longest_waits(self, ready: Iterable[Party], now: float) -> set[LiveRequest]:
        """Those who are overdue, as far as their rows go."""
        lives = dict.fromkeys(party[0].request for party in ready)
        late = [live for live in lives if now - live.waiting_since >= self._overdue_after]
        if not late:
            return set()
        rows = self._overdue_rows - sum(live.num_running for live in self._running if live.rank[0] == -OVERDUE)
        chosen: set[LiveRequest] = set()
        for live in sorted(late, key=lambda live: (live.waiting_since, live.order)):
            if rows <= 0:
                break
            chosen.add(live)
            rows -= len(live.sequences)
        return chosen

    def _charge(self, live: LiveRequest) -> None:
        account = self._accounts[live]
        cost = live.served(OUTPUT_WEIGHT)
        self._tenants.charge(account.tenant, cost - account.charged)
        self._adapters[account.tenant].charge(account.adapters, cost - account.charged)
        account.charged = cost


def _due(live: LiveRequest) -> float:
    """When its first token is due, or else all of it."""
    ttft = live.request.scheduling.ttft_deadline
    if ttft is not None and live.answered is None:
        return live.submitted + ttft
    return inf if live.request.deadline is None else live.request.deadline
