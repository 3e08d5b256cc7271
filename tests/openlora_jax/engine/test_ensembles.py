"""Ensembles: members are rows that start, decode, give way and end together, and one token is chosen for all."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_jax.engine.request import Delta, Ensemble, Finished, GenerateRequest, MixItem
from openlora_jax.engine.scheduling_params import SchedulingParams
from openlora_jax.errors import InvalidRequest
from tests.openlora_jax.engine.answers import collect
from tests.openlora_jax.engine.cases import REQUESTS, answer_of, check, until
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate, small_config

Members = Mapping[tuple[str, ...], float]

TWO: Members = {("a1",): 0.5, (): 0.5}
THREE: Members = {("a1", "a2"): 1.0, (): -0.3, ("a3",): 0.4}


def together(prompt: Iterable[int], members: Members, **others: Any) -> GenerateRequest:
    """A request for an ensemble; each member is a mix of weight 1 each, beside its weight in the ensemble."""
    mixes = tuple(tuple(map(MixItem, names)) for names in members)
    return generate(prompt, ensemble=Ensemble(mixes, tuple(members.values())), **others)


CASES = {
    "one token": together([5], TWO, max_tokens=1),
    "a prompt of one token": together([5], THREE, max_tokens=40),
    "a whole tile before the last token": together(range(1, 18), TWO, max_tokens=20),
    "a whole tile with the last token": together(range(1, 17), TWO, max_tokens=20),
    "several chunks": together((n % 90 for n in range(70)), THREE, max_tokens=20),
    "one member": together([5, 6, 7], {("a2",): 1.0}),
    "one adapter twice": together([5, 6, 7], {("a2",): 0.7, ("a2", "a1"): 0.3}),
    "n": together(range(1, 12), TWO, n=3, max_tokens=40),
    "n of one token": together([5], TWO, n=2, max_tokens=30),
    "n at a block border": together(range(1, 34), TWO, n=2, max_tokens=30),
    "eos": together([5, 6, 4], TWO, ignore_eos=False, max_tokens=60),
    "stop string": together([5, 6, 7], THREE, stop=("abc", "eab", "cc"), max_tokens=60),
    "min tokens": together([5, 6, 7], TWO, stop_token_ids=range(0, 97, 7), min_tokens=30, max_tokens=60),
    "seed": together([5, 6, 7], TWO, seed=123, temperature=1.0),
}


def bench(**changes: object) -> Bench:
    return Bench(small_config(max_rows=8, **changes))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_alone(name: str, deterministic: bool) -> None:
    check(CASES[name], answer_of(CASES[name], bench(deterministic=deterministic)))


@pytest.mark.parametrize("name", CASES)
def test_in_company(name: str) -> None:
    """Plain requests before and after it, and another ensemble, so that not all find a row at once."""
    others = [REQUESTS["mix"], CASES["several chunks"], REQUESTS["n"], REQUESTS["base"]]
    requests = [others[0], CASES[name], *others[1:]]
    at_once = bench(kv_blocks=65)
    streams = [at_once.submit(request) for request in requests]
    at_once.settle()
    at_once.check_idle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))


def test_members_prefill_all_but_the_last_token_and_decode_side_by_side() -> None:
    engine = bench()
    engine.submit(together(range(1, 40), THREE, max_tokens=2))
    engine.settle()
    chunks = [tile for plan in engine.runner.plans if plan.kind == "prefill" for tile in plan.tiles]
    assert sum(len(tile.tokens or ()) for tile in chunks) == 3 * 38
    assert not any(tile.sampling for tile in chunks)
    first = next(plan for plan in engine.runner.plans if plan.kind == "decode")
    assert [(tile.start, tile.member) for tile in first.tiles] == [(38, 0), (38, 1), (38, 2)]


def test_its_events_are_those_of_its_samples() -> None:
    engine = bench()
    *deltas, last = list(_settled(engine, together([5, 6], THREE, n=2, max_tokens=6)))
    assert [delta.index for delta in deltas if isinstance(delta, Delta)].count(0) == 6
    assert len(deltas) == 12
    assert isinstance(last, Finished)
    assert (last.prompt_tokens, last.completion_tokens) == (2, 12)
    assert last.adapter_digests == ("d1", "d2", "d3"), "member by member"
    assert engine.engine.stats.generated_tokens == 12


def _settled(engine: Bench, request: GenerateRequest) -> Any:
    stream = engine.submit(request)
    engine.settle()
    return stream


def test_all_rows_of_one_that_gives_way_give_way() -> None:
    """Ten blocks, which are enough for either to its end, but not for both."""
    engine = bench(kv_blocks=11)
    requests = [together([5, 6, 7], TWO, max_tokens=60), together([7, 8, 9], THREE, max_tokens=40)]
    streams = [engine.submit(request) for request in requests]
    until(lambda: engine.engine.stats.preemptions > 0, engine)
    assert engine.engine.stats.preemptions == 3
    engine.settle()
    engine.check_idle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))


def test_a_higher_class_takes_all_its_rows() -> None:
    engine = Bench(small_config())
    low = together([5, 6, 7], THREE, max_tokens=30, scheduling=SchedulingParams(priority="low"))
    streams = [engine.submit(low)]
    until(lambda: engine.engine.stats.generated_tokens > 3, engine)
    high = generate([1, 2], {"a4": 1.0}, n=2, scheduling=SchedulingParams(priority="high"))
    streams.append(engine.submit(high))
    until(lambda: engine.engine.stats.preemptions > 0, engine)
    assert engine.engine.stats.preemptions == 3
    engine.settle()
    engine.check_idle()
    for request, stream in zip((low, high), streams, strict=True):
        check(request, collect(stream))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_cancelled_at_any_time_it_leaves_nothing(steps: int) -> None:
    engine = bench()
    stream = engine.submit(together(range(1, 40), THREE, n=2, max_tokens=60))
    for _ in range(steps):
        engine.engine.step()
    stream.cancel()
    engine.settle()
    engine.check_idle()
    assert [sample.finish_reason for sample in collect(stream).samples] == ["cancelled"] * 2


def test_members_find_the_blocks_of_their_own_mix_alone() -> None:
    engine = bench()
    prompt = range(1, 41)
    answer_of(generate(prompt, {"a1": 1.0}), engine)
    before = engine.engine.stats.cached_tokens
    check(request := together(prompt, TWO), answer_of(request, engine))
    assert engine.engine.stats.cached_tokens - before == 32, "of the member a1; the base has computed nothing"
    check(request, answer_of(request, engine))
    assert engine.engine.stats.cached_tokens - before == 32 + 64


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, TWO, THREE]),
            st.integers(1, 50),
            st.integers(1, 2),
            st.sampled_from(["low", "normal", "high"]),
            st.integers(0, 3),
        ),
        max_size=8,
    ),
    st.sampled_from([19, 25, 65]),
    st.booleans(),
)
def test_answers_do_not_depend_on_who_else_is_there(
    cases: list[tuple[Members | None, int, int, Any, int]], blocks: int, deterministic: bool
) -> None:
    """Few blocks and pages, classes, several at once: `fakes` read every position back and compare."""
    config = small_config(max_rows=8, kv_blocks=blocks, prefill_chunk=16, deterministic=deterministic)
    engine = Bench(config, FakeAdapters(num_pages=6))
    requests, streams = [], []
    for members, length, n, priority, steps in cases:
        scheduling = SchedulingParams(priority=priority)
        prompt = range(1, length + 1)
        n = 1 if length > 20 else n
        request = (
            generate(prompt, {"a1": 1.0}, n=n, scheduling=scheduling)
            if members is None
            else together(prompt, members, n=n, max_tokens=20, scheduling=scheduling)
        )
        requests.append(request)
        streams.append(engine.submit(request))
        for _ in range(steps):
            engine.engine.step()
    engine.settle()
    engine.check_idle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (together([5], TWO, n=5), "n: 5 samples of 2 rows each, but the engine runs 8 rows at once"),
        (generate([5], ensemble=Ensemble(((),) * 9)), "ensemble.members: has 9 entries; give 1 to 8"),
        (generate([5], ensemble=Ensemble(())), "ensemble.members: has 0 entries"),
        (generate([5], {"a1": 1.0}, ensemble=Ensemble(((),))), "ensemble: is given beside a mix"),
        (generate([5], ensemble=Ensemble(((), ()), (1.0,))), "ensemble.weights: has 1 entries for 2 members"),
        (generate([5], ensemble=Ensemble(((),), (float("nan"),))), "ensemble.weights: has one that is not a number"),
        (generate([5], ensemble=Ensemble(((),), (3.41e38,))), "not a number within 3.40282e[+]38 of 0"),
        (generate([5], ensemble=Ensemble(((), ()), (1.5, -0.5), "mean_probs")), "must not be negative, nor all zero"),
        (generate([5], ensemble=Ensemble(((), ()), (0.0, 0.0), "mean_probs")), "must not be negative, nor all zero"),
        (generate([5], ensemble=Ensemble(((MixItem("a1"),) * 2,))), "'a1' is named twice"),
        (together(range(90), {(): 1.0, ("a1",): 1.0, ("a2",): 1.0}, max_tokens=30), "needs 24 KV blocks .* has 20"),
    ],
)
def test_what_can_never_run_is_refused(request_: GenerateRequest, message: str) -> None:
    engine = bench(kv_blocks=21)
    with pytest.raises(InvalidRequest, match=message):
        engine.submit(request_)
    engine.check_idle()


def test_one_wider_than_the_engine_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="ensemble: 1 samples of 5 rows each, but the engine runs 4 rows at once"):
        Bench(small_config()).submit(generate([5], ensemble=Ensemble(((),) * 5)))


def test_weights_of_probabilities_add_up_to_one() -> None:
    engine = bench()
    engine.submit(generate([5], ensemble=Ensemble(((), (MixItem("a1"),)), (1.0, 3.0), "mean_probs")))
    engine.submit(generate([5], ensemble=Ensemble(((), (MixItem("a1"),)))))
    engine.settle()
    weights = {tile.ensemble.weights for plan in engine.runner.plans for tile in plan.tiles if tile.ensemble}
    assert weights == {(0.25, 0.75), (0.5, 0.5)}
