"""For CUDA: a program a row, which loops as long as its row takes; XLA's loops would ask the host at every turn."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Bool, Float32, Int32

from pallas_kernels.threshold.xla import greatest
from pallas_kernels.triton_call import triton_call

Ref = Any

BLOCK, BLOCKS, WARPS = 2048, 2, 16
"""Weights that are summed side by side, 4 a thread, and how many blocks of them a turn loads. With 8 or 16 sums a
thread ptxas spills some bytes on one chip or the other."""


def threshold(
    weights: Float32[Array, "T V"],
    top_k: Int32[Array, "T"],
    top_p: Float32[Array, "T"],
    settled: Bool[Array, "T"],
    *,
    interpret: bool = False,
) -> Float32[Array, "T"]:
    """Found by halving, as on a CPU; a row that is settled reads nothing."""
    rows = weights.shape[0]
    call = triton_call(
        threshold_kernel,
        ShapeDtypeStruct((rows,), jnp.float32),
        grid=(rows,),
        warps=WARPS,
        stages=2,
        interpret=interpret,
    )
    found: Array = call(weights, top_k, top_p, settled.astype(jnp.int32))
    return found


def threshold_kernel(weights_ref: Ref, top_k_ref: Ref, top_p_ref: Ref, settled_ref: Ref, found_ref: Ref) -> None:
    row, size = pl.program_id(0), weights_ref.shape[1]
    top_k, top_p, live = top_k_ref[row], top_p_ref[row], settled_ref[row] == 0
    turns = jnp.where(live, jnp.int32(pl.cdiv(size, BLOCKS * BLOCK)), jnp.int32(0))

    def total(value: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def measure(least: Array) -> Array:
            def add_block(turn: Array, sums: Array) -> Array:
                for block in range(BLOCKS):
                    column = (turn * BLOCKS + block) * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
                    weights = plgpu.load(weights_ref.at[row, column], mask=column < size, other=-1.0)
                    sums += jnp.where(weights >= least, value(weights), 0)
                return sums

            return jnp.sum(lax.fori_loop(jnp.int32(0), turns, add_block, jnp.zeros(BLOCK, jnp.float32)))

        return measure

    count, mass = total(jnp.ones_like), total(lambda weights: weights)
    kth = greatest(count, top_k.astype(jnp.float32), jnp.ones_like, live & (top_k < size))
    nucleus = greatest(mass, top_p * mass(kth), lambda least: least, live & (top_p < 1))
    found_ref[row] = jnp.maximum(kth, nucleus)
