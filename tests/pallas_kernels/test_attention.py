"""The paged cache: `kv_write` and `paged_attention` against a softmax in float64 over contiguous keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from pallas_kernels.kv_cache import KvCache
from pallas_kernels.kv_write import reference as write_reference
from pallas_kernels.kv_write import xla as write_xla
from pallas_kernels.kv_write.api import KvWrite
from pallas_kernels.paged_attention import reference, xla
from pallas_kernels.paged_attention.api import PagedAttention

LAYERS, BLOCKS, KV_HEADS, BLOCK, WIDTH, HEADS, COLUMNS = 2, 30, 2, 16, 8, 6, 5
ATTENTIONS = pytest.mark.parametrize(
    "attention", [reference.paged_attention, xla.paged_attention], ids=["reference", "xla"]
)


def scene(ends: list[int], tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Queries, keys and values `[Y, B, 2, K, S, E]`, block tables of sequences of these lengths; past an end is NaN."""
    generator = np.random.default_rng(sum(ends) + tokens)
    q = generator.normal(size=(len(ends), tokens, HEADS, WIDTH)).astype(np.float32)
    kv = generator.normal(size=(LAYERS, BLOCKS, 2, KV_HEADS, BLOCK, WIDTH)).astype(np.float32)
    table = 1 + generator.permutation(BLOCKS - 1)[: len(ends) * COLUMNS].reshape(len(ends), COLUMNS).astype(np.int32)
    for end, blocks in zip(ends, table, strict=True):
        for position in range(end, COLUMNS * BLOCK):
            kv[:, blocks[position // BLOCK], :, :, position % BLOCK] = np.nan
    return q, kv, table


def cache(kv: NDArray[np.float32]) -> KvCache:
    return KvCache(jnp.asarray(kv[:, :, 0].swapaxes(3, 4)), jnp.asarray(kv[:, :, 1]))


def expected(
    q: NDArray[np.float32], kv: NDArray[np.float32], blocks: NDArray[np.int32], start: int
) -> NDArray[np.float64]:
    """One tile's attention; `kv` is one layer's."""
    keys, values = (np.concatenate([kv[block, part] for block in blocks], axis=1).astype(np.float64) for part in (0, 1))
    out = np.zeros(q.shape)
    for token in range(q.shape[0]):
        seen = start + token + 1
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            scores = keys[shared, :seen] @ q[token, head].astype(np.float64) / np.sqrt(WIDTH)
            weights = np.exp(scores - scores.max())
            out[token, head] = weights @ values[shared, :seen] / weights.sum()
    return out


@ATTENTIONS
@pytest.mark.parametrize(
    ("starts", "tokens", "length"), [([0, 15, 16, 70], 1, 1), ([0, 16, 64], 16, 16), ([0, 48], 16, 5)]
)
def test_attention_sees_its_own_sequence_up_to_itself(
    attention: PagedAttention, starts: list[int], tokens: int, length: int
) -> None:
    q, kv, table = scene([start + length for start in starts], tokens)
    lengths = jnp.full(len(starts), length, jnp.int32)
    for layer in range(LAYERS):
        out = jax.jit(attention)(
            jnp.asarray(q),
            cache(kv),
            jnp.int32(layer),
            jnp.asarray(table),
            jnp.asarray(starts, jnp.int32),
            lengths,
        )
        for tile, start in enumerate(starts):
            want = expected(q[tile, :length], kv[layer], table[tile], start)
            np.testing.assert_allclose(out[tile, :length], want, atol=1e-5)


@pytest.mark.parametrize("kv_write", [write_reference.kv_write, write_xla.kv_write], ids=["reference", "xla"])
@pytest.mark.parametrize(("starts", "tokens"), [([0, 15, 33, 79], 1), ([0, 16, 64], 16)])
def test_keys_and_values_land_at_their_positions_and_nowhere_else(
    kv_write: KvWrite, starts: list[int], tokens: int
) -> None:
    _, before, table = scene([0] * len(starts), tokens)
    generator = np.random.default_rng(7)
    k, v = generator.normal(size=(2, len(starts), tokens, KV_HEADS, WIDTH)).astype(np.float32)
    want = before.copy()
    for tile, start in enumerate(starts):
        for token in range(tokens):
            block, offset = divmod(start + token, BLOCK)
            want[1, table[tile, block], :, :, offset] = k[tile, token], v[tile, token]
    after = jax.jit(kv_write)(
        cache(before),
        jnp.asarray(k),
        jnp.asarray(v),
        jnp.int32(1),
        jnp.asarray(table),
        jnp.asarray(starts, jnp.int32),
    )
    np.testing.assert_array_equal(after.keys, cache(want).keys)
    np.testing.assert_array_equal(after.values, cache(want).values)
