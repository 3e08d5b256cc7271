"""For XLA:CPU: row by row, and of each row no more passes than it takes."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float32, Int32

_BITS_OF_ONE = 0x3F800000


def threshold(
    weights: Float32[Array, "T V"], top_k: Int32[Array, "T"], top_p: Float32[Array, "T"], settled: Bool[Array, "T"]
) -> Float32[Array, "T"]:
    """Found by halving: the bits of non-negative floats order as integers do."""
    found: Array = lax.map(_search, (weights, top_k, top_p, settled))
    return found


def _search(row: tuple[Float32[Array, "V"], Int32[Array, ""], Float32[Array, ""], Bool[Array, ""]]) -> Array:
    weights, top_k, top_p, settled = row
    size = weights.shape[0]

    def count(least: Array) -> Array:
        return jnp.sum(jnp.where(weights >= least, jnp.float32(1), jnp.float32(0)))

    def mass(least: Array) -> Array:
        return jnp.sum(jnp.where(weights >= least, weights, 0))

    def both() -> Array:
        kth: Array = lax.cond(
            top_k < size, lambda: greatest(count, top_k.astype(jnp.float32), jnp.ones_like), lambda: jnp.float32(0)
        )
        nucleus: Array = lax.cond(
            top_p < 1, lambda: greatest(mass, top_p * mass(kth), lambda least: least), lambda: jnp.float32(0)
        )
        return jnp.maximum(kth, nucleus)

    result: Array = lax.cond(settled, lambda: jnp.float32(0), both)
    return result


def greatest(
    measure: Callable[[Array], Array],
    target: Float32[Array, ""],
    unit: Callable[[Array], Array],
    wanted: Bool[Array, ""] | bool = True,
) -> Float32[Array, ""]:
    """The greatest weight w for which `measure(w)`, a sum over the tokens of at least w, reaches the target.

    `unit(w)` is the least that a token of weight w or more adds: where two bounds differ by less than two units there
    is one token between them, and no need to tell where exactly. (One and a half, for the sums are rounded: two tokens
    that are all but equal can differ by a little less than two.) 0 without a single measure where it is not `wanted`.
    """

    def unclear(bounds: tuple[Array, Array, Array, Array]) -> Array:
        low, high, at_low, at_high = bounds
        return (high - low > 1) & (at_low - at_high >= 1.5 * unit(_float(low)))

    def halve(bounds: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        low, high, at_low, at_high = bounds
        middle = low + lax.div(high - low, jnp.int32(2))
        found = measure(_float(middle))
        enough = found >= target
        return (
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle),
            jnp.where(enough, found, at_low),
            jnp.where(enough, at_high, found),
        )

    highest = jnp.where(wanted, jnp.int32(_BITS_OF_ONE + 1), jnp.int32(0))
    start = (jnp.int32(0), highest, jnp.float32(jnp.inf), jnp.float32(0))
    return _float(lax.while_loop(unclear, halve, start)[0])


def _float(bits: Int32[Array, ""]) -> Float32[Array, ""]:
    return lax.bitcast_convert_type(bits, jnp.float32)
