"""The ops of a forward pass that has a gradient: the loops of serving, as long as a step's data, have none."""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from pallas_kernels.kv_cache import KvCache
from pallas_kernels.kv_write import reference as kv_write
from pallas_kernels.layers import Carry, LayerIndex
from pallas_kernels.paged_attention import reference as paged_attention
from pallas_kernels.quantized import Matrix, dense
from pallas_kernels.registry import Ops

ONLY = np.zeros((), np.int32)
"""The layer of a cache that holds one."""


def with_gradients(ops: Ops) -> Ops:
    """The ops for whole sequences that are computed once: the cache holds the layer at hand alone."""
    return replace(
        ops, over_layers=_rematerialised, linear=frozen_linear, kv_write=_write_only, paged_attention=_attend_only
    )


def _rematerialised(count: int, step: Callable[[LayerIndex, Carry], Carry], carry: Carry) -> Carry:
    """Keeps each layer's input alone, and computes the rest again on the way back."""
    looped: Carry = lax.fori_loop(0, count, jax.checkpoint(step), carry)
    return looped


@jax.custom_vjp
def frozen_linear(x: Float[Array, "T L I"], weights: tuple[Matrix, ...], layer: LayerIndex) -> Float[Array, "T L O"]:
    """y = x W_layer^T, whose gradient ends at x: the base does not learn, and a switch would keep all its branches'."""
    y: Array = lax.switch(layer, [lambda x, w=weight: x @ _numbers(w, x).T for weight in weights], x)
    return y


def _forward(x: Array, weights: tuple[Matrix, ...], layer: LayerIndex) -> tuple[Array, tuple[object, ...]]:
    return frozen_linear(x, weights, layer), (weights, layer)


def _backward(kept: tuple[tuple[Matrix, ...], LayerIndex], dy: Array) -> tuple[Array, None, None]:
    weights, layer = kept
    return lax.switch(layer, [lambda dy, w=weight: dy @ _numbers(w, dy) for weight in weights], dy), None, None


def _numbers(weight: Matrix, x: Array) -> Float[Array, "O I"]:
    return weight if isinstance(weight, Array) else dense(weight).astype(x.dtype)


frozen_linear.defvjp(_forward, _backward)


def _write_only(
    kv: KvCache,
    k: Float[Array, "T L K E"],
    v: Float[Array, "T L K E"],
    layer: LayerIndex,
    table: Int[Array, "T C"],
    start: Int[Array, "T"],
    first: Int[Array, "T"],
    length: Int[Array, "T"],
) -> KvCache:
    return kv_write.kv_write(kv, k, v, ONLY, table, start, first, length)


def _attend_only(
    q: Float[Array, "T L H E"],
    kv: KvCache,
    layer: LayerIndex,
    table: Int[Array, "T C"],
    start: Int[Array, "T"],
    length: Int[Array, "T"],
) -> Float[Array, "T L H E"]:
    return paged_attention.paged_attention(q, kv, ONLY, table, start, length)
