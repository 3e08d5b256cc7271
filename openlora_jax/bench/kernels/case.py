"""One op with operands for it: what is timed, what it must give, and the least that it has to move and compute."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pallas_kernels.layers import LayerIndex, OverLayers

CALLS = 8
"""Of an op in one program, at least: dispatching a program takes as long as some kernels run."""

FEW_CALLS = 2
"""Of an op that goes through a row for every token of the vocabulary; each call takes operands of its own."""

PERIOD = 1_000_003
"""After so many, random numbers repeat: a prime, so that no two pages or blocks are alike."""

Step = Callable[[Any, LayerIndex, Any], Any]
"""(operands, layer, carry) -> carry: one call of an op."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One op on one set of operands.

    Attributes:
        op: its name, and what it is called on.
        mix: of adapters; empty where there are none.
        operands: of a dispatch each; taken in turn, they keep the cache from knowing what is read.
        carry: what a call returns, and the next one takes.
        calls: of one dispatch, each on a layer of its own.
        over_layers: the loop that makes them.
        reference: what is right.
        steps: name -> what is timed; the backend's own comes first.
        nbytes: the least that a call reads and writes.
        footprint: bytes that are read until some are read again; what is less than a cache may come out of it.
        operations: multiplications and additions of a call.
    """

    op: str
    mix: str = ""
    operands: tuple[Any, ...]
    carry: Any
    calls: int
    over_layers: OverLayers
    reference: Step
    steps: Mapping[str, Step]
    nbytes: int
    footprint: int
    operations: int

    def program(self, step: Step) -> Callable[[Any, Any], Any]:
        """(operands, carry) -> carry: the calls of one dispatch."""

        def run(operands: Any, carry: Any) -> Any:
            def call(layer: LayerIndex, carry: Any) -> Any:
                # Else XLA reads and adds up several layers at once, which no model lets it do.
                now, so_far = lax.optimization_barrier((operands, carry))
                return step(now, layer, so_far)

            return self.over_layers(self.calls, call, carry)

        return run


def layers_beyond(cache: int, nbytes: int, depth: int) -> int:
    """Layers of `nbytes` each that are twice a cache together; not more than the model has, nor fewer than CALLS."""
    return min(max(-(-2 * cache // nbytes), CALLS), depth)


def normal(seed: int, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Array:
    """Random operands."""
    numbers = np.random.default_rng(seed).normal(0, scale, PERIOD).astype(jnp.dtype(dtype))
    return jnp.asarray(np.resize(numbers, shape))


def x_and_y(tiles: tuple[int, int], d_in: int, d_out: int, dtype: str) -> tuple[Array, Array]:
    """Random rows of tiles of so many tokens, and what a product with them is added to, or takes the place of."""
    return normal(100, (*tiles, d_in), dtype), normal(101, (*tiles, d_out), dtype)
