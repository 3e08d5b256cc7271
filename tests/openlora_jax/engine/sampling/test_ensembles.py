"""What rows of an ensemble sample from, against numpy in float64; and what others sample, untouched."""

import jax.numpy as jnp
import numpy as np
import pytest

from openlora_jax.engine.plan import Tile
from openlora_jax.engine.request import Ensemble, Method
from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.sampling import EnsembleBatch, SamplerState, SamplingBatch, sample
from openlora_jax.engine.sampling.ensembles import combine
from pallas_kernels.registry import implementations

ROWS, VOCAB = 8, 50
LOGITS = np.random.default_rng(3).normal(0, 4, (ROWS, VOCAB)).astype(np.float32)
WEIGHTS = {"mean_logits": (1.5, -0.5, 0.25), "mean_probs": (0.2, 0.5, 0.3)}
METHODS: list[Method] = ["mean_logits", "mean_probs"]


def tiles(method: Method) -> list[Tile]:
    """A row alone, three of an ensemble, two of another, and one alone; the eighth is padding."""
    three, two = Ensemble(((),) * 3, WEIGHTS[method], method), Ensemble(((),) * 2, (0.5, 0.5), "mean_logits")
    members = [(None, 0), (three, 0), (three, 1), (three, 2), (two, 0), (two, 1), (None, 0)]
    return [
        Tile(row, 3, None, (), (), RowSampling(temperature=1.0, seed=row - member, logprobs=5), None, ensemble, member)
        for row, (ensemble, member) in enumerate(members)
    ]


def expected(method: Method) -> np.ndarray:
    logits, weights = LOGITS.astype(np.float64), np.array(WEIGHTS[method])
    wanted = logits.copy()
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted[1:4] = np.log(weights @ probs[1:4]) if method == "mean_probs" else weights @ logits[1:4]
    wanted[4:6] = logits[4:6].mean(0)
    return wanted


@pytest.mark.parametrize("method", METHODS)
def test_combined_as_by_hand(method: Method) -> None:
    batch = EnsembleBatch.pack(tiles(method), ROWS)
    combined = np.asarray(combine(jnp.asarray(LOGITS), batch))
    np.testing.assert_allclose(combined, expected(method), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(combined[[0, 6, 7]], LOGITS[[0, 6, 7]])
    assert np.abs(combined[1:6] - LOGITS[1:6]).max() > 1
    assert (combined[1:4] == combined[1]).all()
    assert (combined[4:6] == combined[4]).all()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_stays_in_its_ensemble(method: Method) -> None:
    broken = LOGITS.copy()
    broken[0], broken[2, 7] = np.nan, np.inf
    combined = np.asarray(combine(jnp.asarray(broken), EnsembleBatch.pack(tiles(method), ROWS)))
    assert not np.isfinite(combined[1:4]).all(axis=1).any()
    np.testing.assert_allclose(combined[4:7], expected(method)[4:7], rtol=1e-5, atol=1e-5)


def test_a_probability_that_vanishes_has_a_logarithm() -> None:
    steep = np.zeros((2, VOCAB), np.float32)
    steep[:, 0] = 500
    batch = EnsembleBatch.pack(
        [Tile(row, 1, None, (), ensemble=Ensemble(((), ()), (0.5, 0.5), "mean_probs"), member=row) for row in (0, 1)], 2
    )
    assert np.isfinite(np.asarray(combine(jnp.asarray(steep), batch))).all()


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_an_ensemble_sample_one_token_of_the_combination(method: Method) -> None:
    rows = tiles(method)
    batch = SamplingBatch.pack(
        [*(tile.sampling for tile in rows), None],
        [*(tile.slot for tile in rows), 0],
        [*(tile.start + 1 for tile in rows), 0],
        scratch=ROWS,
        max_forbidden=1,
    )
    ops, state = implementations("cpu"), SamplerState.create(ROWS + 1, VOCAB)
    state, sampled = sample(ops, state, jnp.asarray(LOGITS), batch, EnsembleBatch.pack(rows, ROWS))
    _, alone = sample(ops, state, jnp.asarray(expected(method).astype(np.float32)), batch)
    token = np.asarray(sampled.token)[:7]
    np.testing.assert_array_equal(token, np.asarray(alone.token)[:7])
    assert set(token[1:4]) == {token[1]}
    assert set(token[4:6]) == {token[4]}
    np.testing.assert_allclose(sampled.logprob[:7], alone.logprob[:7], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(state.last_token)[:7], token)
