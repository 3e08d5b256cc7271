"""Which implementation of each op a backend uses, and why: one table. Resolved at start, passed to whoever computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import jax
from jax import Array
from jaxtyping import Float

from pallas_kernels.affine import pallas_triton as affine_triton
from pallas_kernels.affine import xla as affine_xla
from pallas_kernels.affine.api import Affine
from pallas_kernels.int4_lora import pallas_triton as int4_lora_triton
from pallas_kernels.int4_lora import xla as int4_lora_xla
from pallas_kernels.int4_lora.api import Int4Lora
from pallas_kernels.kv_write import reference as kv_write_reference
from pallas_kernels.kv_write import xla as kv_write_xla
from pallas_kernels.kv_write.api import KvWrite
from pallas_kernels.layers import LayerIndex, OverLayers, rolled, unrolled
from pallas_kernels.linear import reference as linear_reference
from pallas_kernels.linear import xla as linear_xla
from pallas_kernels.linear.api import Linear
from pallas_kernels.lora import pallas_triton as lora_triton
from pallas_kernels.lora import xla as lora_xla
from pallas_kernels.lora.api import EmbeddingLora, Lora
from pallas_kernels.lora.shapes import check_columns
from pallas_kernels.paged_attention import pallas_triton as paged_attention_triton
from pallas_kernels.paged_attention import xla as paged_attention_xla
from pallas_kernels.paged_attention.api import PagedAttention
from pallas_kernels.paged_attention.shapes import check_width
from pallas_kernels.quantized import Matrix, QuantizedMatrix
from pallas_kernels.quantized_linear import pallas_triton as quantized_linear_triton
from pallas_kernels.quantized_linear import reference as quantized_linear_reference
from pallas_kernels.quantized_linear import xla as quantized_linear_xla
from pallas_kernels.quantized_linear.api import QuantizedLinear
from pallas_kernels.quantized_linear.layers import QuantizedLayers, separate, stacked
from pallas_kernels.quantized_linear.shapes import check_codes
from pallas_kernels.saved import pallas_triton as saved_triton
from pallas_kernels.saved import reference as saved_reference
from pallas_kernels.saved import xla as saved_xla
from pallas_kernels.saved.api import SavedEmbedding, SavedLinear
from pallas_kernels.shortcut import Shortcut, declined, taken
from pallas_kernels.threshold import pallas_triton as threshold_triton
from pallas_kernels.threshold import xla as threshold_xla
from pallas_kernels.threshold.api import Threshold
from pallas_kernels.top_k import xla as top_k_xla
from pallas_kernels.top_k.api import TopK

PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "mosaic": "gpu", "tpu": "tpu", "interpret": "cpu"}
"""Backend -> JAX's name of the device that it computes on. `auto` takes the first that fits."""

LIKE = {"mosaic": "cuda"}
"""Backend -> the one whose ops it has where the table says nothing of it."""

IMPORTS = {"interpret": "jax.experimental.pallas.tpu", "mosaic": "pallas_kernels.lora.mosaic_gpu"}
"""Backend -> what its first kernel would import. In JAX 0.12 that changes what compiled programs are looked up by: the
program that was first would be compiled again, in front of a request. Others need not wait for it at their start."""

AMPERE, HOPPER = 8, 9
"""Compute capabilities: the first with tensor cores for bfloat16, and the first that Mosaic was made for."""


@runtime_checkable
class Device(Protocol):
    """What is looked at of a `jax.Device`; one of NVIDIA also has its `compute_capability`, such as "9.0"."""

    @property
    def platform(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """What of a base model some kernel may not take.

    Attributes:
        head: columns of an attention head.
        modules: columns of the inputs and outputs of the modules that adapters target.
        codes: bytes of the codes of each matrix of few bits.
    """

    head: int
    modules: tuple[int, ...]
    codes: tuple[int, ...]


def _takes_any(model: ModelSizes) -> None:
    """Most do: their sizes follow the model's."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """How one backend computes one op.

    Attributes:
        name: its file in the op's folder, or its function where several share a file.
        function: what is called.
        reason: why this one.
        declines: why it cannot run on a device of the right platform; None if it can.
        check: that it takes a model; raises ValueError, which says why not.
    """

    name: str
    function: Callable[..., Any]
    reason: str
    declines: Callable[[Device], str | None] = lambda device: None
    check: Callable[[ModelSizes], None] = _takes_any


@dataclass(frozen=True, kw_only=True, slots=True)
class Ops:
    """One implementation of each op.

    Attributes:
        backend: whose they are, never `auto`.
        linear: takes quantised weights too, and gives them to `quantized_linear`.
        chosen: op -> its implementation.
    """

    backend: str
    over_layers: OverLayers
    shortcut: Shortcut
    linear: Linear
    quantized_linear: QuantizedLinear
    quantized_layers: QuantizedLayers
    saved_linear: SavedLinear
    saved_embedding: SavedEmbedding
    affine: Affine
    lora: Lora
    int4_lora: Int4Lora
    embedding_lora: EmbeddingLora
    kv_write: KvWrite
    paged_attention: PagedAttention
    top_k: TopK
    threshold: Threshold
    chosen: Mapping[str, Implementation]


def implementations(backend: str) -> Ops:
    """The ops of a backend, whatever this machine has: to lower or compile for another one.

    Raises:
        KeyError: there is no such backend.
    """
    chosen = {op: by_backend.get(backend) or by_backend[LIKE[backend]] for op, by_backend in TABLE.items()}
    if backend in IMPORTS:
        import_module(IMPORTS[backend])
    functions: dict[str, Any] = {op: implementation.function for op, implementation in chosen.items()}
    functions["linear"] = _of_either(functions["linear"], functions["quantized_linear"])
    return Ops(backend=backend, chosen=chosen, **functions)


def _of_either(plain: Linear, quantized: QuantizedLinear) -> Linear:
    def linear(x: Float[Array, "T L I"], weights: tuple[Matrix, ...], layer: LayerIndex) -> Float[Array, "T L O"]:
        of_weights: Any = quantized if isinstance(weights[0], QuantizedMatrix) else plain
        y: Array = of_weights(x, weights, layer)
        return y

    return linear


def resolve(backend: str, model: ModelSizes | None = None) -> Ops:
    """The ops of a backend, all of which can run on this machine's default device; `auto` is that device's backend.

    Args:
        backend: its name, or `auto`.
        model: what they must take; None where there is none yet.

    Raises:
        NotImplementedError: some op declines; names each one and why, in one line.
    """
    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # both are how JAX says that it found none
        asked = jax.config.jax_platforms or "any"
        raise NotImplementedError(f"backend {backend!r}: JAX finds no device of JAX_PLATFORMS={asked}") from error
    if backend == "auto":
        backend = next((name for name, platform in PLATFORMS.items() if platform == device.platform), device.platform)
    if backend not in PLATFORMS:
        raise NotImplementedError(f"backend {backend!r}: there are {', '.join(PLATFORMS)}; set JAX_PLATFORMS=cpu")
    ops = implementations(backend)
    refusals = [(reason, op) for op, each in ops.chosen.items() if (reason := _refusal(backend, each, device, model))]
    if refusals:
        by_reason = groupby(sorted(refusals), key=lambda refusal: refusal[0])
        reasons = "; ".join(f"{', '.join(op for _, op in refused)}: {reason}" for reason, refused in by_reason)
        raise NotImplementedError(f"backend {backend!r} cannot serve here: {reasons}")
    return ops


def _refusal(backend: str, implementation: Implementation, device: Device, model: ModelSizes | None) -> str | None:
    if device.platform != PLATFORMS[backend]:
        return f"needs a {PLATFORMS[backend]}, and JAX's default device is a {device.platform} (`auto` takes that)"
    if (reason := implementation.declines(device)) or model is None:
        return reason
    try:
        implementation.check(model)
    except ValueError as error:
        return str(error)
    return None


def _needs(least: int) -> Callable[[Device], str | None]:
    """Why a kernel cannot run on a GPU. Ones that are not NVIDIA's have no compute capability like theirs."""

    def declines(device: Device) -> str | None:
        capability = str(getattr(device, "compute_capability", ""))
        major = capability.split(".")[0]
        if major.isdecimal() and int(major) >= least:
            return None
        return f"needs an NVIDIA GPU of compute capability {least}.0 or newer; this one's is {capability or '?'}"

    return declines


def _lora_mosaic(*operands: Any) -> jax.Array:
    from pallas_kernels.lora import mosaic_gpu

    return mosaic_gpu.lora(*operands)


_ROLLED = Implementation("rolled", rolled, "one body for all layers compiles in seconds")
_UNROLLED = Implementation("unrolled", unrolled, "each layer's weights are known when compiled: no copy, no branch")
_FEATURE_MAJOR = Implementation("xla", linear_xla.linear, "feature-major products, twice as fast here at few rows")
_PLAIN = Implementation("reference", linear_reference.linear, "XLA's own product, which a kernel would have to beat")
_NUMBERS = Implementation(
    "reference", quantized_linear_reference.linear, "XLA makes the numbers in memory, then multiplies"
)
_STACKED = Implementation("stacked", stacked, "slices of one array fuse into the sums of one body for all layers")
_SEPARATE = Implementation("separate", separate, "each layer's matrices are known when compiled")
_SLICES = Implementation("xla", kv_write_xla.kv_write, "one slice update a tile, in place; a scatter goes by element")
_SCATTER = Implementation("reference", kv_write_reference.kv_write, "one scatter for all tiles, in place")
_STORES = Implementation(
    "kv_write_scatter", kv_write_xla.kv_write_scatter, "one scatter for all tiles, by plain stores"
)
_VECTORS = Implementation("xla", affine_xla.affine, "a loop over the work list, which most steps leave empty")
_MATRICES = Implementation("xla", saved_xla.saved_linear, "a product for each matrix that some row of the step has")
_GATHER = Implementation(
    "reference", saved_reference.saved_embedding, "one gather for all tiles, as for the base's own"
)
_ITEMS = Implementation("xla", lora_xla.lora, "a loop over the work list reads each page where it lies")
_WORDS = Implementation("xla", int4_lora_xla.int4_lora, "the same loop; codes become numbers in its sums")
_COLUMNS = Implementation("xla", lora_xla.embedding_lora, "a loop over the work list looks up columns where they lie")
_BLOCKS = Implementation("xla", paged_attention_xla.paged_attention, "as many turns as the longest sequence has blocks")
_TAKEN = Implementation("taken", taken, "a branch on the device leaves out what a step can do without")
_DECLINED = Implementation("declined", declined, "a branch would make the host wait for the device")
_SELECTION = Implementation("by_rows", top_k_xla.by_rows, "XLA's partial selection")
_BLOCKWISE = Implementation("by_blocks", top_k_xla.by_blocks, "XLA sorts what it selects from, so it gets little")
_HALVING = Implementation("xla", threshold_xla.threshold, "row by row, as many passes as it takes")
_INTERPRETED = "the kernel of cuda, run as XLA operations"


def _triton(
    kernel: Callable[..., Any], reason: str, check: Callable[[ModelSizes], None] = _takes_any
) -> dict[str, Implementation]:
    """A kernel, as it is and interpreted."""
    return {
        "interpret": Implementation("pallas_triton", partial(kernel, interpret=True), _INTERPRETED, check=check),
        "cuda": Implementation("pallas_triton", kernel, reason, _needs(AMPERE), check),
    }


TABLE: Mapping[str, Mapping[str, Implementation]] = {
    "over_layers": {"cpu": _ROLLED, "interpret": _ROLLED, "cuda": _UNROLLED, "tpu": _UNROLLED},
    "shortcut": {"cpu": _TAKEN, "interpret": _TAKEN, "cuda": _DECLINED, "tpu": _TAKEN},
    "linear": {"cpu": _FEATURE_MAJOR, "interpret": _FEATURE_MAJOR, "cuda": _PLAIN, "tpu": _PLAIN},
    "quantized_linear": {
        "cpu": Implementation(
            "xla",
            quantized_linear_xla.linear,
            "one row summed code by code, more multiplied block by block in the cache",
        ),
        **_triton(
            quantized_linear_triton.linear,
            "codes become numbers in registers; XLA would write them to memory and read them again",
            lambda model: check_codes(*model.codes),
        ),
        "tpu": _NUMBERS,
    },
    "quantized_layers": {"cpu": _STACKED, "interpret": _SEPARATE, "cuda": _SEPARATE, "tpu": _SEPARATE},
    "saved_linear": {
        "cpu": _MATRICES,
        **_triton(saved_triton.saved_linear, "in place, where a row has a matrix at all"),
        "tpu": _MATRICES,
    },
    "saved_embedding": dict.fromkeys(("cpu", "interpret", "cuda", "tpu"), _GATHER),
    "affine": {
        "cpu": _VECTORS,
        **_triton(affine_triton.affine, "in place, where a tile has items at all"),
        "tpu": _VECTORS,
    },
    "lora": {
        "cpu": _ITEMS,
        **_triton(lora_triton.lora, "one launch for all modules that share an input; pages read where they lie"),
        "mosaic": Implementation(
            "mosaic_gpu",
            _lora_mosaic,
            "the same by Mosaic for decode, on plain cores; never timed against Triton's, which has prefill",
            _needs(HOPPER),
            lambda model: check_columns(*model.modules),
        ),
        "tpu": _ITEMS,
    },
    "int4_lora": {
        "cpu": _WORDS,
        **_triton(int4_lora_triton.int4_lora, "one launch, in which codes become numbers"),
        "tpu": _WORDS,
    },
    "embedding_lora": {
        "cpu": _COLUMNS,
        **_triton(lora_triton.embedding_lora, "one launch that looks up columns of A"),
        "tpu": _COLUMNS,
    },
    "kv_write": {"cpu": _SLICES, "interpret": _SLICES, "cuda": _STORES, "tpu": _SCATTER},
    "paged_attention": {
        "cpu": _BLOCKS,
        **_triton(
            paged_attention_triton.paged_attention,
            "one kernel for decode and prefill that reads the stacked cache through the block tables",
            lambda model: check_width(model.head),
        ),
        "tpu": _BLOCKS,
    },
    "top_k": {"cpu": _SELECTION, "interpret": _SELECTION, "cuda": _BLOCKWISE, "tpu": _SELECTION},
    "threshold": {
        "cpu": _HALVING,
        **_triton(
            threshold_triton.threshold, "loops inside of a kernel, as long as each row takes, without asking the host"
        ),
        "tpu": _HALVING,
    },
}
"""Op -> backend -> its implementation."""
