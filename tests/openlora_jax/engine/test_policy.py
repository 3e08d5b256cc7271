"""Who goes first and who gives way, in virtual time."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_jax.engine.scheduling_params import Priority
from tests.openlora_jax.engine.fakes import small_config
from tests.openlora_jax.engine.simulator import Arrival, Journey, Simulation

LOW_WORK = st.builds(
    Arrival,
    at=st.floats(0.0, 1.0),
    adapter=st.integers(0, 12),
    priority=st.just("low"),
    tenant=st.sampled_from(["", "blue"]),
    prompt=st.integers(1, 60),
    tokens=st.integers(20, 40) | st.just(0),
)


def started(journeys: Iterable[Journey]) -> list[Journey]:
    """In the order of their starts."""
    return sorted(journeys, key=lambda journey: (journey.started or 0, journey.live.order))


@settings(max_examples=25, deadline=None)
@given(
    work=st.lists(LOW_WORK, min_size=8, max_size=20),
    at=st.floats(1.0, 6.0),
    pages=st.integers(2, 4),
    rank=st.integers(1, 2),
    blocks=st.sampled_from([12, 33]),
)
def test_high_priority_starts_within_two_steps_of_its_load(
    work: list[Arrival], at: float, pages: int, rank: int, blocks: int
) -> None:
    """Whatever low-priority work fills rows, pool and KV."""
    config = small_config(kv_blocks=blocks, work_items=24, max_wait=1000.0)
    simulation = Simulation(config, pages=pages, rank_pages=lambda number: rank if number == 20 else 1)
    journeys = simulation.run([*work, Arrival(at, adapter=20, priority="high", prompt=40)])
    [high] = [journey for journey in journeys if journey.arrival.priority == "high"]
    assert high.started is not None
    assert high.loaded is not None
    assert high.started - high.loaded <= 2


def test_without_classes_it_waits_for_the_pool() -> None:
    """The same under `fcfs`, so the test above says something."""
    work = [Arrival(0.0, adapter=number, priority="low", tokens=60) for number in range(1, 9)]
    high = Arrival(1.0, adapter=20, priority="high")
    journeys = Simulation(small_config(policy="fcfs")).run([*work, high])
    assert (journeys[-1].started or 0) - (journeys[-1].loaded or 0) > 50


def flood(seconds: float, each: float, *, priority: Priority = "high", tokens: int = 8) -> list[Arrival]:
    """More than four rows can serve, from adapters that all fit."""
    return [Arrival(each * n, adapter=1 + n % 3, priority=priority, tokens=tokens) for n in range(int(seconds / each))]


RARE = st.builds(
    Arrival,
    at=st.floats(0.0, 15.0),
    adapter=st.integers(1, 12),
    priority=st.sampled_from(["low", "normal"]),
    tenant=st.sampled_from(["", "blue", "green"]),
    prompt=st.integers(1, 60),
    tokens=st.integers(1, 20) | st.just(0),
)
MAX_WAIT = 16.0


@settings(max_examples=12, deadline=None)
@given(st.lists(RARE, min_size=1, max_size=5))
def test_ageing_bounds_every_wait(rare: list[Arrival]) -> None:
    """While higher classes ask for all that there is."""
    simulation = Simulation(small_config(max_wait=MAX_WAIT, max_queue=4096))
    journeys = simulation.run([*flood(32.0, 0.24), *rare])
    waits = [journey.wait for journey in journeys if journey.arrival.priority != "high"]
    assert max(waits) <= MAX_WAIT


def test_without_ageing_they_wait_till_the_flood_ends() -> None:
    low = Arrival(1.0, adapter=4, priority="low")
    waits = []
    for max_wait in (MAX_WAIT, 1e6):
        journeys = Simulation(small_config(max_wait=max_wait)).run([*flood(30.0, 0.2), low])
        waits += [journey.wait for journey in journeys if journey.arrival is low]
    assert waits[0] <= MAX_WAIT < 29.0 < waits[1]


def test_the_overdue_leave_half_of_the_rows_to_the_classes() -> None:
    backlog = [Arrival(0.0, priority="low", tokens=40) for _ in range(40)]
    late = [Arrival(8.0 + number, priority="high") for number in range(10)]
    journeys = Simulation(small_config(max_wait=6.0)).run([*backlog, *late])
    assert max(journey.wait for journey in journeys if journey.arrival.priority == "high") < 0.5


def position(journeys: Iterable[Journey], tenant: str) -> float:
    """Mean place of a tenant's requests in the order of starts, of 1."""
    order = [journey.arrival.tenant for journey in started(journeys)]
    places = [place for place, name in enumerate(order) if name == tenant]
    return sum(places) / len(places) / len(order)


def test_tenants_share_evenly() -> None:
    """Six requests of one tenant come after sixty of another, and start among its first."""
    arrivals = [Arrival(0.0, tenant="crowd") for _ in range(60)] + [Arrival(0.1, tenant="guest") for _ in range(6)]
    assert position(Simulation(small_config()).run(arrivals), "guest") < 0.2
    assert position(Simulation(small_config(policy="fcfs")).run(arrivals), "guest") > 0.9


def test_long_answers_are_charged() -> None:
    """Of two tenants that always wait, who asks for five times as many tokens gets a fifth as many requests served."""
    arrivals = [Arrival(0.0, tenant="long", tokens=50) for _ in range(60)]
    arrivals += [Arrival(0.0, tenant="short", tokens=10) for _ in range(60)]
    first = [journey.arrival.tenant for journey in started(Simulation(small_config()).run(arrivals))][:60]
    assert 8 <= first.count("long") <= 18


def test_adapters_of_a_tenant_share_evenly() -> None:
    arrivals = [Arrival(0.0, adapter=1) for _ in range(40)] + [Arrival(0.1, adapter=2) for _ in range(4)]
    journeys = started(Simulation(small_config()).run(arrivals))
    assert max(place for place, journey in enumerate(journeys) if journey.arrival.adapter == 2) < 16


def test_the_absent_wait_no_longer_for_the_resident() -> None:
    """A flood for three resident adapters of a pool of three: the absent one gets its page nevertheless."""
    absent = Arrival(5.0, adapter=9)
    journeys = Simulation(small_config(), pages=3).run([*flood(15.0, 0.3, priority="normal"), absent])
    [journey] = [journey for journey in journeys if journey.arrival is absent]
    assert journey.wait < 5.0


def test_adapters_that_do_not_fit_together_take_turns_no_more_often_than_they_may() -> None:
    """Two tenants, each with an adapter that takes the whole pool, and many requests of both."""
    arrivals = [Arrival(0.0, adapter=1 + n % 2, tenant=str(n % 2), tokens=2) for n in range(40)]
    writes, waits = [], []
    for min_residency in (0.0, 1.0):
        config = small_config(max_rows=1, min_residency=min_residency)
        simulation = Simulation(config, pages=1, load=0.0)
        waits.append(max(journey.wait for journey in simulation.run(arrivals)))
        writes.append(simulation.bench.adapters.writes)
    assert writes[0] > 30
    assert writes[1] < 10
    assert waits[1] == pytest.approx(waits[0], rel=0.1), "nobody rests for it"


def test_resident_adapters_go_first_among_equals() -> None:
    simulation = Simulation(small_config(max_rows=1), pages=4, load=0.0)
    first = Arrival(0.0, adapter=1, tokens=4)
    journeys = started(simulation.run([first, *(Arrival(0.1, adapter=number, tokens=4) for number in (2, 1))]))
    assert [journey.arrival.adapter for journey in journeys] == [1, 1, 2]


def test_fcfs_serves_in_the_order_of_arrival() -> None:
    kinds: list[tuple[Priority, str]] = [("low", "blue"), ("high", "green"), ("normal", "blue")]
    arrivals = [Arrival(0.01 * n, priority=kinds[n % 3][0], tenant=kinds[n % 3][1]) for n in range(30)]
    journeys = Simulation(small_config(policy="fcfs")).run(arrivals)
    assert [journey.live.order for journey in started(journeys)] == list(range(30))


@pytest.mark.parametrize("tokens", [40, 0])
def test_a_deterministic_engine_lets_only_those_give_way_who_have_no_token(tokens: int) -> None:
    config = small_config(deterministic=True, max_wait=1000.0)
    work = [Arrival(0.0, priority="low", tokens=tokens, prompt=80) for _ in range(4)]
    simulation = Simulation(config)
    journeys = simulation.run([*work, Arrival(0.05, priority="high")])
    high = journeys[-1]
    assert simulation.bench.engine.stats.preemptions == 1
    assert (high.started or 0) - (high.loaded or 0) <= 2
