"""LoRA's Mosaic kernel: its arithmetic in JAX's interpreter of such kernels, what it refuses, and that it lowers."""

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from jax.stages import Lowered

from pallas_kernels.lora import mosaic_gpu
from pallas_kernels.lora.api import WorkList
from pallas_kernels.lora.config import columns_of_step, mosaic_spans
from tests.gpu.lowering import lower_cuda, mosaic_kernels, triton_kernels
from tests.pallas_kernels.rank_pages import BROKEN, PAGES, broken_runs, expected, operands, parted, work_list
from tests.pallas_kernels.real import INTERPRET, MOSAIC
from tests.pallas_kernels.test_lora import add
from tests.pallas_kernels.test_lora_triton import CAPACITY, ERRORS, Shape, error, runs_of, shapes

kernel = functools.partial(mosaic_gpu.lora, interpret=INTERPRET)
runs = pytest.mark.skipif(
    not MOSAIC, reason="neither a GPU of Hopper or newer, nor JAX's interpreter of Mosaic kernels"
)


@runs
@pytest.mark.parametrize("shape", [Shape(width=192, widths=(576, 64)), Shape(dtype="float32", width=64, widths=(128,))])
@settings(deadline=None, max_examples=3)
@given(lengths=st.tuples(*[st.sampled_from([0, 1, 3, 17])] * 3), seed=st.integers(0, 99))
def test_ranks_mix_from_none_to_more_than_a_pass_holds(shape: Shape, lengths: tuple[int, ...], seed: int) -> None:
    runs = [runs_of(lengths[module:] + lengths[:module], seed + module) for module in range(len(shape.widths))]
    x, y, pools = operands(3, 1, seed, shape.width, shape.widths, shape.dtype)
    added = add(kernel, (x, y, pools), 1, work_list(*runs, capacity=CAPACITY), tuple(range(len(runs))))
    due = [expected(run, 1, x, part, *pool) for run, part, pool in zip(runs, parted(y, pools), pools, strict=True)]
    assert error(added, np.concatenate(due, axis=2)) < ERRORS[shape.dtype]


@runs
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_list_reads_nothing_outside(kind: str) -> None:
    work, runs = broken_runs(kind)
    x, y, pools = operands(3, 1, seed=6, width=64, widths=(64,))
    assert error(add(kernel, (x, y, pools), 1, work), expected(runs, 1, x, y, *pools[0])) < ERRORS["float32"]


@runs
def test_pages_that_no_item_names_are_never_read() -> None:
    x, y, pools = operands(3, 1, seed=3, width=64, widths=(64,))
    a, b = (part.at[:, np.setdiff1d(np.arange(PAGES), [1, 2])].set(np.nan) for part in pools[0])
    assert np.isfinite(add(kernel, (x, y, ((a, b),)), 0, work_list([[(1, 1.0)], [], [(2, 0.5), (1, -1.0)]]))).all()


def lowered(shape: Shape, layers: tuple[int, ...] = (1,)) -> Lowered:
    def all_layers(x: Array, y: Array, pools: Any, work: WorkList) -> Array:
        for layer in layers:
            y = mosaic_gpu.lora(x, y, pools, np.asarray(layer, np.int32), work, tuple(range(len(pools))))
        return y

    return lower_cuda(all_layers, *shapes(shape))


SERVED = {
    "q, k and v of 8B": Shape(tiles=64, width=4096, widths=(4096, 1024, 1024), layers=32, pages=400),
    "gate and up of 8B, 21 GB": Shape(tiles=64, width=4096, widths=(14336, 14336), layers=32, pages=700),
    "head of 128k tokens": Shape(tiles=64, width=4096, widths=(128256,), pages=4096),
    "q, k and v of 135M": Shape(tiles=16, width=576, widths=(576, 192, 192), dtype="float32"),
    "down of 135M": Shape(tiles=16, width=1536, widths=(576,)),
}


@pytest.mark.parametrize("case", SERVED)
def test_a_group_of_modules_is_one_launch(case: str) -> None:
    program = lowered(SERVED[case])
    assert len(mosaic_kernels(program)) == 1
    assert not triton_kernels(program)


def test_layers_share_their_kernel() -> None:
    shape = Shape(width=64, widths=(64,))
    one, other = mosaic_kernels(lowered(shape, layers=(0, 1)))
    assert one == other
    assert one != mosaic_kernels(lowered(Shape(width=128, widths=(64,))))[0]


def test_prefill_is_left_to_triton() -> None:
    program = lowered(Shape(tokens=64))
    assert triton_kernels(program) == {"lora_kernel": 1}
    assert not mosaic_kernels(program)


@pytest.mark.parametrize(("width", "widths"), [(600, (64,)), (64, (64, 40))])
def test_columns_that_no_step_ends_with_are_refused(width: int, widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"columns of A or B: (600|40); must be a multiple of 64"):
        lowered(Shape(width=width, widths=widths))


@given(
    tiles=st.sampled_from([1, 16, 64]),
    width=st.sampled_from([576, 4096, 14336]),
    widths=st.lists(st.integers(1, 2100).map(lambda count: 64 * count), min_size=1, max_size=3).map(tuple),
    itemsize=st.sampled_from([2, 4]),
)
def test_programs_take_whole_steps(tiles: int, width: int, widths: tuple[int, ...], itemsize: int) -> None:
    for span, out in zip(mosaic_spans(tiles, width, widths, itemsize), widths, strict=True):
        step = columns_of_step(out)
        assert out % step == span % step == 0
        assert step % 64 == 0
        assert 64 <= step <= 512
