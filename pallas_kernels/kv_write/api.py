"""What every implementation of the op promises."""

from typing import Protocol, runtime_checkable

from jax import Array
from jaxtyping import Float, Int

from pallas_kernels.kv_cache import KvCache
from pallas_kernels.layers import LayerIndex


@runtime_checkable
class KvWrite(Protocol):
    """The cache with k[t, l] and v[t, l], first[t] <= l < length[t], at position p = start[t] + l of tile t.

    That is block table[t, p // S], place p % S. The L positions of a tile lie in one block: `start` is a multiple of L,
    S a multiple of L. Tiles come in the order of their positions, and the columns past a tile's end may hold anything
    after. A padding tile names block 0, which is nobody's and may hold anything after.
    """

    def __call__(
        self,
        kv: KvCache,
        k: Float[Array, "T L K E"],
        v: Float[Array, "T L K E"],
        layer: LayerIndex,
        table: Int[Array, "T C"],
        start: Int[Array, "T"],
        first: Int[Array, "T"],
        length: Int[Array, "T"],
    ) -> KvCache: ...
