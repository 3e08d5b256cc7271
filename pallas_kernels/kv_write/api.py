"""What every implementation of the op promises."""

from typing import Protocol, runtime_checkable

from jax import Array
from jaxtyping import Float, Int


@runtime_checkable
class KvWrite(Protocol):
    """kv[layer, table[t, p // S], :, :, p % S] = (k[t, l], v[t, l]) for p = start[t] + l.

    The L positions of a tile lie in one block: `start` is a multiple of L, S a multiple of L. All L are written,
    those past a tile's length too: they lie past the sequence's end, where nothing reads before it is written again.
    A padding tile names block 0, which is nobody's.
    """

    def __call__(
        self,
        kv: Float[Array, "Y B 2 K S E"],
        k: Float[Array, "T L K E"],
        v: Float[Array, "T L K E"],
        layer: Int[Array, ""],
        table: Int[Array, "T C"],
        start: Int[Array, "T"],
    ) -> Float[Array, "Y B 2 K S E"]: ...
