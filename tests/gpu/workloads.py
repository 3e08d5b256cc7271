"""What is compiled for a GPU without one: models of real sizes, with the settings of a server on an 80 GB card."""

from dataclasses import dataclass, replace

from openlora_jax.adapters.modules import PAGE_RANK
from openlora_jax.bench.kernels.quantized_cases import FORMATS
from openlora_jax.bench.models import LLAMA_8B, SMOLLM2_135M
from openlora_jax.config import EngineConfig
from openlora_jax.model.config import ModelConfig

ROWS = 64
RANKS = (8, 16, 24, 32, 40, 48, 56, 64)
"""The ranks of the resident adapters, which number as many as there are rows: eight of each."""

PAGES = [-(-rank // PAGE_RANK) for rank in RANKS]

PROJECTION_GROUPS = 4
"""Of a layer's modules that share an input: q/k/v, o, gate/up, down."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What fixes every shape of a step."""

    model: ModelConfig
    engine: EngineConfig

    def at_depth(self, layers: int) -> "Workload":
        return replace(self, model=replace(self.model, num_layers=layers))


ENGINE = EngineConfig(
    backend="cuda",
    dtype="bfloat16",
    max_rows=ROWS,
    row_buckets=(ROWS,),
    prefill_tile=64,
    prefill_chunk=2048,
    chunk_buckets=(2048,),
    max_model_len=4096,
    kv_blocks=1025,
    pool_pages=1 + ROWS // len(RANKS) * sum(PAGES),
    work_items=ROWS * max(PAGES),
)

FEW_ROWS = {"llama-3.1-8b 8 rows": Workload(LLAMA_8B, ENGINE.model_copy(update={"max_rows": 8, "row_buckets": (8,)}))}
"""The smallest bucket of the shipped configurations, where attention and LoRA are cut finer to fill the chip."""

INT4_PAGES = {
    "llama-3.1-8b int4 pages": Workload(LLAMA_8B, ENGINE.model_copy(update={"int4_pages": 4 * ENGINE.pool_pages}))
}
"""Four times as many as there are plain pages: adapters in as much memory again."""

VAST = Workload(LLAMA_8B, ENGINE.model_copy(update={"pool_pages": 1050, "wide_pool_pages": 1050}))
"""With pools past 4 GiB, but for B of K and V: so one kernel has offsets of both kinds."""

WORKLOADS = {
    "llama-3.1-8b": Workload(LLAMA_8B, ENGINE),
    "smollm2-135m": Workload(SMOLLM2_135M, ENGINE),
}

SAVED = {"llama-3.1-8b saved": Workload(LLAMA_8B, ENGINE.model_copy(update={"saved_pages": 5}))}
"""With room for adapters' own heads and embeddings, past 4 GiB of each."""

QUANTISED = {f"llama-3.1-8b {how}": Workload(replace(LLAMA_8B, quantization=how), ENGINE) for how in FORMATS}
KV_INT8 = {"llama-3.1-8b kv int8": Workload(LLAMA_8B, ENGINE.model_copy(update={"kv_dtype": "int8"}))}
KV_INT8_VAST = {
    "llama-3.1-8b kv int8 past 4 GiB": Workload(
        LLAMA_8B, ENGINE.model_copy(update={"kv_dtype": "int8", "kv_blocks": 40_000})
    )
}
"""With keys past 4 GiB in two layers."""
