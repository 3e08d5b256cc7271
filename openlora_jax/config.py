"""Deployment settings: one YAML file, checked once, frozen after."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from openlora_jax.errors import InvalidConfig

BackendName = Literal["auto", "cpu", "cuda", "mosaic", "tpu", "interpret"]
Dtype = Literal["float32", "bfloat16"]
"""Of weights and adapters, on disk and on the device."""
Positive = Annotated[int, Field(ge=1)]
PositiveSeconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Config = TypeVar("Config", bound="EngineConfig")  # not Self, which beartype cannot check


class EngineConfig(BaseModel):
    """Settings of one engine. Sizes are in tokens, rows, blocks or pages as the name says.

    Attributes:
        backend: which implementation of each operation to use; `auto` picks by device.
        dtype: of weights and pool, and of keys and values unless `kv_dtype` says otherwise.
        kv_dtype: `int8` for keys and values in 8 bits, with a scale for each position and head: nearly four times the
            blocks in the memory of float32, nearly twice those of bfloat16. None is `dtype`.
        max_rows: sequences decoded together, at most.
        row_buckets: row counts that a decode program is compiled for, ascending to `max_rows`.
        prefill_tile: consecutive tokens of one sequence that a prefill computes together: 16 suits a CPU, 64 the tensor
            cores of a GPU. Chunks and KV blocks are whole numbers of tiles.
        prefill_chunk: prompt tokens of one step, at most.
        chunk_buckets: token counts that a prefill program is compiled for, ascending to `prefill_chunk`.
        max_model_len: prompt and output of one sequence, at most.
        kv_block: tokens of a KV block.
        device_memory: bytes that the engine may hold on its device, such as `70GB`; None is all that JAX may hold of a
            GPU or TPU, and on a CPU what the default counts of blocks and pages take.
        kv_blocks: blocks of the KV pool; one more than what is usable, block 0 is scratch. The memory plan decides
            where this or one of the following two is not set.
        pool_pages: rank pages of each linear module; page 0 is all zeros.
        wide_pool_pages: the same for `embed_tokens` and `lm_head`, whose pages are as wide as the vocabulary. Not set,
            they have page 0 alone until an adapter that needs more is registered and the engine started again.
        vector_pages: the same for gains and biases of every module. Not set, there are none until an adapter with DoRA
            or `lora_bias` is registered and the engine started again; without, no step has any work for them.
        int4_pages: rank pages in 4 bits of each linear module, for adapters that are stored so. Not set, there are some
            where such an adapter is registered; with 1, the zero page alone, those become plain pages.
        saved_pages: matrices that adapters save of their own for `embed_tokens` or `lm_head`, whichever the registered
            ones have, and for both where none has any: each takes as much as the base's. Not set, there are none until
            an adapter with one is registered and the engine started again.
        work_items: (page, scale) items of one module in one step, at most.
        host_cache_bytes: adapters kept in host memory, in bytes.
        loader_threads: adapters read from disk at the same time.
        load_timeout: seconds after which a read that has not ended fails those who wait for it.
        min_residency: seconds that an adapter which others wait for keeps its place on the device, unless a higher
            class or an overdue request needs it: adapters that do not fit together take turns no more often.
        prefetch: while there is nothing else to do, what was asked for most is brought into memory and pages that are
            free, at a start too if `openlora serve` kept what the last one saw.
        remote: URL of a store, for adapters that are not in the local one: a path, or `s3://` and others that fsspec
            has a file system for. What is asked for is fetched into the local store's directory.
        disk_cache_bytes: what was fetched takes on the disk, at most, such as `50GB`.
        max_queue: requests waiting, at most; further ones are refused.
        policy: who goes first: `fair`, by class, tenant and adapter, or `fcfs`, by arrival. See `engine/policy.py`.
        max_wait: seconds that no request waits while runs end within half of it, whatever its class; for `fair`.
        prefix_cache: KV blocks of prompts are kept, while there is room, for requests that begin alike; not with
            `deterministic`.
        deterministic: results bit-equal whatever else is in the batch, at the price of one row bucket.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: BackendName = "auto"
    dtype: Dtype = "float32"
    kv_dtype: Literal["int8"] | None = None
    max_rows: Positive = 16
    row_buckets: tuple[Positive, ...] = Field(default_factory=lambda others: _up_to(others["max_rows"], 1, 4))
    prefill_tile: Literal[16, 32, 64, 128] = 16
    prefill_chunk: Positive = 256
    chunk_buckets: tuple[Positive, ...] = Field(
        default_factory=lambda others: _up_to(others["prefill_chunk"], max(64, others["prefill_tile"]))
    )
    max_model_len: Positive = 2048
    kv_block: Positive = Field(default_factory=lambda others: max(32, others["prefill_tile"]))
    device_memory: Annotated[ByteSize, Field(ge=1)] | None = None
    kv_blocks: Positive = 513
    pool_pages: Positive = 33
    wide_pool_pages: Positive = 5
    vector_pages: Positive | None = None
    int4_pages: Positive | None = None
    saved_pages: Positive | None = None
    work_items: Positive = 1024
    host_cache_bytes: Positive = 2 * 1024**3
    loader_threads: Positive = 2
    load_timeout: PositiveSeconds = 30.0
    min_residency: Seconds = 0.5
    prefetch: bool = True
    remote: str | None = None
    disk_cache_bytes: Annotated[ByteSize, Field(ge=1)] = ByteSize(16 * 1024**3)
    max_queue: Positive = 1024
    policy: Literal["fair", "fcfs"] = "fair"
    max_wait: PositiveSeconds = 120.0
    prefix_cache: bool = True
    deterministic: bool = False

    def model_post_init(self, context: object) -> None:
        """Holds the programs against the maxima, and sizes against the tile; raises InvalidConfig."""
        for key, buckets, maximum in (
            ("row_buckets", self.row_buckets, self.max_rows),
            ("chunk_buckets", self.chunk_buckets, self.prefill_chunk),
        ):
            if buckets != _up_to(maximum, *buckets):
                raise InvalidConfig(key, f"{list(buckets)} must ascend and end with {maximum}")
        for key, sizes in (
            ("prefill_chunk", (self.prefill_chunk,)),
            ("chunk_buckets", self.chunk_buckets),
            ("kv_block", (self.kv_block,)),
        ):
            if uneven := [size for size in sizes if size % self.prefill_tile]:
                raise InvalidConfig(key, f"{uneven[0]} is not a multiple of prefill_tile, {self.prefill_tile}")

    @classmethod
    def load(cls: type[Config], name_or_path: str | None) -> Config:
        """Reads `configs/NAME.yaml` of this package, or a YAML file at a path; None for the defaults.

        Raises:
            InvalidConfig: no such name or file, no YAML, or a value that cannot work.
        """
        if name_or_path is None:
            return cls()
        try:
            settings = yaml.safe_load(_read(name_or_path)) or {}
        except OSError as error:
            raise InvalidConfig(name_or_path, f"cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidConfig(name_or_path, f"is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(settings, dict):
            raise InvalidConfig(name_or_path, "must hold names and values, such as `max_rows: 16`")
        return cls.of(settings)

    @classmethod
    def of(cls: type[Config], settings: Mapping[str, Any]) -> Config:
        """These settings, and the defaults of all others.

        Raises:
            InvalidConfig: no such setting, or a value that cannot work.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise InvalidConfig(".".join(map(str, first["loc"])), first["msg"]) from error

    def using(self: Config, backend: BackendName | None) -> Config:
        """These settings on a backend that was asked for beside them; None keeps theirs."""
        return self if backend is None else self.model_copy(update={"backend": backend})


def _up_to(maximum: int, *sizes: int) -> tuple[int, ...]:
    """The sizes below a maximum, ascending, and the maximum."""
    return (*sorted({size for size in sizes if size < maximum}), maximum)


def _read(name_or_path: str) -> str:
    shipped = resources.files("configs") / f"{name_or_path}.yaml"
    if "/" not in name_or_path and shipped.is_file():
        return shipped.read_text()
    return Path(name_or_path).read_text()
