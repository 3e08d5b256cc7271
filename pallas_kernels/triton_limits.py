"""What Triton's lowering takes, and computes right; checks of operands refuse the rest by name."""

LEAST_SIZE = 16
"""Of what a product sums over: 8 numbers of bfloat16 compile to twice the right sum, and nothing says so."""
DTYPES = ("float32", "bfloat16")
"""Offsets have 64 bits in arrays above 2^32 bytes and 32 signed ones below, too few for what counts single bytes."""


def check_size(what: str, size: int, least: int = LEAST_SIZE) -> None:
    """That a side of what is computed at once is one that Triton computes, and computes right.

    Raises:
        ValueError: it is below the least, or no power of two.
    """
    if size < least or size & (size - 1):
        raise ValueError(f"{what}: {size}; must be a power of two, {least} or more")


def check_same(what: str, one: object, other: object) -> None:
    """That two sizes agree. Raises ValueError, which names both."""
    if one != other:
        raise ValueError(f"{what} differ: {one} and {other}")
