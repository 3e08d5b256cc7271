"""LoRA's Triton kernels: their arithmetic, what they refuse, and that they lower for CUDA."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array, ShapeDtypeStruct
from jax._src.interpreters import mlir
from jax.stages import Lowered
from jaxlib.mlir import ir
from jaxlib.triton import dialect

from pallas_kernels.lora.api import Lora, WorkList
from pallas_kernels.lora.config import LoraConfig, Pass, lora_config
from pallas_kernels.lora.pallas_triton import embedding_lora, lora
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.pallas_kernels.rank_pages import BROKEN, PAGES, Runs, broken_runs, expected, operands, parted, work_list
from tests.pallas_kernels.test_lora import add, embedding_kernel, kernel, kernel_in_place

CAPACITY = 64
LENGTHS = (0, 1, 2, 4, 5, 16, 17, 21)
"""Items of a tile, about the widths of the passes and beyond the widest."""
ERRORS = {"float32": 1e-5, "bfloat16": 1e-2}
"""Against the largest number of what is due."""


each_form = pytest.mark.parametrize("lora", [kernel, kernel_in_place], ids=["apart", "in place"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Of one call; by default one 16-bit row of an input that no block divides."""

    tiles: int = 3
    tokens: int = 1
    width: int = 600
    widths: tuple[int, ...] = (40,)
    dtype: str = "bfloat16"
    layers: int = 2
    pages: int = PAGES


def runs_of(lengths: tuple[int, ...], seed: int) -> Runs:
    generator = np.random.default_rng(seed)
    return [
        [(int(generator.integers(PAGES)), float(np.float32(generator.uniform(-1, 1)))) for _ in range(length)]
        for length in lengths
    ]


def error(got: Array, due: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.abs(np.array(got, np.float64) - due).max() / np.abs(due).max())


@pytest.mark.parametrize(
    ("lora", "shape"),
    [
        (kernel, Shape()),
        (kernel_in_place, Shape(dtype="float32", width=24, widths=(600,))),
        (kernel, Shape(tokens=32, dtype="float32", widths=(24, 40))),
        (kernel_in_place, Shape(tokens=128, width=72)),
    ],
    ids=["apart", "in place and narrow", "apart in prefill", "in place in prefill"],
)
@settings(deadline=None, max_examples=8)
@given(lengths=st.tuples(*[st.sampled_from(LENGTHS)] * 3), seed=st.integers(0, 99))
def test_ranks_mix_from_none_to_more_than_a_pass_holds(
    lora: Lora, shape: Shape, lengths: tuple[int, ...], seed: int
) -> None:
    runs = [runs_of(lengths[module:] + lengths[:module], seed + module) for module in range(len(shape.widths))]
    x, y, pools = operands(3, shape.tokens, seed, shape.width, shape.widths, shape.dtype)
    added = add(lora, (x, y, pools), 1, work_list(*runs, capacity=CAPACITY), tuple(range(len(runs))))
    due = [expected(run, 1, x, part, *pool) for run, part, pool in zip(runs, parted(y, pools), pools, strict=True)]
    assert error(added, np.concatenate(due, axis=2)) < ERRORS[shape.dtype]


@each_form
@pytest.mark.parametrize("length", LENGTHS[1:])
def test_the_last_of_a_tiles_items_counts(lora: Lora, length: int) -> None:
    runs, shape = runs_of((0, length, 0), seed=1), Shape(dtype="float32", width=24)
    x, y, pools = operands(3, 1, 1, shape.width, shape.widths, shape.dtype)
    short = [run[:-1] for run in runs]
    added = add(lora, (x, y, pools), 1, work_list(short, capacity=CAPACITY))
    assert error(added, expected(short, 1, x, y, *pools[0])) < ERRORS["float32"]
    assert error(added, expected(runs, 1, x, y, *pools[0])) > 1e-3


@each_form
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_list_reads_nothing_outside(lora: Lora, kind: str) -> None:
    work, runs = broken_runs(kind)
    x, y, pools = operands(3, 1, seed=6)
    added = add(lora, (x, y, pools), 1, work)
    assert error(added, expected(runs, 1, x, y, *pools[0])) < ERRORS["float32"]


def test_a_token_outside_the_vocabulary_adds_nothing() -> None:
    _, y, ((a, b),) = operands(1, 4, seed=7, width=50)
    tokens = jnp.array([[3, 50, -1, 49]], jnp.int32)
    added = embedding_kernel(tokens, y, (a[:1], b[:1]), work_list([[(1, 1.0), (2, -1.0)]]), 0)
    assert [bool((added[0, n] == y[0, n]).all()) for n in range(4)] == [False, True, True, False]


def shapes(shape: Shape, items: int = 512) -> tuple[Any, ...]:
    """`lora`'s operands, of which nothing is allocated."""

    def array(*sizes: int, dtype: str = shape.dtype) -> ShapeDtypeStruct:
        return ShapeDtypeStruct(sizes, dtype)

    pool = (shape.layers, shape.pages, 16)
    modules = len(shape.widths)
    work: Any = [array(modules, shape.tiles + 1, dtype="int32")]
    work += [array(modules, items, dtype=dtype) for dtype in ("int32", "int32", "float32")]
    return (
        array(shape.tiles, shape.tokens, shape.width),
        array(shape.tiles, shape.tokens, sum(shape.widths)),
        tuple((array(*pool, shape.width), array(*pool, width)) for width in shape.widths),
        WorkList(*work),
    )


def lowered(shape: Shape, layers: tuple[int, ...] = (1,)) -> Lowered:
    def all_layers(x: Array, y: Array, pools: Any, work: WorkList) -> Array:
        for layer in layers:
            y = lora(x, y, pools, np.asarray(layer, np.int32), work, tuple(range(len(pools))))
        return y

    return lower_cuda(all_layers, *shapes(shape))


def kernels(program: Lowered) -> list[str]:
    """The Triton code of each launch."""
    codes: list[str] = []

    def visit(op: Any) -> Any:
        if op.name == "stablehlo.custom_call":
            code = ir.StringAttr(ir.DictAttr(op.attributes["mhlo.backend_config"])["ir"]).value_bytes
            with mlir.JaxIrContext() as context:
                context.append_dialect_registry(mlir.upstream_dialects)
                dialect.register_dialect(context)
                context.load_all_available_dialects()
                codes.append(str(ir.Module.parse(code)))
        return ir.WalkResult.ADVANCE

    module: Any = program.compiler_ir("stablehlo")
    module.operation.walk(visit)
    return codes


SERVED = {
    **{f"{tokens} rows, {dtype}": Shape(tokens=tokens, dtype=dtype) for tokens in (1, 64) for dtype in ERRORS},
    **{f"{tokens} rows": Shape(tokens=tokens) for tokens in (16, 32, 128)},
    "q, k and v of 8B": Shape(tiles=64, width=4096, widths=(4096, 1024, 1024), layers=32, pages=400),
    "down of 8B, prefill": Shape(tiles=32, tokens=64, width=14336, widths=(4096,), layers=32, pages=400),
    "head of 128k tokens": Shape(tiles=64, width=4096, widths=(128256,), pages=4096),
    "gate and up of 8B": Shape(tiles=64, width=4096, widths=(14336, 14336), layers=32, pages=400),
    "q, k and v of 135M": Shape(tiles=16, width=576, widths=(576, 192, 192), dtype="float32"),
}


IN_PLACE = {"down of 8B, prefill", "head of 128k tokens", "gate and up of 8B"}


@pytest.mark.parametrize("case", SERVED)
def test_a_group_of_modules_is_one_launch_in_place_or_apart(case: str) -> None:
    program = lowered(SERVED[case])
    assert triton_kernels(program) == {"lora_kernel": 1}
    place = 5 + 2 * len(SERVED[case].widths)
    in_place = f"output_operand_alias<output_tuple_indices = [], operand_index = {place}" in program.as_text()
    assert in_place is (case in IN_PLACE)


def test_layers_share_their_kernel() -> None:
    one, other = kernels(lowered(Shape(), layers=(0, 1)))
    assert one == other
    assert one != kernels(lowered(Shape(width=608)))[0]


@pytest.mark.parametrize(("pages", "wide"), [(8, False), (12000, True)])
def test_offsets_have_64_bits_where_a_pool_needs_them(pages: int, wide: bool) -> None:
    """12000 pages of 32 layers and 4096 columns are 50 GB."""
    (code,) = kernels(lowered(Shape(width=4096, widths=(4096,), layers=32, pages=pages)))
    assert ("xi64>" in code) is wide


def test_embedding_lora_is_one_launch() -> None:
    tokens = ShapeDtypeStruct((32, 64), "int32")
    _, y, pools, work = shapes(Shape(tiles=32, tokens=64, width=49152, widths=(576,), layers=1))
    program = lower_cuda(functools.partial(embedding_lora, module=0), tokens, y, *pools, work)
    assert triton_kernels(program) == {"embedding_lora_kernel": 1}


def test_float32_is_not_rounded_to_tf32() -> None:
    (code,) = kernels(lowered(Shape(dtype="float32")))
    assert "tt.dot" in code
    assert "inputPrecision" not in code.replace("inputPrecision = ieee", "")


def changed(**of: Any) -> dict[str, Any]:
    """The operands of a call that is served, but for what is named."""
    x, y, pools, work = shapes(Shape(widths=(40, 16)))
    fields = {"x": x, "y": y, "pools": pools, "layer": np.asarray(1, np.int32), "work": work, "modules": (0, 1)}
    return {**fields, **of}


def array(*sizes: int, dtype: str = "bfloat16") -> ShapeDtypeStruct:
    return ShapeDtypeStruct(sizes, dtype)


GOOD = changed()
A, B = GOOD["pools"][0]
BYTES = dict(zip(("x", "y", "pools"), shapes(Shape(widths=(40, 16), dtype="int8")), strict=False))
REFUSED = {
    "tokens of a tile: 24; must be a power of two": changed(x=array(3, 24, 600), y=array(3, 24, 56)),
    "dtypes bfloat16, float32: x, y and pools must have one": changed(x=array(3, 1, 600, dtype="float32")),
    "dtypes int8: .* must have one, float32 or bfloat16": changed(**BYTES),
    "ranks of a page, what is served differ: 8 and 16": changed(
        pools=((array(2, 7, 8, 600), array(2, 7, 8, 40)), GOOD["pools"][1])
    ),
    r"of A and B differ: \(2, 7, 16\) and \(2, 6, 16\)": changed(pools=((A, array(2, 6, 16, 40)), GOOD["pools"][1])),
    "layers of a pool, of its model differ: 3 and 2": changed(
        pools=(GOOD["pools"][0], (array(3, 7, 16, 600), array(3, 7, 16, 16)))
    ),
    "the columns of x, of A differ: 576 and 600": changed(x=array(3, 1, 576)),
    "the columns of y, of all B together differ: 64 and 56": changed(y=array(3, 1, 64)),
    r"\(tiles, tokens\) of x and y differ: \(3, 1\) and \(4, 1\)": changed(y=array(4, 1, 56)),
    "modules, pools differ: 1 and 2": changed(modules=(0,)),
    r"modules \(0, 2\): the list has 2": changed(modules=(0, 2)),
    "layer 2: the pools have 2": changed(layer=np.asarray(2, np.int32)),
    "starts, of what is computed differ: .* 5.* and .* 4": changed(
        work=GOOD["work"]._replace(start=array(2, 5, dtype="int32"))
    ),
    "the dtype of page, what is served differ: int16": changed(
        work=GOOD["work"]._replace(page=array(2, 512, dtype="int16"))
    ),
    "the shapes of scale and tile differ": changed(work=GOOD["work"]._replace(scale=array(2, 8, dtype="float32"))),
}


def call(**of: Any) -> None:
    static = {name: of.pop(name) for name in ("layer", "modules")}
    jax.eval_shape(lambda fields: lora(**fields, **static), of)


def test_what_is_served_is_not_refused() -> None:
    call(**changed())


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_named(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        call(**REFUSED[reason])


@pytest.mark.parametrize(("pages", "block", "sums"), [(1, 8, 1), (1, 256, 32), (1, 96, 1), (3, 64, 1)])
def test_products_that_triton_gets_wrong_are_refused(pages: int, block: int, sums: int) -> None:
    with pytest.raises(ValueError, match="must be a power of two, 16 or more"):
        Pass(pages=pages, block=block, sums=sums)


def test_a_span_is_cut_at_blocks() -> None:
    config = lora_config(64, 1, 4096, (4096,), 2)
    with pytest.raises(ValueError, match=r"columns of a program: 128; must be a power of two, 512 or more"):
        dataclasses.replace(config, span=128)


def programs(config: LoraConfig, tiles: int, tokens: int, widths: tuple[int, ...]) -> int:
    return tiles * tokens // config.rows * sum(-(-width // config.span) for width in widths)


@given(
    tiles=st.sampled_from([1, 4, 16, 64, 300]),
    tokens=st.sampled_from([1, 16, 32, 64, 128]),
    width=st.sampled_from([24, 576, 4096, 14336]),
    widths=st.lists(st.sampled_from([40, 192, 576, 4096, 14336, 128256]), min_size=1, max_size=3).map(tuple),
    itemsize=st.sampled_from([2, 4]),
)
def test_outputs_are_split_where_that_costs_little_or_the_chip_would_be_idle(
    tiles: int, tokens: int, width: int, widths: tuple[int, ...], itemsize: int
) -> None:
    config = lora_config(tiles, tokens, width, widths, itemsize)
    undivided = config.span >= max(widths)
    least = config.span == max(step.block for step in config.passes)
    busy = programs(config, tiles, tokens, widths) >= 64
    assert undivided or least or config.span <= 8 * width
    assert busy or least
