"""`python -m tests.gpu.vast h100`: compiles LoRA alone, on pools past 4 GiB, for a GPU that is not here."""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from openlora_jax.adapters.modules import module_shapes
from openlora_jax.model.forward import AdapterBatch
from pallas_kernels.registry import Ops, implementations
from tests.gpu.cases import MOSAIC_CHIPS, Kind
from tests.gpu.deviceless import compile_for
from tests.gpu.facts import kernels, mosaic_kernels
from tests.gpu.lowering import triton_kernels
from tests.gpu.steps import Step, step
from tests.gpu.workloads import VAST

GROUPS = (("q_proj", "k_proj", "v_proj"), ("down_proj",))


def main() -> None:
    (chip,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as dump:
        os.environ["MOSAIC_GPU_DUMP_TO"] = dump
        lowered, _ = compile_for(chip, program(chip), Path(dump))
        found = kernels(Path(dump), triton_kernels(lowered)) | mosaic_kernels(Path(dump))
        json.dump({name: dataclasses.asdict(kernel) for name, kernel in found.items()}, sys.stdout)


def program(chip: str) -> Step:
    """What adapters add in decode and in prefill by every kernel that the chip has, and nothing of the base."""
    parts = [_part("decode", implementations("cuda")), _part("prefill", implementations("cuda"))]
    if chip in MOSAIC_CHIPS:
        parts.append(_part("decode", implementations("mosaic")))

    def lora(pools: Any, *operands: Any) -> Any:
        return [add(pools, *of) for (add, _), of in zip(parts, operands, strict=True)]

    pools = step("decode", VAST, implementations("cuda")).operands["pools"]
    used = ("embed_tokens", *(module for group in GROUPS for module in group))
    operands = {str(nth): shapes for nth, (_, shapes) in enumerate(parts)}
    return Step(lora, {"pools": {module: pools[module] for module in used}, **operands}, donated=())


def _part(kind: Kind, ops: Ops) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The embedding and some groups of one layer; and the shapes of what they take beside the pools."""
    work, shapes = step(kind, VAST, ops).operands["work"], module_shapes(VAST.model)
    tiles = (work.start.shape[1] - 1, 1 if kind == "decode" else VAST.engine.prefill_tile)

    def array(width: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*tiles, width), VAST.engine.dtype)

    inputs = [array(shapes[group[0]].d_in) for group in GROUPS]
    outputs = [array(sum(shapes[module].d_out for module in group)) for group in GROUPS]

    def add(pools: Any, work: Any, tokens: Any, embedded: Any, inputs: Any, outputs: Any) -> Any:
        adapters, layer = AdapterBatch(pools, work), np.asarray(1, np.int32)
        added = [adapters.add(ops, group, x, y, layer) for group, x, y in zip(GROUPS, inputs, outputs, strict=True)]
        return adapters.add_embedding(ops, tokens, embedded), added

    return add, (work, jax.ShapeDtypeStruct(tiles, "int32"), array(VAST.model.hidden_size), inputs, outputs)


if __name__ == "__main__":
    main()
