"""Against the oracle: every filter and penalty alone and together, on ordinary, tied and extreme logits."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.sampling import Sampled, SamplerState, SamplingBatch, prepare_slot, sample, slot_rows
from pallas_kernels.registry import Ops, implementations
from pallas_kernels.shortcut import declined
from tests.openlora_jax.engine.sampling import reference

ROWS, VOCAB, EDGE = 4, 300, 1e-4
SCRATCH = ROWS

Run = Callable[[SamplerState, np.ndarray, SamplingBatch], tuple[SamplerState, Sampled]]

CPU = implementations("cpu")
CUDA = replace(implementations("interpret"), shortcut=declined, top_k=implementations("cuda").top_k)
"""What runs on a GPU, its kernel interpreted."""

run = jax.jit(partial(sample, CPU))
EVERY_RUN = pytest.mark.parametrize("run", [run, jax.jit(partial(sample, CUDA))], ids=["cpu", "cuda"])


def packed(rows: Sequence[RowSampling | None], position: int = 7) -> SamplingBatch:
    padded = [*rows, *[None] * (ROWS - len(rows))]
    return SamplingBatch.pack(padded, range(ROWS), [position] * ROWS, scratch=SCRATCH, max_forbidden=4)


def fresh() -> SamplerState:
    return SamplerState.create(ROWS + 1, VOCAB)


def spread(scale: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(ROWS, VOCAB)) * scale).astype(np.float32)


def tokens(rows: Sequence[RowSampling | None], logits: np.ndarray) -> list[int]:
    return [int(token) for token in run(fresh(), logits, packed(rows))[1].token]


def uniform(row: RowSampling, position: int) -> float:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(row.seed), row.sample), position)
    return float(jax.random.uniform(key))


def check_draw(token: int, logits: np.ndarray, row: RowSampling, position: int) -> None:
    """The token is the one that the row's uniform number points at, up to rounding at the edges."""
    probabilities = reference.distribution(logits, row)
    loose = [reference.distribution(logits, row, min(max(row.top_p + slack, 0), 1)) for slack in (-EDGE, EDGE)]
    assert loose[1][token] > 0
    if ((loose[0] > 0) == (loose[1] > 0)).all():
        low, high = reference.interval(probabilities, token)
        assert low - EDGE <= uniform(row, position) <= high + EDGE


filters: dict[str, st.SearchStrategy[object]] = {
    "temperature": st.sampled_from([0.05, 0.7, 1.0, 1.5, 10.0]),
    "top_k": st.sampled_from([0, 1, 2, 10, 63, 64, 65, 200, VOCAB, VOCAB + 1]),
    "top_p": st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.99, 1.0]),
    "min_p": st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
    "seed": st.integers(0, 2**31 - 1),
    "sample": st.integers(0, 7),
}
penalties: dict[str, st.SearchStrategy[object]] = {
    "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
    "presence_penalty": st.sampled_from([-1.0, 0.0, 1.5]),
    "frequency_penalty": st.sampled_from([-0.5, 0.0, 2.0]),
    "forbidden": st.lists(st.integers(0, VOCAB - 1), max_size=4, unique=True).map(tuple),
}


def several(fields: dict[str, st.SearchStrategy[object]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """The fields of a row for every row of a batch."""
    return st.lists(st.fixed_dictionaries(fields), min_size=ROWS, max_size=ROWS)


@st.composite
def logit_rows(draw: st.DrawFn) -> np.ndarray:
    logits = spread(draw(st.sampled_from([0.0, 0.1, 2.5, 30.0])), draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["ordinary", "tied", "extreme"]))
    if kind == "tied":
        return np.round(logits)
    if kind == "extreme":
        logits[:, ::7], logits[:, 3::7] = 1e30, -np.inf
    return logits


@EVERY_RUN
@settings(deadline=None, max_examples=60)
@given(logits=logit_rows(), fields=several(filters), position=st.integers(0, 4000))
def test_filters(run: Run, logits: np.ndarray, fields: list[dict[str, Any]], position: int) -> None:
    rows = [RowSampling(**entry) for entry in fields]
    _, sampled = run(fresh(), logits, packed(rows, position))
    for line, row, token in zip(logits.astype(np.float64), rows, np.asarray(sampled.token).tolist(), strict=True):
        check_draw(token, line, row, position)


@EVERY_RUN
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 99),
    fields=several(filters | penalties),
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=20),
    output=st.lists(st.integers(0, VOCAB - 1), max_size=20),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), max_size=5),
)
def test_everything_together(
    run: Run, seed: int, fields: list[dict[str, Any]], prompt: list[int], output: list[int], bias: dict[int, float]
) -> None:
    rows = [RowSampling(**entry, biased=bool(bias)) for entry in fields]
    logits, state = spread(2.5, seed), fresh()
    for slot in range(ROWS):
        state = prepare_slot(state, np.int32(slot), np.int32(0), *slot_rows(prompt, output, bias, VOCAB))
    _, sampled = run(state, logits, packed(rows))
    for line, row, token in zip(logits, rows, np.asarray(sampled.token).tolist(), strict=True):
        check_draw(token, reference.adjusted(line, row, prompt, output, bias), row, 7)


@pytest.mark.parametrize("scale", [0.0, 2.5, 30.0])
def test_greedy_takes_the_first_of_the_best(scale: float) -> None:
    logits = np.round(spread(scale)) + 0.0  # a negative zero is less than zero to a selection
    assert tokens([RowSampling()] * ROWS, logits) == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize(
    "row",
    [RowSampling(temperature=1.0, top_k=1), RowSampling(temperature=1.0, top_p=1e-9), RowSampling(temperature=1e-30)],
)
def test_what_leaves_one_token_is_greedy(row: RowSampling) -> None:
    logits = spread(2.5)
    assert tokens([row] * ROWS, logits) == logits.argmax(axis=1).tolist()


def test_forbidden_tokens_are_never_chosen() -> None:
    logits = spread(2.5)
    best = np.argsort(-logits, axis=1)
    rows = [RowSampling(forbidden=tuple(line[:3].tolist())) for line in best]
    assert tokens(rows, logits) == best[:, 3].tolist()


def test_reported_logprobs_are_the_models_own() -> None:
    logits = spread(2.5)
    row = RowSampling(temperature=3.0, top_k=2, forbidden=(int(logits[0].argmax()),), logprobs=20)
    _, sampled = run(fresh(), logits, packed([row] * ROWS))
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    order = np.argsort(-expected, axis=1)[:, :20]
    np.testing.assert_array_equal(sampled.top_ids, order)
    np.testing.assert_allclose(sampled.top_logprobs, np.take_along_axis(expected, order, 1), atol=1e-5)
    chosen = np.take_along_axis(expected, np.asarray(sampled.token)[:, None], 1)[:, 0]
    np.testing.assert_allclose(sampled.logprob, chosen, atol=1e-5)


@pytest.mark.parametrize(
    ("row", "allowed"),
    [
        (RowSampling(temperature=1.0), 16),
        (RowSampling(temperature=2.0, top_k=6), 6),
        (RowSampling(temperature=1.0, top_p=0.8), 16),
        (RowSampling(temperature=1.0, min_p=0.2), 16),
    ],
)
def test_frequencies(row: RowSampling, allowed: int) -> None:
    draws, vocab = 4096, 16
    logits = np.tile(np.random.default_rng(1).normal(size=vocab).astype(np.float32), (draws, 1))
    batch = SamplingBatch.pack([row] * draws, [0] * draws, range(draws), scratch=0, max_forbidden=1)
    _, sampled = run(SamplerState.create(1, vocab), logits, batch)
    expected = reference.distribution(logits[0].astype(np.float64), row) * draws
    observed = np.bincount(np.asarray(sampled.token), minlength=vocab)
    assert 0 < np.count_nonzero(observed) <= allowed
    assert not observed[expected == 0].any()
    kept = expected > 0
    chi_square = float((((observed - expected) ** 2)[kept] / expected[kept]).sum())
    assert chi_square < 37.7  # the 99.9% quantile at 15 degrees of freedom


@settings(deadline=None, max_examples=30)
@given(logit_rows(), st.fixed_dictionaries(filters), several(filters | penalties))
def test_neighbours_change_nothing(logits: np.ndarray, own: dict[str, Any], fields: list[dict[str, Any]]) -> None:
    row, *others = [RowSampling(**own), *(RowSampling(**entry) for entry in fields[1:])]
    _, alone = run(fresh(), logits, packed([row]))
    _, together = run(fresh(), logits, packed([row, *others]))
    chex.assert_trees_all_equal(*(jax.tree.map(lambda part: part[0], sampled) for sampled in (alone, together)))


def test_seed_sample_and_position_each_matter() -> None:
    row = RowSampling(temperature=1.0)
    rows = [row, replace(row, seed=1), replace(row, sample=1)]
    logits = np.zeros((ROWS, VOCAB), np.float32)
    assert len({*tokens(rows, logits)[:3], int(run(fresh(), logits, packed(rows, 8))[1].token[0])}) == 4


def test_padding_rows_touch_only_the_scratch_slot() -> None:
    state, _ = run(fresh(), spread(2.5), packed([RowSampling(), None, RowSampling()]))
    touched = np.flatnonzero(np.asarray(state.output_counts).any(axis=1))
    assert touched.tolist() == [0, 2, SCRATCH]
    assert np.asarray(state.last_token)[[1, 3]].tolist() == [0, 0]


def test_tokens_count_against_later_steps() -> None:
    """Logits 3, 2, 1 and a frequency penalty of 1.5 a token: worked out by hand."""
    logits = np.full((ROWS, VOCAB), -50, np.float32)
    logits[:, :3] = [3, 2, 1]
    batch = packed([RowSampling(frequency_penalty=1.5)])
    state, chosen = fresh(), []
    for _ in range(6):
        state, sampled = run(state, logits, batch)
        chosen.append(int(sampled.token[0]))
        assert int(state.last_token[0]) == chosen[-1]
    assert chosen == [0, 1, 0, 2, 1, 0]


def test_no_full_sort_is_compiled() -> None:
    program = str(run.lower(fresh(), spread(1.0), packed([])).compile().as_text())
    assert "TopK" in program
    assert " sort(" not in program


@pytest.mark.parametrize("scale", [0.0, 0.1, 30.0])
def test_reporting_changes_no_greedy_token(scale: float) -> None:
    logits = np.round(spread(scale), 1) + 0.0  # a selection of the best ranks -0 below 0
    assert tokens([RowSampling(logprobs=0)] * ROWS, logits) == tokens([RowSampling()] * ROWS, logits)


@EVERY_RUN
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("row", [RowSampling(), RowSampling(logprobs=0)])
def test_logits_that_are_not_finite_are_told(run: Run, row: RowSampling, bad: float) -> None:
    logits = spread(1.0)
    logits[1] = bad
    finite = np.isfinite(run(fresh(), logits, packed([row] * ROWS))[1].logprob)
    assert finite.tolist() == [True, False, True, True]


def test_on_a_gpu_nothing_branches() -> None:
    """XLA's conditionals and its loops of unknown length make the host of a GPU wait; on a CPU they leave work out."""

    def control(ops: Ops) -> set[str]:
        program = jax.make_jaxpr(partial(sample, ops))(fresh(), spread(1.0), packed([RowSampling(temperature=1.0)]))
        return {equation.primitive.name for equation in program.eqns} & {"cond", "while"}

    assert control(CUDA) == set()
    assert control(CPU) == {"cond"}
