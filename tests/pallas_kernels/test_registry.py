"""Every backend has every op; a backend that cannot run on this machine says which ops declined, and why."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from pallas_kernels.affine.api import Affine
from pallas_kernels.int4_lora.api import Int4Lora
from pallas_kernels.kv_write.api import KvWrite
from pallas_kernels.layers import OverLayers
from pallas_kernels.linear.api import Linear
from pallas_kernels.lora.api import EmbeddingLora, Lora
from pallas_kernels.paged_attention.api import PagedAttention
from pallas_kernels.quantized_linear.api import QuantizedLinear
from pallas_kernels.quantized_linear.layers import QuantizedLayers
from pallas_kernels.registry import PLATFORMS, TABLE, Implementation, ModelSizes, implementations, resolve
from pallas_kernels.saved.api import SavedEmbedding, SavedLinear
from pallas_kernels.shortcut import Shortcut
from pallas_kernels.threshold.api import Threshold
from pallas_kernels.top_k.api import TopK

PROTOCOLS = {
    "over_layers": OverLayers,
    "shortcut": Shortcut,
    "linear": Linear,
    "quantized_linear": QuantizedLinear,
    "quantized_layers": QuantizedLayers,
    "saved_linear": SavedLinear,
    "saved_embedding": SavedEmbedding,
    "affine": Affine,
    "lora": Lora,
    "int4_lora": Int4Lora,
    "embedding_lora": EmbeddingLora,
    "kv_write": KvWrite,
    "paged_attention": PagedAttention,
    "top_k": TopK,
    "threshold": Threshold,
}


def use_device(monkeypatch: pytest.MonkeyPatch, platform: str, **facts: str) -> None:
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform=platform, **facts)])


@pytest.mark.parametrize("backend", PLATFORMS)
def test_every_backend_has_every_op(backend: str) -> None:
    ops = implementations(backend)
    assert ops.backend == backend
    assert ops.chosen.keys() == PROTOCOLS.keys()
    for op, protocol in PROTOCOLS.items():
        assert isinstance(getattr(ops, op), protocol)
        assert getattr(ops, op) is ops.chosen[op].function or op == "linear"
        assert ops.chosen[op].name
        assert ops.chosen[op].reason


@pytest.mark.parametrize(
    ("platform", "asked", "backend"),
    [("cpu", "auto", "cpu"), ("gpu", "auto", "cuda"), ("tpu", "auto", "tpu"), ("cpu", "interpret", "interpret")],
)
def test_auto_is_the_devices_backend(monkeypatch: pytest.MonkeyPatch, platform: str, asked: str, backend: str) -> None:
    use_device(monkeypatch, platform, compute_capability="9.0", device_kind="NVIDIA H100")
    assert resolve(asked).backend == backend


@pytest.mark.parametrize("backend", ["cuda", "tpu"])
def test_a_backend_of_another_device_names_every_op_in_one_line(backend: str) -> None:
    with pytest.raises(NotImplementedError) as caught:
        resolve(backend)
    line = str(caught.value)
    assert "\n" not in line
    assert all(op in line for op in TABLE)
    assert line.endswith(f"needs a {PLATFORMS[backend]}, and JAX's default device is a cpu (`auto` takes that)")


@pytest.mark.parametrize("capability", ["7.5", "gfx942", None])
def test_a_gpu_that_the_kernels_do_not_know(monkeypatch: pytest.MonkeyPatch, capability: str | None) -> None:
    use_device(monkeypatch, "gpu", **({"compute_capability": capability} if capability else {}))
    with pytest.raises(NotImplementedError) as caught:
        resolve("auto")
    kernels = sorted(op for op, by_backend in TABLE.items() if by_backend["cuda"].name == "pallas_triton")
    assert f"'cuda' cannot serve here: {', '.join(kernels)}: needs an NVIDIA GPU of compute" in str(caught.value)
    assert str(caught.value).endswith(capability or "?")
    assert " linear" not in str(caught.value), "which could run"


def test_mosaic_is_cuda_with_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    use_device(monkeypatch, "gpu", compute_capability="9.0")
    mosaic, cuda = resolve("mosaic"), resolve("cuda")
    assert {op for op in PROTOCOLS if mosaic.chosen[op] is not cuda.chosen[op]} == {"lora"}
    assert mosaic.chosen["lora"].name == "mosaic_gpu"


def test_mosaic_was_made_for_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    use_device(monkeypatch, "gpu", compute_capability="8.9")
    with pytest.raises(NotImplementedError, match=r"'mosaic' cannot serve here: lora: needs an .* 9.0 or newer.*8.9$"):
        resolve("mosaic")


@pytest.mark.parametrize(
    ("backend", "model", "problem"),
    [
        ("cuda", ModelSizes(head=128, modules=(512, 1536), codes=(1 << 31,)), None),
        (
            "cuda",
            ModelSizes(head=256, modules=(512,), codes=()),
            "paged_attention: heads are 256 wide; the kernel takes at most 128",
        ),
        (
            "cuda",
            ModelSizes(head=128, modules=(512,), codes=(512, 1 << 32)),
            "quantized_linear: codes of a matrix: 4,294,967,296 bytes; must be less than 2,147,483,649, "
            "or 4,294,967,297 or more",
        ),
        (
            "mosaic",
            ModelSizes(head=64, modules=(512, 1504), codes=()),
            "lora: columns of A or B: 1504; must be a multiple of 64",
        ),
    ],
)
def test_a_model_that_a_kernel_does_not_take(
    monkeypatch: pytest.MonkeyPatch, backend: str, model: ModelSizes, problem: str | None
) -> None:
    use_device(monkeypatch, "gpu", compute_capability="9.0")
    if problem is None:
        assert resolve(backend, model).backend == backend
        return
    with pytest.raises(NotImplementedError) as caught:
        resolve(backend, model)
    assert str(caught.value) == f"backend {backend!r} cannot serve here: {problem}"


def test_reasons_differ_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        TABLE["lora"],
        "cpu",
        Implementation("xla", TABLE["lora"]["cpu"].function, "fast", lambda device: f"it dislikes a {device.platform}"),
    )
    with pytest.raises(NotImplementedError) as caught:
        resolve("cpu")
    assert str(caught.value) == "backend 'cpu' cannot serve here: lora: it dislikes a cpu"


def test_a_device_that_no_backend_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    use_device(monkeypatch, "METAL")
    with pytest.raises(NotImplementedError, match="JAX_PLATFORMS=cpu"):
        resolve("auto")


def test_no_device_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", refuse)
    with pytest.raises(NotImplementedError, match="JAX finds no device"):
        resolve("auto")


COMPILES_ONCE = """
import jax, jax.numpy as jnp
from pallas_kernels.registry import implementations

ops, traces = implementations("interpret"), []

@jax.jit
def step(weights):
    traces.append(weights)
    return ops.threshold(weights, jnp.ones(1, jnp.int32), jnp.ones(1), jnp.zeros(1, bool))

for _ in range(2):
    step(jnp.ones((1, 64)))
print(len(traces))
"""


def test_the_first_program_that_interprets_a_kernel_is_compiled_once() -> None:
    """In a process of its own: what is imported once stays."""
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", COMPILES_ONCE], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout == "1\n"
