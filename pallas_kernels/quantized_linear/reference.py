"""The plain form, and the oracle of the others: the matrix as numbers, then the product."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from pallas_kernels.layers import LayerIndex
from pallas_kernels.quantized import QuantizedMatrix, dense


def linear(x: Float[Array, "T L I"], weights: tuple[QuantizedMatrix, ...], layer: LayerIndex) -> Float[Array, "T L O"]:
    """y = x W_layer^T, with W's numbers rounded to the dtype of x."""
    known = isinstance(layer, np.ndarray)
    weight = weights[int(layer)] if known else jax.tree.map(lambda *parts: jnp.stack(parts)[layer], *weights)
    return jnp.matmul(x, dense(weight).astype(x.dtype).T, precision=lax.Precision.HIGHEST)
