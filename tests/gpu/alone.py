"""`python -m tests.gpu.alone h100`: compiles kernels that only some models or adapters need, for an absent GPU."""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from openlora_jax.adapters.modules import PAGE_RANK, module_shapes
from openlora_jax.bench.kernels.quantized_cases import FORMATS
from openlora_jax.bench.models import LLAMA_8B
from openlora_jax.engine.work import work_list
from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.matrix import described
from pallas_kernels.int4_lora.api import Int4Pages
from pallas_kernels.lora.api import WorkList
from pallas_kernels.quantized_linear.config import MOST_ROWS
from pallas_kernels.registry import implementations
from tests.gpu.cases import KINDS, Kind
from tests.gpu.deviceless import compile_for
from tests.gpu.facts import kernels
from tests.gpu.lowering import triton_kernels
from tests.gpu.steps import Step, step
from tests.gpu.workloads import ENGINE, KV_INT8, ROWS

FIRST = np.asarray(0, np.int32)
ALL_ROWS = (1, ROWS, MOST_ROWS)
"""Of x, by a matrix of few bits: a lone sequence, a full batch, and the most that the kernel has."""
MATRICES = (
    (LLAMA_8B.hidden_size, LLAMA_8B.hidden_size),
    (2 * LLAMA_8B.intermediate_size, LLAMA_8B.hidden_size),
    (LLAMA_8B.hidden_size, LLAMA_8B.intermediate_size),
)
"""Small, wide and long."""
GROUPS = (("q_proj", "k_proj", "v_proj"), ("down_proj",))
"""Modules that gains and biases are for."""
INT4_GROUPS = (("o_proj",), ("down_proj",))
"""Modules that pages in 4 bits are for. Both steps have all groups of them in `test_int4_pages`."""
HEADS = 5
"""Of adapters' own: more than 4 GiB."""


def main() -> None:
    (chip,) = sys.argv[1:]
    programs = {f"quantized_linear {how}": products(how) for how in FORMATS}
    programs |= {f"affine {kind}": changes(kind) for kind in KINDS}
    programs |= {f"int4_lora {kind}": additions(kind) for kind in KINDS}
    programs |= {"saved_linear": heads()}
    programs |= {f"paged_attention int8 {kind}": attention(kind) for kind in KINDS}
    found = {}
    for name, program in programs.items():
        with tempfile.TemporaryDirectory() as dump:
            lowered, _ = compile_for(chip, program, Path(dump))
            (found[name],) = kernels(Path(dump), triton_kernels(lowered)).values()
    json.dump({name: dataclasses.asdict(kernel) for name, kernel in found.items()}, sys.stdout)


def products(how: Quantization) -> Step:
    """Each matrix by inputs of each number of rows."""
    linear = implementations("cuda").quantized_linear

    def multiply(inputs: Any, matrices: Any) -> Any:
        return [linear(x, (matrix,), FIRST) for mine, matrix in zip(inputs, matrices, strict=True) for x in mine]

    inputs = [[_array(rows, 1, columns) for rows in ALL_ROWS] for _, columns in MATRICES]
    return Step(multiply, {"inputs": inputs, "matrices": [described(shape, how) for shape in MATRICES]}, donated=())


def changes(kind: Kind) -> Step:
    """What each group computes, changed by a page of every row or tile."""
    affine = implementations("cuda").affine
    tiles, tokens = _tiles(kind)
    widths = [[module_shapes(LLAMA_8B)[module].d_out for module in group] for group in GROUPS]

    def change(outputs: Any, pools: Any, work: Any) -> Any:
        pairs = zip(outputs, pools, strict=True)
        return [affine(y, tuple(mine), FIRST, work, tuple(range(len(mine)))) for y, mine in pairs]

    operands = {
        "outputs": [_array(tiles, tokens, sum(each)) for each in widths],
        "pools": [[_array(LLAMA_8B.num_layers, 1 + ROWS, 2, width) for width in each] for each in widths],
        "work": _work(tiles, ROWS),
    }
    return Step(change, operands, donated=(0,))


def additions(kind: Kind) -> Step:
    """What each group computes, with pages in 4 bits added."""
    int4_lora = implementations("cuda").int4_lora
    tiles, tokens = _tiles(kind)
    shapes = [[module_shapes(LLAMA_8B)[module] for module in group] for group in INT4_GROUPS]

    def add(inputs: Any, outputs: Any, pools: Any, work: Any) -> Any:
        operands = zip(inputs, outputs, pools, strict=True)
        return [int4_lora(x, y, tuple(mine), FIRST, work, tuple(range(len(mine)))) for x, y, mine in operands]

    def pages(width: int) -> tuple[Any, Any]:
        """Words and scales of A or B."""
        dims = (LLAMA_8B.num_layers, 1 + ENGINE.work_items, PAGE_RANK)
        return _array(*dims, width // 4, dtype="uint16"), _array(*dims, width // 32, dtype="float16")

    operands = {
        "inputs": [_array(tiles, tokens, each[0].d_in) for each in shapes],
        "outputs": [_array(tiles, tokens, sum(shape.d_out for shape in each)) for each in shapes],
        "pools": [[Int4Pages(*pages(shape.d_in), *pages(shape.d_out)) for shape in each] for each in shapes],
        "work": _work(tiles, ENGINE.work_items),
    }
    return Step(add, operands, donated=(1,))


def heads() -> Step:
    """Logits of one row and of a full batch, by heads of adapters' own."""
    saved_linear = implementations("cuda").saved_linear

    def replace(inputs: Any, outputs: Any, pool: Any, work: Any) -> Any:
        operands = zip(inputs, outputs, work, strict=True)
        return [saved_linear(x, y, pool, mine, 0) for x, y, mine in operands]

    operands = {
        "inputs": [_array(rows, 1, LLAMA_8B.hidden_size) for rows in (1, ROWS)],
        "outputs": [_array(rows, 1, LLAMA_8B.vocab_size) for rows in (1, ROWS)],
        "pool": _array(1, HEADS, LLAMA_8B.vocab_size, LLAMA_8B.hidden_size),
        "work": [_work(rows, ROWS) for rows in (1, ROWS)],
    }
    return Step(replace, operands, donated=(1,))


def attention(kind: Kind) -> Step:
    """Over keys and values in int8, of a single layer."""
    ops = implementations("cuda")
    (workload,) = KV_INT8.values()
    operands = step(kind, workload.at_depth(1), ops).operands
    tiles, tokens = _tiles(kind)

    def attend(q: Any, kv: Any, tiles: Any) -> Any:
        return ops.paged_attention(q, kv, FIRST, tiles.table, tiles.start, tiles.length)

    q = _array(tiles, tokens, LLAMA_8B.num_heads, LLAMA_8B.head_dim)
    return Step(attend, {"q": q, "kv": operands["kv"], "tiles": operands["tiles"]}, donated=())


def _tiles(kind: Kind) -> tuple[int, int]:
    """How many there are in a step, and the tokens of each."""
    return (ROWS, 1) if kind == "decode" else (ENGINE.prefill_chunk // ENGINE.prefill_tile, ENGINE.prefill_tile)


def _work(tiles: int, items: int) -> WorkList:
    work: WorkList = jax.eval_shape(lambda: work_list((), tiles, items, {}))
    return work


def _array(*dims: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


if __name__ == "__main__":
    main()
