"""The plain form: the oracle of the others, and what runs where XLA's own products are the fastest."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from pallas_kernels.layers import LayerIndex


def linear(
    x: Float[Array, "T L I"], weights: tuple[Float[Array, "O I"], ...], layer: LayerIndex
) -> Float[Array, "T L O"]:
    """y = x W_layer^T, in full float32 where x is: the default of a GPU or TPU would round it to fewer bits.

    A layer that is known (an unrolled loop) is picked and costs nothing; a traced one gathers from the stack of all.
    """
    weight = weights[int(layer)] if isinstance(layer, np.ndarray) else jnp.stack(weights)[layer]
    return jnp.matmul(x, weight.T, precision=lax.Precision.HIGHEST)
