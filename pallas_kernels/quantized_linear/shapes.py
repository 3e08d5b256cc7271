"""What the Triton kernel takes. The rest is refused by name, since of the lowering's limits some pass in silence."""

from jax import Array
from jaxtyping import Float

from pallas_kernels.quantized import QuantizedMatrix, shape_of

LEAST_SIZE = 16
"""Of what a product sums over: 8 numbers of bfloat16 compile to twice the right sum, and nothing says so."""
DTYPES = ("float32", "bfloat16")
MOST_BYTES = 1 << 31
"""Of an array of single bytes: below 2^32 offsets are signed numbers of 32 bits."""


def check_quantized_linear(x: Float[Array, "N I"], weight: QuantizedMatrix) -> None:
    """That the product can be computed.

    Raises:
        ValueError: names the first thing that does not fit, and what it would have to fit.
    """
    outs, columns = shape_of(weight)
    if x.shape[1] != columns:
        raise ValueError(f"the columns of x, of W differ: {x.shape[1]} and {columns}")
    if str(x.dtype) not in DTYPES:
        raise ValueError(f"dtype {x.dtype} of x: must be {' or '.join(DTYPES)}")
    for name, part in weight._asdict().items():
        if part is not None and part.shape[0] != outs:
            raise ValueError(f"rows of codes, of {name} differ: {outs} and {part.shape[0]}")
    if weight.codes.size >= MOST_BYTES:
        raise ValueError(f"{weight.codes.size:,} bytes of codes; must be below {MOST_BYTES:,}")


def check_size(what: str, size: int) -> None:
    """That a side of what is computed at once is one that Triton computes, and computes right.

    Raises:
        ValueError: it is below the least, or no power of two.
    """
    if size < LEAST_SIZE or size & (size - 1):
        raise ValueError(f"{what}: {size}; must be a power of two, {LEAST_SIZE} or more")
