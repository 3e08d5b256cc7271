"""`bench kernels` on a small model: every op is checked, then timed; what is wrong or fails is not timed."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from openlora_jax.bench.kernels import affine_cases, lora_cases, measure, quantized_cases, report
from openlora_jax.bench.kernels.case import Case
from openlora_jax.bench.kernels.devices import Peak, listed, measured
from openlora_jax.bench.kernels.measure import Outcome, Result
from openlora_jax.bench.kernels.sampling_cases import threshold_case, top_k_case
from openlora_jax.bench.kernels.saved_cases import saved_linear_case
from openlora_jax.bench.kernels.work_lists import distinct_pages, pool_pages, work_lists
from openlora_jax.bench.kernels.workload import MIXES, SHAPES, Workload
from openlora_jax.bench.models import SMOLLM2_135M
from openlora_jax.bench.samples import Samples
from openlora_jax.config import Dtype
from openlora_jax.quantization.format import Quantization
from pallas_kernels.lora import reference
from pallas_kernels.registry import implementations
from pallas_kernels.saved import reference as saved_reference

TINY = replace(
    SMOLLM2_135M,
    vocab_size=96,
    hidden_size=64,
    intermediate_size=80,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
)
WORKLOAD = replace(Workload.default("cpu"), shape="tiny", rows=5, prefill=64, context=96, rounds=2)
PEAK = Peak(source="data sheet", bandwidth=1e10, flops=1e11, cache=1)
PEERS = {
    "lora": ["gather", "one-hot"],
    "int4": ["gather", "dense"],
    "saved": ["every head"],
    "embedding": ["gather", "one-hot"],
    "affine": ["gather"],
    "quantized": ["numbers first", "dense"],
    "attention": ["gather"],
    "kv_write": [],
    "top_k": ["sort"],
    "threshold": ["sort"],
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(lora_cases, "CALLS", 2)


def test_every_op_is_right_and_timed_beside_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (measure, lora_cases, affine_cases):
        monkeypatch.setattr(module, "MIXES", {"skewed": MIXES["skewed"]})
    stages: list[tuple[int, int]] = []
    workload, ops = replace(WORKLOAD, dtype="bfloat16"), implementations("cpu")
    results = measure.measure(workload, ops, PEAK, lambda _, done, total: stages.append((done, total)))
    assert report.problems(results) == []
    assert stages == [(done, len(results)) for done in range(len(results))]
    assert Counter(result.mix for result in results) == {"skewed": 8, "": 11 + len(quantized_cases.FORMATS)}
    for result in results:
        own, *others = result.outcomes
        assert own.name == ("by_rows" if result.op == "top_k" else "xla")
        assert [other.name for other in others] == PEERS[result.op.split()[0]]
        assert result.floor > 0
        assert all(len(each.samples.values) == 2 and min(each.samples.values) > 0 for each in result.outcomes)
    table = report.table(results, "cpu")
    assert table.row_count == len(results)
    assert {name for names in PEERS.values() for name in names} <= {column.header for column in table.columns}
    assert json.loads(json.dumps(report.as_json(results)))[0]["implementations"][0]["values_us"]


def test_every_head_is_what_the_oracle_has() -> None:
    case = saved_linear_case(WORKLOAD, implementations("cpu"))
    x, pool, work = case.operands[0]
    want = saved_reference.saved_linear(x, case.carry, pool, work, 0)
    chex.assert_trees_all_close(case.reference(case.operands[0], np.asarray(0, np.int32), case.carry), want, atol=1e-5)


@pytest.mark.parametrize("how", quantized_cases.FORMATS, ids=str)
def test_products_are_about_as_large_as_what_they_are_added_to(how: Quantization) -> None:
    case = quantized_cases.quantized_linear_case(WORKLOAD, implementations("cpu"), 1, "qkv", how)
    product = case.reference(case.operands[0], np.asarray(0, np.int32), jnp.zeros_like(case.carry))
    assert 2**-4 < jnp.std(product) < 2**4


def tried(lora: Callable[..., Array]) -> Outcome:
    """What becomes of this `lora` in the first of its cases."""
    case = next(lora_cases.lora_cases(WORKLOAD, replace(implementations("cpu"), lora=lora), 1, "decode", "qkv"))
    (outcome,) = measure.outcomes(replace(case, steps={"xla": case.steps["xla"]}), WORKLOAD)
    return outcome


def scaled(factor: float) -> Callable[..., Array]:
    def lora(x: Array, y: Array, *others: Any) -> Array:
        return y + factor * (reference.lora(x, y, *others) - y)

    return lora


def fails(*_: Any) -> Array:
    raise NotImplementedError("no such tile\nand more")


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        (scaled(1.001), "wrong by "),
        (scaled(float("nan")), "wrong by nan"),
        (lambda x, y, pools, layer, *others: reference.lora(x, y, pools, jnp.int32(0), *others), "wrong by "),
        (fails, "NotImplementedError: no such tile"),
    ],
    ids=["scale", "nan", "layer", "fails"],
)
def test_what_is_wrong_or_fails_is_not_timed(lora: Callable[..., Array], problem: str) -> None:
    outcome = tried(lora)
    assert not outcome.timed
    assert outcome.problem
    assert outcome.problem.startswith(problem)
    assert "\n" not in outcome.problem


def worst(x: Array, k: int) -> tuple[Array, Array]:
    values, columns = implementations("cpu").top_k(-x, k)
    return -values, columns


def nothing_cut(weights: Array, top_k: Array, top_p: Array, settled: Array) -> Array:
    return jnp.zeros_like(top_p)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [(top_k_case, {"top_k": worst}), (threshold_case, {"threshold": nothing_cut})],
    ids=["top_k", "threshold"],
)
def test_a_wrong_search_is_not_timed(case: Callable[..., Case], wrong: dict[str, Any]) -> None:
    own, sort = measure.outcomes(case(WORKLOAD, replace(implementations("cpu"), **wrong)), WORKLOAD)
    assert (own.problem or "").startswith("wrong by ")
    assert sort.timed


def test_problems_are_listed_and_have_no_figures() -> None:
    outcomes = (Outcome("xla", 0.5, "wrong"), Outcome("gather", 0.0, samples=Samples("", "us", [1.0])))
    result = Result(
        op="lora", mix="skewed", nbytes=1, operations=1, floor=1.0, bound="bytes", cached=True, outcomes=outcomes
    )
    assert report.problems([result]) == ["lora skewed: xla: wrong"]
    cells = [next(iter(column.cells)) for column in report.table([result], "cpu").columns]
    assert cells == ["lora", "skewed", "1.0*", "bytes", "-", "-", "1.0", "5e-01"]


def test_the_kernel_takes_these_operands() -> None:
    assert tried(implementations("interpret").lora).problem is None


@pytest.mark.parametrize(
    ("mix", "sizes"),
    [("distinct", [1] * 16), ("uniform", [4] * 4), ("skewed", [7, 5, 3, 1]), ("identical", [16])],
)
def test_mixes_number_adapters_by_popularity(mix: str, sizes: list[int]) -> None:
    adapters = MIXES[mix](16)
    assert list(Counter(adapters).values()) == sizes
    assert list(dict.fromkeys(adapters)) == list(range(len(sizes)))
    assert all(len(MIXES[mix](count)) == count for count in range(1, 40))


@pytest.mark.parametrize("mix", MIXES)
def test_lists_are_full_and_tiles_of_one_adapter_share_its_pages(mix: str) -> None:
    workload, adapters = replace(WORKLOAD, rows=16), MIXES[mix](16)
    lists = work_lists(workload, adapters, modules=2)
    for work in lists:
        start, tile, page, _ = map(np.asarray, work)
        assert set(start[:, -1]) == {tile.shape[1]}
        for module in range(2):
            runs = [tuple(page[module, start[module, t] : start[module, t + 1]]) for t in range(16)]
            assert list(map(len, runs)) == [workload.pages(adapter) for adapter in adapters]
            assert len(set(page[module])) == len(set(sum(set(runs), ()))) == distinct_pages(workload, adapters)
            assert (np.repeat(np.arange(16), list(map(len, runs))) == tile[module]).all()
            assert page[module].min() >= 1
            assert page[module].max() < pool_pages(workload, 16)
    assert len(lists) > 1 or mix == "distinct"


@pytest.mark.parametrize(
    ("kind", "dtype", "bandwidth", "flops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 2039e9, 312e12),
        ("NVIDIA H100 80GB HBM3", "float32", 3352e9, 67e12),
        ("NVIDIA L40S", "bfloat16", 864e9, 362e12),
        ("NVIDIA L4", "bfloat16", 300e9, 121e12),
        ("NVIDIA H200", "bfloat16", 4800e9, 989e12),
        ("NVIDIA GeForce RTX 4090", "float32", 1008e9, 82.6e12),
    ],
)
def test_data_sheets_are_found_by_kind(kind: str, dtype: Dtype, bandwidth: float, flops: float) -> None:
    peak = listed(kind, dtype)
    assert peak
    assert (peak.bandwidth, peak.flops) == (bandwidth, flops)


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40", "NVIDIA GH200 480GB", "NVIDIA RTX 4090D"])
def test_a_kind_is_matched_by_whole_words(kind: str) -> None:
    assert listed(kind, "float32") is None


def test_what_has_no_data_sheet_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openlora_jax.bench.kernels.devices.MEASURED_BYTES", 1 << 20)
    peak = measured("cpu", "float32")
    assert min(peak.bandwidth, peak.flops) > 1e8


def test_a_floor_is_what_takes_longer() -> None:
    assert PEAK.floor(10**10, 10**10) == (1.0, "bytes")
    assert PEAK.floor(10**10, 10**12) == (10.0, "FLOPs")
