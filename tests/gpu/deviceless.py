"""`python -m tests.gpu.deviceless h100 decode llama-3.1-8b 4 whole`: compiles a step for a GPU that is not here."""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jax.stages import Compiled, Lowered

from pallas_kernels.registry import implementations
from tests.gpu.cases import Case, Kind, Variant
from tests.gpu.facts import Facts, copied, kernels, launches
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.gpu.steps import DONATED, Step, slicing_pools, step, without_adapters
from tests.gpu.workloads import FEW_ROWS, INT4_PAGES, KV_INT8, KV_INT8_VAST, QUANTISED, SAVED, WORKLOADS

TARGETS = Path(__file__).parent / "targets"
HLO_TYPES = {
    "bfloat16": "bf16",
    "float16": "f16",
    "float32": "f32",
    "int8": "s8",
    "int32": "s32",
    "uint8": "u8",
    "uint16": "u16",
    "bool": "pred",
}


def main() -> None:
    chip, kind, workload, layers, variant = sys.argv[1:]
    case = Case(chip, cast(Kind, kind), workload, int(layers), cast(Variant, variant))
    json.dump(dataclasses.asdict(measure(case)), sys.stdout)


def measure(case: Case) -> Facts:
    """Compiles a case in this process."""
    program = _program(case)
    with tempfile.TemporaryDirectory() as dump:
        lowered, executable = compile_for(case.chip, program, Path(dump))
        return _facts(program, lowered, executable, Path(dump))


def _program(case: Case) -> Step:
    ops = implementations("cuda")
    if case.variant == "base":
        ops = without_adapters(ops)
    if case.variant == "slicing":
        ops = slicing_pools(ops)
    known = WORKLOADS | FEW_ROWS | QUANTISED | SAVED | KV_INT8 | KV_INT8_VAST | INT4_PAGES
    workload = known[case.workload].at_depth(case.layers)
    program = step(case.kind, workload, ops, ensembles=case.variant == "ensembles")
    return program._replace(donated=()) if case.variant == "keeping" else program


def compile_for(chip: str, program: Step, dump: Path) -> tuple[Lowered, Compiled]:
    """A step as XLA compiles it for a chip, from a description of that chip; what it dumps comes into a directory."""
    description = (TARGETS / f"{chip}.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", target_config=description, topology="1x1x1")
    device: Any = topology.devices[0]
    sharding = SingleDeviceSharding(device)

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    operands = jax.tree.map(place, tuple(program.operands.values()))
    lowered = lower_cuda(program.function, *operands, kind=device.device_kind, donated=program.donated)
    # Autotuning times candidates on the device.
    options = {"xla_gpu_autotune_level": 0, "xla_dump_to": str(dump), "xla_dump_emitter_re": "ptx"}
    return lowered, lowered.compile(compiler_options=options)


def _facts(program: Step, lowered: Lowered, executable: Compiled, dump: Path) -> Facts:
    memory: Any = executable.memory_analysis()
    kept = jax.tree.leaves([program.operands[name] for name in (*DONATED, "pools", "parameters")])
    shapes = {f"{HLO_TYPES[leaf.dtype.name]}[{','.join(map(str, leaf.shape))}]" for leaf in kept}
    return Facts(
        launches=len(launches(dump)),
        temporary=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        donated=program.nbytes(*DONATED),
        pools=program.nbytes("pools"),
        copied=copied(executable.as_text() or "", shapes),
        kernels=kernels(dump, triton_kernels(lowered)),
    )


if __name__ == "__main__":
    main()
