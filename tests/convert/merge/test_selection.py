import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from convert.merge.selection import largest

FEW = arrays.arrays(np.float32, st.integers(0, 200), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
MANY = arrays.arrays(np.float32, st.integers(0, 200), elements=st.floats(0, 1, width=32))


@given(st.one_of(FEW, MANY), st.floats(0, 1))
def test_as_many_as_asked_for_and_none_is_smaller_than_one_left_out(values: np.ndarray, part: float) -> None:
    before, count = values.copy(), int(part * len(values))
    keep = largest(values, count)
    assert keep.sum() == count
    assert not count or count == len(values) or values[keep].min() >= values[~keep].max()
    np.testing.assert_array_equal(values, before)


def test_values_that_were_chosen_to_take_long() -> None:
    """A sequence of which every pivot is the second largest that is left, by Musser."""
    half = 20_000
    odd, even = np.arange(1, half + 1), np.arange(1, half + 1) * 2
    killer = np.where(odd % 2 == 1, odd, half + odd - 1)
    values = -np.concatenate([killer, even]).astype(np.float32)
    assert largest(values, half).sum() == half


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 40, 1_000, 100_000])
def test_equal_values_are_chosen_as_torch_chooses(length: int) -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(length)
    normal = np.abs(generator.standard_normal(length)).astype(np.float32)
    narrow = torch.tensor(normal).bfloat16().float().numpy()
    for values in (normal, narrow, np.round(normal * 2), np.zeros_like(normal), np.sort(np.round(normal * 3))):
        for count in {int(density * length) for density in (0.02, 0.1, 0.3, 0.5, 0.77, 0.999)}:
            wanted = np.zeros(length, bool)
            wanted[torch.topk(torch.tensor(values), count).indices.numpy()] = True
            np.testing.assert_array_equal(largest(values, count), wanted)
