"""Page writes on the device. One tiny base model; every array is random, so that a misplaced page shows."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from numpy.typing import NDArray

from openlora_jax.adapters.modules import MODULES, PAGE_RANK, VECTORS
from openlora_jax.adapters.pool import AdapterPool, _write_staged_page, pinned_memory
from openlora_jax.adapters.synthetic import synthetic_tensors
from tests.openlora_jax.adapters.poison import write_that_fails_when_it_runs, write_that_takes_the_pool_with_it
from tests.openlora_jax.tiny import MODEL

CONFIG = replace(
    MODEL,
    vocab_size=48,
    hidden_size=16,
    intermediate_size=40,
    num_layers=3,
    head_dim=4,
    max_position=64,
    bos_token_id=None,
    eos_token_ids=(0,),
)
CAPACITIES = dict.fromkeys(MODULES, 6)
Tensors = dict[str, NDArray[np.generic]]


EVERY_STAGING = pytest.mark.parametrize("pinned", [False, True], ids=["as read", "pinned"])


def make_pool(
    dtype: str = "float32", *, pinned: bool = False, capacities: Mapping[str, int] = CAPACITIES
) -> AdapterPool:
    """A pinned one does with a CPU, whose memories have the same names, what it does with a GPU."""
    pool = AdapterPool.create(CONFIG, capacities, jnp.dtype(dtype))
    staging = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host") if pinned else None
    return AdapterPool(pool._shapes, pool.arrays, staging)


def write(pool: AdapterPool, pages: dict[str, tuple[int, ...]], tensors: Tensors) -> None:
    pool.write(pages, pool.stage({module: len(ids) for module, ids in pages.items()}, tensors))


def make_adapter(seed: int, counts: dict[str, int], dtype: str = "float32") -> Tensors:
    parts = [synthetic_tensors(CONFIG, [module], PAGE_RANK * count, seed) for module, count in counts.items()]
    return {name: tensor.astype(jnp.dtype(dtype)) for part in parts for name, tensor in part.items()}


def snapshot(pool: AdapterPool) -> dict[str, tuple[NDArray[np.generic], ...]]:
    return {name: tuple(map(np.array, parts)) for name, parts in pool.arrays.items()}


def test_a_fresh_pool_is_zeros_of_the_module_shapes() -> None:
    pool = make_pool()
    assert tuple(pool.arrays) == MODULES
    assert pool.arrays["embed_tokens"][0].shape == (1, 6, 16, 48)
    assert pool.arrays["k_proj"][1].shape == (3, 6, 16, 8)
    assert pool.nbytes == sum(part.size for parts in pool.arrays.values() for part in parts) * 4
    assert not any(np.any(part) for parts in snapshot(pool).values() for part in parts)


@EVERY_STAGING
def test_vector_pages_are_written_beside_rank_pages(pinned: bool) -> None:
    pool = make_pool(pinned=pinned, capacities=dict.fromkeys((*MODULES, *VECTORS), 3))
    assert tuple(pool.arrays) == (*MODULES, *VECTORS)
    vectors = np.random.default_rng(0).normal(size=(3, 1, 2, 8)).astype(np.float32)
    tensors = make_adapter(1, {"k_proj": 1})
    write(pool, {"k_proj": (1,), "k_proj.vector": (2,)}, {**tensors, "k_proj.vector": vectors})
    (written,) = snapshot(pool)["k_proj.vector"]
    np.testing.assert_array_equal(written[:, 2], vectors[:, 0])
    assert not np.any(written[:, :2])
    np.testing.assert_array_equal(snapshot(pool)["k_proj"][1][:, 1], tensors["k_proj.B"][:, 0])


@pytest.mark.parametrize("page_write", [None, write_that_fails_when_it_runs, write_that_takes_the_pool_with_it])
def test_a_pool_is_as_a_fresh_one_after_a_reset_whatever_became_of_it(page_write: Any) -> None:
    pool, tensors = make_pool(), make_adapter(1, {"q_proj": 2, "up_proj": 1})
    fresh, zeros = snapshot(pool), {module: a.sharding for module, (a, *_) in pool.arrays.items()}
    pool._write = page_write or pool._write
    with suppress(RuntimeError):
        write(pool, {"q_proj": (1, 2), "up_proj": (3,)}, tensors)
        jax.block_until_ready(pool.arrays)
        assert page_write is None
    assert pool.lost == (page_write is not None)
    pool.reset()
    assert not pool.lost
    assert {module: a.sharding for module, (a, _) in pool.arrays.items()} == zeros
    jax.tree.map(np.testing.assert_array_equal, snapshot(pool), fresh)


@EVERY_STAGING
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("stored", "pool_dtype"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_a_write_puts_each_page_where_it_belongs_and_touches_no_other(
    pinned: bool, count: int, stored: str, pool_dtype: str
) -> None:
    counts = {"q_proj": count, "embed_tokens": count}
    tensors = make_adapter(1, counts, stored)
    pool = make_pool(pool_dtype, pinned=pinned)
    pages = {"q_proj": (4, 2, 5)[:count], "embed_tokens": (1, 3, 2)[:count]}
    write(pool, pages, tensors)
    for module, arrays in snapshot(pool).items():
        owned = list(pages.get(module, ()))
        others = [page for page in range(6) if page not in owned]
        for side, array in zip("AB", arrays, strict=True):
            assert not np.any(array[:, others])
            if owned:
                np.testing.assert_array_equal(
                    array[:, owned], tensors[f"{module}.{side}"].astype(jnp.dtype(pool_dtype))
                )


def test_a_former_owner_leaves_no_residue() -> None:
    fresh, used = make_pool(), make_pool()
    x = synthetic_tensors(CONFIG, ["q_proj"], 3, 1)  # the page's other 13 ranks are zeros, which must overwrite
    write(used, {"q_proj": (1,), "v_proj": (1, 2)}, make_adapter(2, {"q_proj": 1, "v_proj": 2}))
    for pool in (fresh, used):
        write(pool, {"q_proj": (1,)}, x)
    for left, right in zip(fresh.arrays["q_proj"], used.arrays["q_proj"], strict=True):
        assert np.array(left).tobytes() == np.array(right).tobytes()


@EVERY_STAGING
def test_no_write_compiles_after_the_start(caplog: pytest.LogCaptureFixture, pinned: bool) -> None:
    jax.clear_caches()
    pool = make_pool(pinned=pinned)
    with jax.log_compiles():
        pool.compile()
        assert "Compiling" in caplog.text
        caplog.clear()
        for dtype in ("float32", "bfloat16"):
            for count in (1, 2, 4):
                counts = dict.fromkeys(MODULES, count)
                tensors = make_adapter(count, counts, dtype)
                write(pool, dict.fromkeys(MODULES, tuple(range(1, count + 1))), tensors)
    assert "Compiling" not in caplog.text


@EVERY_STAGING
def test_a_write_is_in_place(pinned: bool) -> None:
    pool = make_pool(pinned=pinned)
    before = [side.unsafe_buffer_pointer() for side in pool.arrays["q_proj"]]
    write(pool, {"q_proj": (1, 2)}, make_adapter(1, {"q_proj": 2}))
    assert [side.unsafe_buffer_pointer() for side in pool.arrays["q_proj"]] == before


@EVERY_STAGING
def test_a_step_dispatched_before_a_write_reads_the_old_page(pinned: bool) -> None:
    pool = make_pool(pinned=pinned)
    tensors = make_adapter(1, {"q_proj": 1})
    write(pool, {"q_proj": (1,)}, tensors)
    old = jnp.sin(pool.arrays["q_proj"][0][:, 1])
    write(pool, {"q_proj": (1,)}, make_adapter(2, {"q_proj": 1}))
    np.testing.assert_allclose(old, np.sin(tensors["q_proj.A"][:, 0]), rtol=1e-5)


def test_staging_lays_each_page_out_in_one_piece() -> None:
    counts = {"q_proj": 2}
    tensors = make_adapter(1, counts)
    staged = make_pool().stage(counts, tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(np.stack(staged[name], axis=1), tensor)
        assert all(isinstance(page, np.ndarray) and page.flags.c_contiguous for page in staged[name])


def test_staging_for_a_device_with_memory_of_its_own_is_pinned() -> None:
    staged = make_pool(pinned=True).stage({"q_proj": 2}, make_adapter(1, {"q_proj": 2}))
    pages = [page for pages in staged.values() for page in pages]
    assert len(pages) == 4
    assert {cast(jax.Array, page).sharding.memory_kind for page in pages} == {"pinned_host"}


def test_a_cpu_has_its_pages_at_hand() -> None:
    (device, *_) = jax.devices()
    assert "pinned_host" in {memory.kind for memory in device.addressable_memories()}
    assert pinned_memory(device) is None


def test_a_gpu_copies_out_of_pinned_memory_by_itself() -> None:
    """As lowered for one: the pages come in pinned memory, the copy is in the program, and the pool is written over."""
    pool = make_pool(pinned=True)
    staged = pool.stage({"q_proj": 1}, make_adapter(1, {"q_proj": 1}))
    operands = pool.arrays["q_proj"], np.int32(1), (staged["q_proj.A"][0], staged["q_proj.B"][0])
    program = _write_staged_page.trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    assert program.count('mhlo.memory_kind = "pinned_host"') == 2
    assert program.count('_xla_buffer_placement = "device"') == 2
    assert len(re.findall(r"tf.aliasing_output = [01]", program)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q_proj.A": np.zeros((3, 1, 16, 15), np.float32)},
            r"q_proj\.A is \(3, 1, 16, 15\) where .* \(3, 1, 16, 16\)",
        ),
        ({"q_proj.A": np.zeros((3, 1, 16, 16), np.float64)}, r"q_proj\.A is float64"),
        ({"v_proj.A": np.zeros((3, 1, 16, 16), np.float32)}, r"arrays .*v_proj.* where"),
    ],
)
def test_arrays_that_do_not_fit_the_base_model_are_refused(change: Tensors, message: str) -> None:
    tensors = make_adapter(1, {"q_proj": 1}) | change
    with pytest.raises(ValueError, match=message):
        make_pool().stage({"q_proj": 1}, tensors)
