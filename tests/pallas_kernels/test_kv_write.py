"""Every implementation of `kv_write` against assignments in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_write import reference, xla
from pallas_kernels.kv_write.api import KvWrite
from tests.gpu.lowering import lower_cuda
from tests.pallas_kernels.paged import Shape, cache, scene

IMPLEMENTATIONS = pytest.mark.parametrize(
    "kv_write", [reference.kv_write, xla.kv_write, xla.kv_write_scatter], ids=["reference", "slices", "scatter"]
)


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    ("starts", "tokens", "columns"),
    [
        ([0, 15, 33, 79], 1, [(0, 1)] * 4),
        ([0, 16, 64], 16, [(0, 16), (5, 16), (3, 9)]),
        ([8, 40], 8, [(0, 5), (0, 8)]),
    ],
)
def test_keys_and_values_land_at_their_positions_and_nowhere_else(
    kv_write: KvWrite, starts: list[int], tokens: int, columns: list[tuple[int, int]]
) -> None:
    shape = Shape(tokens)
    tiles, before = scene(shape, starts, [0] * len(starts))
    first, length = jnp.asarray(columns, jnp.int32).T
    k, v = np.random.default_rng(7).normal(size=(2, len(starts), tokens, shape.kv_heads, shape.width))
    want = before.copy()
    for tile, start in enumerate(starts):
        for token in range(*columns[tile]):
            block, place = divmod(start + token, shape.block)
            want[1, tiles.table[tile, block], :, :, place] = k[tile, token], v[tile, token]
    new = jnp.asarray(k, jnp.float32), jnp.asarray(v, jnp.float32)
    after = jax.jit(kv_write)(cache(before), *new, jnp.int32(1), tiles.table, tiles.start, first, length)
    keys, values = np.array(after.keys), np.array(after.values)
    for tile, start in enumerate(starts):
        block, place = divmod(start, shape.block)
        past_end = slice(
            place + columns[tile][1], place + tokens
        )  # may hold anything: what comes there is not there yet
        values[1, tiles.table[tile, block], :, past_end] = cache(want).values[1, tiles.table[tile, block], :, past_end]
        keys[1, tiles.table[tile, block], ..., past_end] = cache(want).keys[1, tiles.table[tile, block], ..., past_end]
    np.testing.assert_array_equal(keys[:, 1:], cache(want).keys[:, 1:])
    np.testing.assert_array_equal(values[:, 1:], cache(want).values[:, 1:])


@IMPLEMENTATIONS
@pytest.mark.parametrize(("starts", "tokens"), [([0, 15, 33], 1), ([0, 48], 16)])
def test_a_cache_in_int8_holds_codes_and_their_scales(kv_write: KvWrite, starts: list[int], tokens: int) -> None:
    """To half a step, and exactly those of zeros; another tile's columns stay as they are."""
    shape = Shape(tokens)
    tiles, before = scene(shape, starts, [0] * len(starts))
    k, v = np.random.default_rng(7).normal(size=(2, len(starts), tokens, shape.kv_heads, shape.width)) * 30
    k[1, 0, 1], v[0, 0] = 0, 0
    first = jnp.zeros(len(starts), jnp.int32).at[-1].set(min(5, tokens - 1))
    new = jnp.asarray(k, jnp.float32), jnp.asarray(v, jnp.float32)
    length = jnp.full(len(starts), tokens, jnp.int32)
    empty = cache(np.zeros_like(before), "int8")
    after = jax.jit(kv_write)(empty, *new, jnp.int32(1), tiles.table, tiles.start, first, length)
    want = np.zeros_like(before)
    for tile, start in enumerate(starts):
        for token in range(int(first[tile]), tokens):
            block, place = divmod(start + token, shape.block)
            want[1, tiles.table[tile, block], :, :, place] = k[tile, token], v[tile, token]
    keys, values, scales = map(np.asarray, after)
    numbers = np.stack((keys.swapaxes(3, 4), values), axis=2) * scales[..., None]
    steps = np.abs(want).max(axis=5, keepdims=True) / 127
    assert (np.abs(numbers - want)[:, 1:] <= 0.51 * steps[:, 1:]).all()


@IMPLEMENTATIONS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_for_its_own_head(kv_write: KvWrite, value: float) -> None:
    shape = Shape()
    tiles, before = scene(shape, [3], [0])
    new = jnp.ones((1, 1, shape.kv_heads, shape.width)).at[0, 0, 1, 2].set(value)
    once = jnp.asarray([1], jnp.int32)
    empty = cache(np.zeros_like(before), "int8")
    after = jax.jit(kv_write)(empty, new, new, jnp.int32(0), tiles.table, tiles.start, 0 * once, once)
    scales = np.asarray(after.scales)[0, int(tiles.table[0, 0]), :, :, 3]
    np.testing.assert_array_equal(np.isfinite(scales), [[True, False]] * 2)


@IMPLEMENTATIONS
def test_padding_tiles_touch_nobodys_block_alone(kv_write: KvWrite) -> None:
    shape = Shape(tokens=16)
    tiles, before = scene(shape, [16, 0, 0], [0] * 3)
    new = jnp.ones((3, 16, shape.kv_heads, shape.width))
    table = tiles.table.at[1:].set(0)
    length = jnp.asarray([16, 0, 0], jnp.int32)
    after = jax.jit(kv_write)(cache(before), new, new, jnp.int32(0), table, tiles.start, jnp.zeros_like(length), length)
    want = before.copy()
    want[0, tiles.table[0, 1]] = 1
    np.testing.assert_array_equal(after.keys[:, 1:], cache(want).keys[:, 1:])
    np.testing.assert_array_equal(after.values[:, 1:], cache(want).values[:, 1:])


@pytest.mark.parametrize("kv_write", [reference.kv_write, xla.kv_write_scatter], ids=["reference", "scatter"])
@pytest.mark.parametrize("block", [-(2**31), -1, 2**31 - 1])
def test_a_block_that_is_not_there_is_nobody_elses(kv_write: KvWrite, block: int) -> None:
    shape = Shape()
    tiles, before = scene(shape, [3, 20], [0, 0])
    new = jnp.ones((2, 1, shape.kv_heads, shape.width))
    table, once = jnp.full_like(tiles.table, block), jnp.ones(2, jnp.int32)
    after = jax.jit(kv_write)(cache(before), new, new, jnp.int32(0), table, tiles.start, 0 * once, once)
    np.testing.assert_array_equal(after.keys, cache(before).keys)
    np.testing.assert_array_equal(after.values, cache(before).values)


@IMPLEMENTATIONS
def test_two_tiles_may_share_their_columns(kv_write: KvWrite) -> None:
    """As where a mix changes between two tokens of a tile."""
    shape = Shape(tokens=16)
    tiles, before = scene(shape, [16, 16], [0, 0])
    k, v = np.random.default_rng(8).normal(size=(2, 2, 16, shape.kv_heads, shape.width))
    table = tiles.table.at[1].set(tiles.table[0])
    want = before.copy()
    for column in range(12):
        tile = int(column >= 5)
        want[0, table[0, 1], :, :, column] = k[tile, column], v[tile, column]
    new = jnp.asarray(k, jnp.float32), jnp.asarray(v, jnp.float32)
    columns = jnp.asarray([0, 5], jnp.int32), jnp.asarray([5, 12], jnp.int32)
    after = jax.jit(kv_write)(cache(before), *new, jnp.int32(0), table, tiles.start, *columns)
    written = cache(want)
    block = int(table[0, 1])
    np.testing.assert_array_equal(after.keys[0, block, ..., :12], written.keys[0, block, ..., :12])
    np.testing.assert_array_equal(after.values[0, block, :, :12], written.values[0, block, :, :12])


@pytest.mark.parametrize(("kv_write", "repeats"), [(xla.kv_write_scatter, False), (reference.kv_write, True)])
def test_the_scatter_for_a_gpu_says_that_no_index_repeats(kv_write: KvWrite, repeats: bool) -> None:
    """Told so, XLA stores; else it goes by compare-and-swap. The plain form is the control."""
    shape = Shape(dtype="bfloat16")
    tiles, before = scene(shape, [3, 20], [0, 0])
    new = jnp.ones((2, 1, shape.kv_heads, shape.width), jnp.bfloat16)
    layer = np.asarray(1, np.int32)
    lowered = lower_cuda(
        lambda kv, new, table, start: kv_write(kv, new, new, layer, table, start, 0 * start, 0 * start + 1),
        cache(before, "bfloat16"),
        new,
        tiles.table,
        tiles.start,
    )
    assert lowered.as_text().count("unique_indices = true") == (0 if repeats else 2)
