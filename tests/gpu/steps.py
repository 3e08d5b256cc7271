"""The engine's two steps with their operands as shapes: nothing is allocated, whatever the model's size."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from openlora_jax.adapters.pages import pool_capacities
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.config import Dtype
from openlora_jax.engine.sampling import EnsembleBatch, SamplerState, SamplingBatch
from openlora_jax.engine.sampling_params import MAX_STOPS
from openlora_jax.engine.step import Program
from openlora_jax.engine.work import work_list
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.forward import TileBatch
from openlora_jax.model.parameters import Parameters
from openlora_jax.model.stored import specification
from openlora_jax.model.transformer import Transformer
from openlora_jax.model.weights import weight_table, with_values
from pallas_kernels.kv_cache import KvCache
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import PagePair, WorkList
from pallas_kernels.registry import Ops
from tests.gpu.cases import Kind
from tests.gpu.workloads import Workload

Pools = tuple[PagePair, ...]
DONATED = ("state", "kv")
"""What the engine's runner donates to either step."""
FIELDS = tuple(field.name for field in fields(Parameters))


class Step(NamedTuple):
    """A program, and the shapes of its operands by name, in order.

    The model's parameters are a tuple here, since their class takes nothing but arrays.
    """

    function: Callable[..., Any]
    operands: dict[str, Any]
    donated: tuple[int, ...]

    def nbytes(self, *names: str) -> int:
        """Bytes of some of the operands."""
        leaves = jax.tree.leaves([self.operands[name] for name in names])
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def step(kind: Kind, workload: Workload, ops: Ops, *, ensembles: bool = False) -> Step:
    """A step as the runner dispatches it on a GPU, in its largest bucket; in decode with or without ensembles."""
    model, engine = workload.model, workload.engine
    program = getattr(Program(model, ops), kind)
    rows = engine.row_buckets[-1] if kind == "decode" else engine.chunk_buckets[-1] // engine.prefill_tile
    operands = {
        "parameters": _parameters(model, engine.dtype),
        "state": jax.eval_shape(lambda: SamplerState.create(engine.max_rows + 1, model.vocab_size)),
        "kv": jax.eval_shape(lambda: _kv_cache(workload)),
        "tokens": np.zeros((rows, engine.prefill_tile), np.int32),
        "tiles": _tiles(rows, -(-engine.max_model_len // engine.kv_block)),
        "samples": np.bool_(False),
        "sampling": _sampling(rows, engine.max_rows, MAX_STOPS + len(model.eos_token_ids)),
        "ensembles": EnsembleBatch.pack((), rows) if ensembles else None,
        "pools": jax.eval_shape(
            lambda: AdapterPool.create(model, pool_capacities(engine), jnp.dtype(engine.dtype)).arrays
        ),
        "work": work_list((), rows, engine.work_items, {}),
    }
    if kind == "decode":
        del operands["tokens"], operands["samples"]
    else:
        del operands["ensembles"]

    def function(parameters: tuple[Any, ...], *others: Any) -> Any:
        return program(Parameters(**dict(zip(FIELDS, parameters, strict=True))), *others)

    function.__name__ = kind
    donated = tuple(list(operands).index(name) for name in DONATED)
    return Step(function, {name: jax.tree.map(_shape, operand) for name, operand in operands.items()}, donated)


def without_adapters(ops: Ops) -> Ops:
    """The same backend with the adapters' part left out: what a base model alone would run."""
    return replace(ops, lora=lambda x, y, *_: y, embedding_lora=lambda tokens, y, *_: y)


def slicing_pools(ops: Ops) -> Ops:
    """A mistake to be noticed: each layer's pages are cut out of the pool before the kernel reads them."""

    def lora(x: Array, y: Array, pools: Pools, layer: LayerIndex, work: WorkList, modules: tuple[int, ...]) -> Array:
        sliced = tuple((a[layer][None], b[layer][None]) for a, b in pools)
        return ops.lora(x, y, sliced, np.asarray(0, np.int32), work, modules)

    return replace(ops, lora=lora)


def _parameters(model: ModelConfig, dtype: Dtype) -> tuple[Any, ...]:
    def of(values: dict[str, Any]) -> tuple[Any, ...]:
        transformer = Transformer(model)
        with_values(transformer, values)
        parameters = Parameters.of(transformer)
        return tuple(getattr(parameters, name) for name in FIELDS)

    values = {name: specification(weight, dtype) for name, weight in weight_table(model).items()}
    parameters: tuple[Any, ...] = jax.eval_shape(of, values)
    return parameters


def _kv_cache(workload: Workload) -> KvCache:
    model, engine = workload.model, workload.engine
    return KvCache.create(
        layers=model.num_layers,
        blocks=engine.kv_blocks,
        heads=model.num_kv_heads,
        block_tokens=engine.kv_block,
        width=model.head_dim,
        dtype=engine.kv_dtype or engine.dtype,
    )


def _tiles(rows: int, table_width: int) -> TileBatch:
    nothing = np.zeros(rows, np.int32)
    return TileBatch(nothing, nothing, nothing, np.zeros((rows, table_width), np.int32))


def _sampling(rows: int, max_rows: int, max_forbidden: int) -> SamplingBatch:
    return SamplingBatch.pack([None] * rows, [0] * rows, [0] * rows, scratch=max_rows, max_forbidden=max_forbidden)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
