"""The case of `saved_linear`: heads of adapters' own, in decode."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from openlora_jax.bench.kernels import peers
from openlora_jax.bench.kernels.case import FEW_CALLS, Case, Step, normal, x_and_y
from openlora_jax.bench.kernels.workload import Workload
from pallas_kernels.layers import LayerIndex, unrolled
from pallas_kernels.lora.api import WorkList
from pallas_kernels.registry import Ops
from pallas_kernels.saved.api import SavedLinear, SavedPages

HEADS = 2
"""In the pool: a head of a large model takes a gigabyte."""

Operands = tuple[Array, SavedPages, WorkList]


def saved_linear_case(workload: Workload, ops: Ops) -> Case:
    """Half of the rows have a head of their own, one of `HEADS`. What is right is every row times every head."""
    rows, width, vocab = workload.rows, workload.model.hidden_size, workload.model.vocab_size
    own, itemsize = rows // 2, jnp.dtype(workload.dtype).itemsize
    pool = normal(0, (1, HEADS, vocab, width), workload.dtype, width**-0.5)
    x, y = x_and_y((rows, 1), width, vocab, workload.dtype)
    head_bytes = HEADS * vocab * width * itemsize
    return Case(
        op="saved linear decode, lm_head",
        operands=((x, pool, _alternating(rows, own)),),
        carry=y,
        calls=FEW_CALLS,
        over_layers=unrolled,
        reference=_step(peers.every_saved_linear),
        steps={
            ops.chosen["saved_linear"].name: _step(ops.saved_linear),
            "every head": _step(peers.every_saved_linear),
        },
        nbytes=head_bytes + itemsize * own * (width + vocab),
        footprint=head_bytes,
        operations=2 * own * width * vocab,
    )


def _alternating(rows: int, own: int) -> WorkList:
    """An item for every second row, with the heads in turn."""
    tile = 2 * np.arange(own, dtype=np.int32)
    return WorkList(
        start=jnp.asarray(np.searchsorted(tile, np.arange(rows + 1)).astype(np.int32))[None],
        tile=jnp.asarray(tile)[None],
        page=jnp.asarray(np.arange(own, dtype=np.int32) % HEADS)[None],
        scale=jnp.ones((1, own), jnp.float32),
    )


def _step(saved_linear: SavedLinear) -> Step:
    def step(operands: Operands, layer: LayerIndex, y: Array) -> Array:
        x, pool, work = operands
        return saved_linear(x, y, pool, work, 0)

    return step
