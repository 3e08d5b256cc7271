"""What the Triton kernel takes. The rest is refused by name, since of the lowering's limits some pass in silence."""

from jax import Array
from jaxtyping import Float

from pallas_kernels.quantized import QuantizedMatrix, shape_of
from pallas_kernels.triton_limits import DTYPES, check_reach, check_same


def check_quantized_linear(x: Float[Array, "X I"], weight: QuantizedMatrix) -> None:
    """That the product can be computed.

    Raises:
        ValueError: names the first thing that does not fit, and what it would have to fit.
    """
    outs, columns = shape_of(weight)
    check_same("the columns of x, of W", x.shape[1], columns)
    if str(x.dtype) not in DTYPES:
        raise ValueError(f"dtype {x.dtype} of x: must be {' or '.join(DTYPES)}")
    for name, part in weight._asdict().items():
        if part is not None:
            check_same(f"rows of codes, of {name}", outs, part.shape[0])
    check_codes(weight.codes.size)


def check_codes(*sizes: int) -> None:
    """That the kernel reaches all codes of matrices, by the bytes that each matrix has. Raises ValueError."""
    for size in sizes:
        check_reach("codes of a matrix", size)
