"""Both steps, compiled by XLA for chips that are not here, and what they cost there."""

import pytest

from tests.gpu import budget
from tests.gpu.budget import DEEP, DEPTHS, SHALLOW, WORKLOAD
from tests.gpu.cases import (
    CHIPS,
    KINDS,
    MOSAIC_CHIPS,
    SMALL_CHIP,
    Case,
    CompileFailed,
    Kind,
    compiled,
    compiled_alone,
    compiled_vast,
    reason_to_skip,
)
from tests.gpu.workloads import INT4_PAGES, KV_INT8, PROJECTION_GROUPS

ADDED_UP_BEFORE = {"a100": 1}
"""The parts of q, which XLA would rather not read twice there, for each half of a head."""
EMBEDDING_AND_HEAD = 2
THEIR_OPERANDS = 2
"""Ids of tokens and the head's input, which become arrays only because a kernel reads them."""
COMBINING = 7
"""Launches that put the logits of an ensemble's rows together."""

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip())),
]
on_each_chip = pytest.mark.parametrize("chip", CHIPS)
each_step = pytest.mark.parametrize("kind", KINDS)


@on_each_chip
@each_step
def test_a_step_stays_within_its_budget(chip: str, kind: Kind) -> None:
    assert budget.breaches(budget.figures(chip, kind), budget.read(chip, kind)) == []


@on_each_chip
@each_step
def test_the_state_is_updated_where_it_lies(chip: str, kind: Kind) -> None:
    facts = compiled(Case(chip, kind, WORKLOAD, DEEP))
    assert facts.aliased == facts.donated
    assert facts.copied == []


@on_each_chip
@each_step
def test_no_kernel_spills(chip: str, kind: Kind) -> None:
    kernels = compiled(Case(chip, kind, WORKLOAD, DEEP)).kernels
    assert {name: kernel.spilled for name, kernel in kernels.items()} == dict.fromkeys(kernels, 0)
    assert kernels


@on_each_chip
def test_no_lora_kernel_spills_on_pools_past_4_gib(chip: str) -> None:
    kernels = compiled_vast(chip)
    assert {name: kernel.spilled for name, kernel in kernels.items()} == dict.fromkeys(kernels, 0)
    assert {"lora_kernel", "embedding_lora_kernel"} <= kernels.keys()
    assert ("lora_mosaic_kernel" in kernels) is (chip in MOSAIC_CHIPS)


@on_each_chip
def test_kernels_that_only_some_need_stay_within_their_budget(chip: str) -> None:
    kernels = compiled_alone(chip)
    assert budget.breaches(budget.of_alone(chip), budget.read_alone(chip)) == []
    assert {name: kernel.spilled for name, kernel in kernels.items()} == dict.fromkeys(kernels, 0)
    assert {name for name, kernel in kernels.items() if kernel.mma == "none"} == {f"affine {kind}" for kind in KINDS}


def test_kernels_that_only_some_need_fit_a_small_chip() -> None:
    """XLA refuses what takes more shared memory than a chip has."""
    kernels = compiled_alone(SMALL_CHIP)
    assert {name: kernel.spilled for name, kernel in kernels.items()} == dict.fromkeys(kernels, 0)


@pytest.mark.slow
@each_step
@pytest.mark.parametrize("workload", [WORKLOAD, *INT4_PAGES, *KV_INT8])
def test_a_step_fits_a_small_chip(kind: Kind, workload: str) -> None:
    kernels = compiled(Case(SMALL_CHIP, kind, workload, 1)).kernels
    assert {name: kernel.spilled for name, kernel in kernels.items()} == dict.fromkeys(kernels, 0)


@on_each_chip
@each_step
def test_products_are_on_tensor_cores(chip: str, kind: Kind) -> None:
    kernels = compiled(Case(chip, kind, WORKLOAD, DEEP)).kernels
    assert {name for name, kernel in kernels.items() if kernel.mma == "none"} <= {"threshold_kernel"}


@on_each_chip
def test_adapters_cost_a_launch_for_each_group_of_projections(chip: str) -> None:
    shallow, deep = (compiled(Case(chip, "decode", WORKLOAD, layers)).kernels["lora_kernel"] for layers in DEPTHS)
    assert deep.launches - shallow.launches == PROJECTION_GROUPS * (DEEP - SHALLOW)
    added = budget.of_adapters(chip)
    assert added["adapters: launches of a layer"] <= PROJECTION_GROUPS + ADDED_UP_BEFORE.get(chip, 0)
    assert added["adapters: launches beside the layers"] <= EMBEDDING_AND_HEAD + THEIR_OPERANDS


@on_each_chip
def test_adapters_need_next_to_no_memory_beside_their_pool(chip: str) -> None:
    whole, base = (compiled(Case(chip, "decode", WORKLOAD, DEEP, variant)) for variant in ("whole", "base"))
    assert whole.temporary - base.temporary < whole.pools / 100


def test_ensembles_are_paid_for_by_their_own_program() -> None:
    whole, ensembles = (compiled(Case("h100", "decode", WORKLOAD, SHALLOW, each)) for each in ("whole", "ensembles"))
    assert 0 < ensembles.launches - whole.launches <= COMBINING
    assert whole.temporary < ensembles.temporary
    assert ensembles.aliased == ensembles.donated
    assert ensembles.copied == []


def test_pages_that_are_cut_out_of_the_pool_are_noticed() -> None:
    whole, base, slicing = (
        compiled(Case("h100", "decode", WORKLOAD, SHALLOW, variant)) for variant in ("whole", "base", "slicing")
    )
    assert slicing.temporary - base.temporary > whole.pools / 100


def test_state_that_is_not_donated_is_noticed() -> None:
    facts = compiled(Case("h100", "decode", WORKLOAD, SHALLOW, "keeping"))
    assert facts.aliased == 0
    assert "bf16[2,1025,8,128,64]" in facts.copied


def test_a_program_that_cannot_be_compiled_says_why() -> None:
    with pytest.raises(CompileFailed, match="KeyError: 'no such model'"):
        compiled(Case("h100", "decode", "no such model", SHALLOW))
