"""What the Triton kernel asks of its operands."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from pallas_kernels.kv_cache import KvCache
from pallas_kernels.paged_attention.config import MAX_COLUMNS, MIN_SIDE
from pallas_kernels.triton_limits import check_reach

DTYPES = ("bfloat16", "float32")


def check_operands(
    q: Float[Array, "T L H E"],
    kv: KvCache,
    table: Int[Array, "_ _"],
    start: Int[Array, "_"],
    length: Int[Array, "_"],
) -> None:
    """Raises ValueError where the kernel would read its operands wrong; names both numbers that do not agree."""
    _check_cache(q, kv)
    values = kv.values
    heads, width = q.shape[2:]
    kv_heads, block_tokens = values.shape[2:4]
    if width != values.shape[4]:
        raise ValueError(f"queries are {width} wide, keys and values {values.shape[4]}")
    check_width(width)
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} KV heads evenly")
    if block_tokens % MIN_SIDE:
        raise ValueError(f"KV blocks have {block_tokens} positions; the kernel takes multiples of {MIN_SIDE}")
    for name, of_tiles in (("table", table), ("start", start), ("length", length)):
        if of_tiles.shape[0] != q.shape[0]:
            raise ValueError(f"{name} is of {of_tiles.shape[0]} tiles, the queries of {q.shape[0]}")


def check_width(width: int) -> None:
    """That the registers hold the heads of a model. Raises ValueError."""
    if width > MAX_COLUMNS:
        raise ValueError(f"heads are {width} wide; the kernel takes at most {MAX_COLUMNS}")


def _check_cache(q: Float[Array, "T L H E"], kv: KvCache) -> None:
    """That its arrays fit together, and are of types that the kernel reads, and of sizes."""
    keys, values, scales = kv
    cached = q.dtype if scales is None else jnp.int8
    if q.dtype not in DTYPES or not cached == keys.dtype == values.dtype:
        raise ValueError(
            f"queries are {q.dtype}, keys {keys.dtype}, values {values.dtype}: all must be {' or '.join(DTYPES)},"
            " alike, or the latter int8 with scales"
        )
    if keys.shape != (*values.shape[:3], values.shape[4], values.shape[3]):
        raise ValueError(f"keys of shape {keys.shape} are not values of shape {values.shape} with the positions last")
    if scales is not None:
        if scales.shape != (*values.shape[:2], 2, *values.shape[2:4]):
            raise ValueError(f"scales of shape {scales.shape} are not those of values of shape {values.shape}")
        check_reach("codes of values", values.size)
