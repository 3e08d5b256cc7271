"""What every implementation of the op promises."""

from typing import Protocol, runtime_checkable

from jax import Array
from jaxtyping import Float, Int

from pallas_kernels.kv_cache import KvCache
from pallas_kernels.layers import LayerIndex


@runtime_checkable
class PagedAttention(Protocol):
    """o[t, l] = softmax(q[t, l] K^T / sqrt(E)) V over the positions 0..start[t] + l of tile t's sequence.

    Position p of the sequence lies in block `table[t, p // S]`. Query head h reads KV head h // (H / K). The softmax
    is in float32. Rows l >= length[t] mean nothing; a tile of length 0 is padding.
    """

    def __call__(
        self,
        q: Float[Array, "T L H E"],
        kv: KvCache,
        layer: LayerIndex,
        table: Int[Array, "T C"],
        start: Int[Array, "T"],
        length: Int[Array, "T"],
    ) -> Float[Array, "T L H E"]: ...
