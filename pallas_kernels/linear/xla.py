"""For XLA:CPU: fast products at few rows, inside a rolled layer loop."""

from jax import Array, lax
from jaxtyping import Float

from pallas_kernels.layers import LayerIndex

FEATURE_MAJOR_ROWS = 128
"""Up to this many rows `W @ x^T` beats `x @ W^T` on XLA:CPU, 4 times at one row; above, it loses."""


def linear(
    x: Float[Array, "T L I"], weights: tuple[Float[Array, "O I"], ...], layer: LayerIndex
) -> Float[Array, "T L O"]:
    """y = x W_layer^T, with one branch a layer.

    A branch reads its layer's array where it lies. Slicing one stacked array would copy it at every step, and an
    unrolled layer loop compiles each layer anew: minutes, where this compiles one.
    """
    rows = x.reshape(-1, x.shape[-1])
    y: Array = lax.switch(layer, [lambda rows, w=weight: product(rows, w) for weight in weights], rows)
    return y.reshape(*x.shape[:-1], -1)


def product(x: Float[Array, "N I"], weight: Float[Array, "O I"]) -> Float[Array, "N O"]:
    """x W^T in the faster of two forms."""
    if x.shape[0] > FEATURE_MAJOR_ROWS:
        return x @ weight.T
    # Without the barriers XLA folds the transposes away again, and with them what is gained.
    columns = lax.optimization_barrier(x.T)
    y: Array = lax.optimization_barrier(weight @ columns)
    return y.T
