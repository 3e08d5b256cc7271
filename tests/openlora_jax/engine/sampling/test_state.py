import chex
import jax
import numpy as np

from openlora_jax.engine.sampling import SamplerState, prepare_slot, slot_rows

SLOTS, VOCAB = 4, 10


def prepared() -> SamplerState:
    rows = slot_rows([1, 2, 2], [3, 3, 4], {5: -1.5}, VOCAB)
    state: SamplerState = prepare_slot(SamplerState.create(SLOTS, VOCAB), np.int32(1), np.int32(0), *rows)
    return state


def test_prepare_writes_one_slot() -> None:
    state = prepared()
    assert np.flatnonzero(np.asarray(state.prompt_seen[1])).tolist() == [1, 2]
    assert np.asarray(state.output_counts[1]).tolist() == [0, 0, 0, 2, 1, 0, 0, 0, 0, 0]
    assert np.asarray(state.bias[1]).tolist() == [0, 0, 0, 0, 0, -1.5, 0, 0, 0, 0]
    others = jax.tree.map(lambda rows: np.delete(rows, 1, axis=0), state)
    chex.assert_trees_all_equal(others, jax.tree.map(np.zeros_like, others))


def test_prepare_replaces_the_last_occupant() -> None:
    rows = slot_rows([7], [], {}, VOCAB)
    used, fresh = (
        prepare_slot(state, np.int32(1), np.int32(0), *rows)
        for state in (prepared(), SamplerState.create(SLOTS, VOCAB))
    )
    assert np.flatnonzero(np.asarray(used.prompt_seen[1])).tolist() == [7]
    chex.assert_trees_all_equal(used, fresh)
