"""Every implementation of `paged_attention` against a softmax in float64 over contiguous keys."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from numpy.typing import NDArray

from pallas_kernels.kv_cache import KvCache
from pallas_kernels.paged_attention import pallas_triton, reference, xla
from pallas_kernels.paged_attention.api import PagedAttention
from pallas_kernels.paged_attention.config import AttentionConfig, attention_config
from pallas_kernels.paged_attention.shapes import check_operands
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.pallas_kernels.paged import BLOCKS, LAYERS, Cached, Shape, Tiles, cache, rounded, scene
from tests.pallas_kernels.real import INTERPRET
from tests.pallas_kernels.test_lora_triton import kernels

kernel = functools.partial(pallas_triton.paged_attention, interpret=INTERPRET)
IMPLEMENTATIONS = pytest.mark.parametrize(
    "attention", [reference.paged_attention, xla.paged_attention, kernel], ids=["reference", "xla", "pallas_triton"]
)
KERNEL_SHAPES = [
    Shape(),
    Shape(heads=20, kv_heads=1, width=80, block=48, columns=3, dtype="bfloat16"),
    Shape(tokens=5, heads=4, kv_heads=4, width=24, columns=3),
    Shape(tokens=16, heads=9, kv_heads=3, width=64, block=32, columns=3),
    Shape(tokens=64, heads=3, kv_heads=1, width=32, block=128, columns=2, dtype="bfloat16"),
]
CODED_SHAPES = [
    Shape(),
    Shape(heads=20, kv_heads=1, width=80, block=48, columns=3, dtype="bfloat16"),
    Shape(tokens=16, heads=9, kv_heads=3, width=64, block=32, columns=3),
]
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}


def attend(attention: PagedAttention, tiles: Tiles, kv: KvCache, layer: int = 1) -> Array:
    """Compiled once for each implementation and shape."""
    output: Array = jax.jit(attention)(tiles.q, kv, jnp.int32(layer), tiles.table, tiles.start, tiles.length)
    return output


def expected(q: Array, kv: Cached, blocks: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One token's attention to some positions of its sequence; `kv` is one layer's."""
    kv_heads, size, width = kv.shape[2:]
    pairs = np.stack([kv[blocks[p // size], :, :, p % size] for p in positions], axis=2).astype(np.float64)
    keys, values = np.repeat(pairs, q.shape[0] // kv_heads, axis=1)
    scores = np.einsum("hpe,he->hp", keys, np.asarray(q, np.float64)) / np.sqrt(width)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    output: NDArray[np.float64] = np.einsum("hp,hpe->he", weights / weights.sum(axis=1, keepdims=True), values)
    return output


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    ("starts", "tokens", "length"), [([0, 15, 16, 70], 1, 1), ([0, 16, 64], 16, 16), ([0, 48], 16, 5)]
)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_attention_sees_its_own_sequence_up_to_itself(
    attention: PagedAttention, starts: list[int], tokens: int, length: int, dtype: str
) -> None:
    tiles, kv = scene(Shape(tokens), starts, [length] * len(starts))
    kv_cache, kv = cache(kv, dtype), rounded(kv) if dtype == "int8" else kv
    for layer in range(LAYERS):
        output = attend(attention, tiles, kv_cache, layer)
        for tile, start in enumerate(starts):
            blocks = tiles.table[tile].tolist()
            for token in range(length):
                want = expected(tiles.q[tile, token], kv[layer], blocks, range(start + token + 1))
                np.testing.assert_allclose(output[tile, token], want, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, shape.dtype) for shape in KERNEL_SHAPES), *((shape, "int8") for shape in CODED_SHAPES)],
    ids=str,
)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_the_kernel_agrees_with_the_reference(shape: Shape, dtype: str, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, shape.tokens), min_size=3, max_size=3), label="lengths")
    starts = [data.draw(st.integers(0, shape.columns * shape.block - length), label="start") for length in lengths]
    tiles, kv = scene(shape, starts, lengths, seed=data.draw(st.integers(0, 99), label="seed"))
    kv_cache = cache(kv, dtype)
    output, want = (attend(attention, tiles, kv_cache) for attention in (kernel, reference.paged_attention))
    assert np.isfinite(np.asarray(output, np.float32)).all()
    for tile, length in enumerate(lengths):
        assert_close(output[tile, :length], want[tile, :length], shape.dtype)


def assert_close(output: Array, want: Array, dtype: str) -> None:
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(np.asarray(output, np.float32), np.asarray(want, np.float32), tolerance, tolerance)


@pytest.mark.parametrize("shape", [Shape(tokens=16), Shape(tokens=16, dtype="bfloat16")], ids=str)
def test_a_mask_off_by_one_would_be_noticed(shape: Shape) -> None:
    tiles, kv = scene(shape, [16, 48], [16, 16])
    late = dataclasses.replace(tiles, start=tiles.start - 1, length=tiles.length + 1)
    output, want = (
        attend(kernel, late, cache(kv, shape.dtype)),
        attend(reference.paged_attention, tiles, cache(kv)),
    )
    with pytest.raises(AssertionError):
        assert_close(output, want, shape.dtype)


def test_few_tiles_share_the_positions_and_many_do_not() -> None:
    """One sequence, alone and 64 times over."""
    tiles, kv = scene(Shape(), [70], [1])
    many = jax.tree.map(lambda array: jnp.repeat(array, 64, axis=0), dataclasses.asdict(tiles))
    crowd = Tiles(**many)
    assert [config(each, cache(kv)).splits for each in (tiles, crowd)] == [4, 1]
    alone, among = (attend(kernel, each, cache(kv)) for each in (tiles, crowd))
    np.testing.assert_allclose(among, np.broadcast_to(alone, among.shape), atol=1e-6)


def config(tiles: Tiles, kv: KvCache) -> AttentionConfig:
    return attention_config(tiles.q, kv, tiles.table)


@pytest.mark.parametrize("unknown", [-1, BLOCKS, 1 << 30])
@pytest.mark.parametrize("tokens", [1, 16])
def test_positions_in_a_block_that_is_not_there_are_unseen(tokens: int, unknown: int) -> None:
    shape = Shape(tokens)
    tiles, kv = scene(shape, [40], [1])
    table = tiles.table.at[0, 1].set(unknown)
    output = attend(kernel, dataclasses.replace(tiles, table=table), cache(kv))
    known = [position for position in range(41) if position // shape.block != 1]
    np.testing.assert_allclose(output[0, 0], expected(tiles.q[0, 0], kv[1], tiles.table[0].tolist(), known), atol=1e-5)


@pytest.mark.parametrize("shape", [Shape(), Shape(tokens=16)], ids=str)
def test_a_tile_that_sees_nothing_is_zero(shape: Shape) -> None:
    tiles, kv = scene(shape, [0, 20], [0, 0])
    unknown = dataclasses.replace(tiles, table=jnp.full_like(tiles.table, -1), length=tiles.length.at[1].set(1))
    np.testing.assert_array_equal(attend(kernel, unknown, cache(np.full_like(kv, np.nan))), 0)


@pytest.mark.parametrize("shape", [Shape(dtype="float16"), Shape(block=24), Shape(heads=5), Shape(width=160)], ids=str)
def test_what_the_kernel_cannot_read_is_refused(shape: Shape) -> None:
    tiles, kv = scene(shape, [0], [1])
    with pytest.raises(ValueError, match=r"float16|24 .* 16|5 query .* 2|160 .* 128"):
        attend(kernel, tiles, cache(kv, shape.dtype))


def test_operands_that_do_not_fit_together_are_refused() -> None:
    tiles, kv = scene(Shape(), [0], [1])
    keys, values, _ = cache(kv)
    few = cache(kv, "int8")
    assert few.scales is not None
    wrong = [
        (tiles, few._replace(scales=None), "float32, keys int8, values int8: .* alike, or"),
        (tiles, few._replace(scales=few.scales[:, :, :1]), "scales of shape .* values of shape"),
        (tiles, KvCache(keys, values, few.scales), "float32, keys float32"),
        (tiles, KvCache(keys.astype(jnp.bfloat16), values), "keys bfloat16, values float32"),
        (tiles, KvCache(keys, values[:, :, :1]), r"keys of shape .* values of shape"),
        (tiles, KvCache(keys[:, :, :, :4], values[..., :4]), "8 wide, keys and values 4"),
        (dataclasses.replace(tiles, table=tiles.table[:0]), KvCache(keys, values), "table is of 0 tiles, .* of 1"),
        (dataclasses.replace(tiles, start=tiles.start[:0]), KvCache(keys, values), "start is of 0 tiles, .* of 1"),
    ]
    for operands, kv_cache, message in wrong:
        with pytest.raises(ValueError, match=message):
            check_operands(operands.q, kv_cache, operands.table, operands.start, operands.length)


@pytest.mark.parametrize(("blocks", "wide"), [(1 << 13, False), ((1 << 14) + 1, True)])
def test_offsets_reach_all_codes_of_a_cache_or_it_is_refused(blocks: int, wide: bool) -> None:
    """Up to 2 GiB they have 32 bits, beyond 4 GiB 64; between these the signed ones would wrap."""
    assert any("xi64>" in code for code in lowered(blocks)) is wide
    with pytest.raises(ValueError, match="codes of values: 2,147,745,792 bytes; must be less than 2,147,483,649, or"):
        lowered((1 << 13) + 1)


def lowered(blocks: int) -> list[str]:
    """The kernel on a cache of int8 of 32 layers, 8 heads and blocks of 32 positions."""
    cache = jax.eval_shape(
        lambda: KvCache.create(layers=32, blocks=blocks, heads=8, block_tokens=32, width=32, dtype="int8")
    )
    q, index = jax.ShapeDtypeStruct((1, 1, 8, 32), jnp.bfloat16), jax.ShapeDtypeStruct((1,), jnp.int32)
    table, layer = jax.ShapeDtypeStruct((1, 4), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    return kernels(lower_cuda(pallas_triton.paged_attention, q, cache, layer, table, index, index))


@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
def test_the_cut_is_one_that_tensor_cores_take(shape: Shape) -> None:
    tiles, kv = scene(shape, [0], [1])
    cut = config(tiles, cache(kv, shape.dtype))
    for side in (cut.rows, cut.span, cut.columns):
        assert side >= 16
        assert side.bit_count() == 1
    assert shape.block % cut.span == 0
    assert cut.columns >= shape.width


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, shape.dtype) for shape in KERNEL_SHAPES), *((shape, "int8") for shape in CODED_SHAPES)],
    ids=str,
)
def test_cuda_gets_the_cache_whole(shape: Shape, dtype: str) -> None:
    """In one launch, and in one more that joins splits. The control slices a layer out, which on a device copies it."""
    tiles, kv = scene(shape, [0] * 3, [1] * 3)
    launches = {"paged_attention_kernel": 1}
    if config(tiles, cache(kv, dtype)).splits > 1:
        launches["join_splits_kernel"] = 1
    operands = tiles.q, cache(kv, dtype), tiles.table, tiles.start, tiles.length
    first, second = np.asarray(0, np.int32), np.asarray(1, np.int32)

    def sliced(q: Array, kv: KvCache, *rest: Array) -> Array:
        layer = jax.tree.map(lambda part: part[1:], kv)
        return pallas_triton.paged_attention(q, layer, first, *rest)

    def whole(q: Array, kv: KvCache, *rest: Array) -> Array:
        return pallas_triton.paged_attention(q, kv, second, *rest)

    for attention, touched in ((whole, False), (sliced, True)):
        lowered = lower_cuda(attention, *operands)
        assert triton_kernels(lowered) == launches
        assert ("stablehlo.slice %arg1" in lowered.as_text()) == touched
