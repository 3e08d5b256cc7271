"""Which implementation of each op a backend uses. Resolved once, at start, and passed to whoever computes."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from pallas_kernels.kv_write.api import KvWrite
from pallas_kernels.kv_write.xla import kv_write
from pallas_kernels.layers import OverLayers, rolled
from pallas_kernels.linear.api import Linear
from pallas_kernels.linear.xla import linear
from pallas_kernels.lora.api import EmbeddingLora, Lora
from pallas_kernels.lora.xla import embedding_lora, lora
from pallas_kernels.paged_attention.api import PagedAttention
from pallas_kernels.paged_attention.xla import paged_attention


@dataclass(frozen=True, kw_only=True, slots=True)
class Ops:
    """One implementation of each op.

    Attributes:
        backend: the name that it was resolved from, never `auto`.
        reasons: op -> the implementation chosen, and why.
    """

    backend: str
    over_layers: OverLayers
    linear: Linear
    lora: Lora
    embedding_lora: EmbeddingLora
    kv_write: KvWrite
    paged_attention: PagedAttention
    reasons: Mapping[str, str]


def resolve(backend: str) -> Ops:
    """The ops of a backend; `auto` is the default device's.

    Raises:
        NotImplementedError: no implementation serves this backend on this machine; says which and why.
    """
    try:
        platform = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # both are how JAX says that it found none
        asked = jax.config.jax_platforms or "any"
        raise NotImplementedError(f"backend {backend!r}: JAX finds no device of JAX_PLATFORMS={asked}") from error
    chosen = {"gpu": "cuda"}.get(platform, platform) if backend == "auto" else backend
    if chosen != "cpu":
        raise NotImplementedError(f"backend {chosen!r}: no op is implemented for it yet; `cpu` is")
    if platform != "cpu":
        raise NotImplementedError(f"backend 'cpu': the default device is {platform}; set JAX_PLATFORMS=cpu")
    names = ("linear", "lora", "embedding_lora", "kv_write", "paged_attention")
    return Ops(
        backend=chosen,
        over_layers=rolled,
        linear=linear,
        lora=lora,
        embedding_lora=embedding_lora,
        kv_write=kv_write,
        paged_attention=paged_attention,
        reasons=dict.fromkeys(names, f"xla: what {chosen} runs ({'asked for' if backend == chosen else 'the device'})"),
    )
