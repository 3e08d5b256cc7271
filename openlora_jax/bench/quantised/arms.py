"""What is compared: formats of the base model, and of the KV cache."""

from dataclasses import dataclass

FLOAT32 = "float32"
"""The arm that the others are compared with."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A base model as `openlora convert base` makes it with some options.

    Attributes:
        kv_dtype: of keys and values, `float32` or `int8`.
        bound: how much more perplexity than float32's is promised, at most; None where nothing is.
    """

    name: str
    options: tuple[str, ...] = ()
    kv_dtype: str = FLOAT32
    bound: float | None = None

    @property
    def folder(self) -> str:
        """Of the converted base."""
        return "-".join(option.lstrip("-") for option in self.options) or FLOAT32


def _int4(group: int, *more: str) -> tuple[str, ...]:
    return ("--quant", "int4", "--group", str(group), *more)


ARMS = (
    Arm(FLOAT32),
    Arm("int8, groups of 32", ("--quant", "int8"), bound=0.005),
    Arm("nf4, groups of 64", ("--quant", "nf4"), bound=0.08),
    Arm("int4 with offsets, groups of 32", _int4(32)),
    Arm("int4 with offsets, groups of 64", _int4(64)),
    Arm("int4 with offsets, groups of 128", _int4(128)),
    Arm("int4 symmetric, groups of 32", _int4(32, "--symmetric")),
    Arm("float32, KV cache in int8", (), "int8", bound=0.005),
)
