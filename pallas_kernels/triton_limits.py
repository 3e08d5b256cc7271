"""What Triton's lowering takes, and computes right; checks of operands refuse the rest by name."""

LEAST_SIZE = 16
"""Of what a product sums over: 8 numbers of bfloat16 compile to twice the right sum, and nothing says so."""
DTYPES = ("float32", "bfloat16")
WRAPPED = range((1 << 31) + 1, (1 << 32) + 1)
"""Bytes of an array of codes that is not served: up to 2^32 offsets have 32 bits, one of which is a sign."""


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


def check_reach(what: str, size: int) -> None:
    """That offsets reach all of an array of so many single bytes. Raises ValueError."""
    if size in WRAPPED:
        raise ValueError(f"{what}: {size:,} bytes; must be less than {WRAPPED.start:,}, or {WRAPPED.stop:,} or more")
