"""LoRA with pages in 4 bits: every implementation against a loop in float64, over the numbers that they stand for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array, ShapeDtypeStruct
from numpy.typing import NDArray

from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.quantize import quantize
from pallas_kernels.int4_lora import pallas_triton, reference, xla
from pallas_kernels.int4_lora.api import Int4Lora, Int4Pages, packed_words
from pallas_kernels.lora import config
from pallas_kernels.lora.api import WorkList
from pallas_kernels.quantized import dense
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.pallas_kernels.rank_pages import BROKEN, LAYERS, PAGES, RANK, Runs, broken_runs, expected, parted, work_list
from tests.pallas_kernels.rank_pages import operands as plain_operands
from tests.pallas_kernels.real import INTERPRET
from tests.pallas_kernels.test_lora_triton import ERRORS, error, kernels, runs_of

TILES, CAPACITY = 3, 64
LENGTHS = (0, 1, 2, 4, 5, 9)
"""Items of a tile, about the widths of the kernel's passes."""
kernel = functools.partial(pallas_triton.int4_lora, interpret=INTERPRET)
Case = tuple[Array, Array, tuple[Int4Pages, ...], list[tuple[NDArray[Any], NDArray[Any]]]]


def kernel_in_place(x: Any, y: Any, pools: Any, layer: Any, work: WorkList, modules: tuple[int, ...]) -> Array:
    """As with outputs that are large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "APART_SIZE", 0)
        return kernel(x, y, pools, layer, work, modules)


IMPLEMENTATIONS = pytest.mark.parametrize(
    "lora",
    [reference.int4_lora, xla.int4_lora, kernel, kernel_in_place],
    ids=["reference", "xla", "pallas_triton", "pallas_triton in place"],
)


def pages_of(numbers: Array) -> tuple[Array, Array, NDArray[np.float32]]:
    """Words, scales, and what they stand for."""
    rows = np.asarray(numbers, np.float32).reshape(-1, numbers.shape[-1])
    matrix = quantize(rows, Quantization(format="int4", group=32))
    lead = numbers.shape[:-1]
    words = packed_words(jnp.asarray(matrix.codes).reshape(*lead, -1))
    return words, jnp.asarray(matrix.scale).reshape(*lead, -1), np.asarray(dense(matrix)).reshape(numbers.shape)


def operands(tokens: int, seed: int, width: int = 128, widths: tuple[int, ...] = (64,), dtype: str = "float32") -> Case:
    x, y, plain = plain_operands(TILES, tokens, seed, width, widths, dtype)
    pools, numbers = [], []
    for a, b in plain:
        (a_words, a_scale, a_wide), (b_words, b_scale, b_wide) = pages_of(a), pages_of(b)
        pools.append(Int4Pages(a_words, a_scale, b_words, b_scale))
        numbers.append((a_wide, b_wide))
    return x, y, tuple(pools), numbers


def add(lora: Int4Lora, case: Case, layer: int, work: WorkList, modules: tuple[int, ...] = (0,)) -> Array:
    added: Array = jax.jit(lora, static_argnames="modules")(*case[:3], jnp.int32(layer), work, modules=modules)
    return added


@IMPLEMENTATIONS
@pytest.mark.parametrize(("tokens", "dtype"), [(1, "float32"), (16, "bfloat16")])
@settings(deadline=None, max_examples=3)
@given(lengths=st.tuples(*[st.sampled_from(LENGTHS)] * 3), layer=st.integers(0, LAYERS - 1), seed=st.integers(0, 99))
def test_every_tiles_items_are_added(
    lora: Int4Lora, tokens: int, dtype: str, lengths: tuple[int, ...], layer: int, seed: int
) -> None:
    widths = (64, 128)
    runs = [runs_of(lengths[module:] + lengths[:module], seed + module) for module in range(2)]
    case = x, y, _, numbers = operands(tokens, seed, 128, widths, dtype)
    added = add(lora, case, layer, work_list(*runs, capacity=CAPACITY), (0, 1))
    parts = parted(y, tuple((jnp.asarray(a), jnp.asarray(b)) for a, b in numbers))
    due = [expected(run, layer, x, part, *pair) for run, part, pair in zip(runs, parts, numbers, strict=True)]
    assert error(added, np.concatenate(due, axis=2)) < ERRORS[dtype]


@IMPLEMENTATIONS
def test_one_code_less_is_seen(lora: Int4Lora) -> None:
    runs: Runs = [[(1, 1.0)], [], [(2, 0.5)]]
    case = operands(1, seed=1)
    before = add(lora, case, 1, work_list(runs))
    words = case[2][0].b_words
    changed = case[2][0]._replace(b_words=words.at[1, 2, 3, 5].set(words[1, 2, 3, 5] ^ (1 << 12)))
    after = add(lora, (*case[:2], (changed,), case[3]), 1, work_list(runs))
    moved = np.argwhere(np.asarray(before != after))
    assert moved.tolist() == [[2, 0, 48 + 5]]  # the fourth nibble's column, of the tile that has the page


@IMPLEMENTATIONS
def test_pages_that_no_item_names_are_never_read(lora: Int4Lora) -> None:
    runs: Runs = [[(1, 1.0)], [], [(2, 0.5), (1, -1.0)]]
    x, y, (pool,), numbers = operands(1, seed=3)
    poisoned = np.setdiff1d(np.arange(PAGES), [1, 2])
    pool = pool._replace(
        a_scale=pool.a_scale.at[:, poisoned].set(np.nan), b_scale=pool.b_scale.at[:, poisoned].set(np.inf)
    )
    assert np.isfinite(add(lora, (x, y, (pool,), numbers), 0, work_list(runs))).all()


@IMPLEMENTATIONS
def test_a_row_gets_the_same_bits_whoever_shares_its_batch(lora: Int4Lora) -> None:
    mine, case = [(1, 1.0), (3, -0.5)], operands(1, seed=4)
    alone = add(lora, case, 1, work_list([[], mine, []]))
    together = add(lora, case, 1, work_list([[(2, 1.0)] * 3, mine, [(5, 2.0)]]))
    np.testing.assert_array_equal(alone[1], together[1])
    np.testing.assert_array_equal(alone[0], case[1][0])


@pytest.mark.parametrize("lora", [reference.int4_lora, xla.int4_lora, kernel])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_list_reads_nothing_outside(lora: Int4Lora, kind: str) -> None:
    work, runs = broken_runs(kind, by_tile=lora is not kernel)
    case = x, y, _, numbers = operands(1, seed=6)
    assert error(add(lora, case, 1, work), expected(runs, 1, x, y, *numbers[0])) < ERRORS["float32"]


def shapes(tokens: int, dtype: str = "bfloat16", pages: int = PAGES, **other: Any) -> tuple[Any, ...]:
    """Operands of which nothing is allocated."""
    width, out = other.get("width", 4096), other.get("out", 1024)

    def array(*sizes: int, of: str = dtype) -> Any:
        return ShapeDtypeStruct(sizes, of)

    def of(width: int) -> tuple[Any, Any]:
        lead = (LAYERS, pages, RANK)
        return array(*lead, width // 4, of="uint16"), array(*lead, width // 32, of=other.get("scale", "float16"))

    listed = [array(1, 9, of=kind) for kind in ("int32", "int32", "float32")]
    pools = (Int4Pages(*of(width), *of(out)),)
    work = WorkList(array(1, 4, of="int32"), *listed)
    return array(3, tokens, 4096), array(3, tokens, other.get("y", 1024)), pools, np.asarray(1, np.int32), work, (0,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 64])
def test_it_lowers_for_cuda_as_one_launch(tokens: int, dtype: str) -> None:
    *arrays, modules = shapes(tokens, dtype)
    lowered = lower_cuda(functools.partial(pallas_triton.int4_lora, modules=modules), *arrays)
    assert triton_kernels(lowered) == {"int4_lora_kernel": 1}


@pytest.mark.parametrize(("pages", "gibibytes", "wide"), [(50_000, 3, False), (70_000, 4, True)])
def test_offsets_reach_all_of_a_pool(pages: int, gibibytes: int, wide: bool) -> None:
    """Those of 32 bits have a sign, so they reach 2 GiB of words: of bytes they would wrap beyond 2 GiB."""
    *arrays, modules = shapes(1, pages=pages, out=64, y=64)
    words = arrays[2][0].a_words
    assert words.size * 2 > gibibytes * 2**30
    assert words.size < 2**31 or wide
    (code,) = kernels(lower_cuda(functools.partial(pallas_triton.int4_lora, modules=modules), *arrays))
    assert ("xi64>" in code) is wide


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 4032}, "columns of x, of A"),
        ({"out": 1056}, "columns of y"),
        ({"scale": "float32"}, "dtypes of a page"),
        ({"dtype": "float16"}, "dtypes float16"),
    ],
)
def test_what_it_does_not_serve_is_refused(change: dict[str, Any], reason: str) -> None:
    *arrays, modules = shapes(1, **change)
    with pytest.raises(ValueError, match=reason):
        jax.eval_shape(functools.partial(pallas_triton.int4_lora, modules=modules), *arrays)
