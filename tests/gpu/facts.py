"""What a compiled program says of itself: its launches, its memory, and the machine code of its Pallas kernels."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTROL = {"kWhile", "kConditional", "kSequential", "kCommandBuffer"}
"""Thunks that order others, and launch nothing."""

MMA = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One Pallas kernel; where a program holds it for several shapes, the most that any of them takes.

    Attributes:
        launches: in the program.
        registers: of a thread.
        spilled: bytes of registers that a thread keeps in memory.
        shared: bytes of shared memory of a block.
        mma: the tensor core instructions that it uses.
    """

    launches: int
    registers: int
    spilled: int
    shared: int
    mma: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Of one program on one chip. Sizes in bytes.

    Attributes:
        launches: kernels and copies, as listed: a loop's body once, every branch of a condition.
        temporary: what the program allocates beside operands and results.
        aliased: results that are written over operands.
        donated: operands that may be written over.
        pools: the adapters' pages.
        copied: shapes among KV, sampler state, pools and weights that some instruction copies.
        kernels: by name.
    """

    launches: int
    temporary: int
    aliased: int
    donated: int
    pools: int
    copied: list[str]
    kernels: dict[str, Kernel]

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Facts":
        """The same, from JSON."""
        return cls(**fields | {"kernels": {name: Kernel(**kernel) for name, kernel in fields["kernels"].items()}})


@dataclass(frozen=True, slots=True)
class Launch:
    """A line of XLA's list of thunks; `name` and `shared` are those of a kernel."""

    kind: str
    name: str
    shared: int


def launches(dump: Path) -> list[Launch]:
    """What the program that was dumped there runs, in order."""
    (listing,) = dump.glob("*thunk_sequence.txt")
    lines = re.findall(r"^\s*\d+: (k\w+)\s+\[.*?\] *(.*)$", listing.read_text(), re.MULTILINE)
    return [_launch(kind, rest) for kind, rest in lines if kind not in CONTROL]


def _launch(kind: str, rest: str) -> Launch:
    found = re.match(r"(\S+) grid: .*shared_memory: (\d+) bytes", rest)
    return Launch(kind, found[1], int(found[2])) if found else Launch(kind, "", 0)


def kernels(dump: Path, names: Iterable[str]) -> dict[str, Kernel]:
    """The Pallas kernels of these names; XLA numbers the shapes of one kernel, such as `lora__1`."""
    listed = [launch for launch in launches(dump) if launch.name]
    code = {name: path for path in dump.glob("*.ptx") for name in re.findall(r"\.entry (\w+)\(", path.read_text())}
    found = {}
    for name in sorted(names):
        mine = [launch for launch in listed if re.fullmatch(rf"{name}(_+\d+)*", launch.name)]
        assembled = [assemble(code[shape]) for shape in sorted({launch.name for launch in mine})]
        found[name] = Kernel(
            launches=len(mine),
            registers=max(each["registers"] for each in assembled),
            spilled=max(each["spilled"] for each in assembled),
            shared=max(launch.shared for launch in mine),
            mma="+".join(kind for kind in MMA if any(kind in code[launch.name].read_text() for launch in mine))
            or "none",
        )
    return found


def mosaic_kernels(dump: Path) -> dict[str, Kernel]:
    """The Pallas kernels that Mosaic compiled, of which it keeps what the assembler reported; none has tensor cores."""
    found: dict[str, list[Mapping[str, int]]] = {}
    for report in (file.read_text() for file in dump.glob("*.ptxas")):
        for name in re.findall(r"entry function '(\w+)_mosaic_gpu_kernel'", report):
            found.setdefault(name, []).append(_reported(report))
    return {
        name: Kernel(
            launches=len(reports),
            registers=max(each["registers"] for each in reports),
            spilled=max(each["spilled"] for each in reports),
            shared=0,
            mma="none",
        )
        for name, reports in found.items()
    }


def assemble(ptx: Path) -> Mapping[str, int]:
    """Registers of a thread, and the bytes that it spills, as NVIDIA's assembler reports them."""
    target = re.search(r"^\.target (\w+)", ptx.read_text(), re.MULTILINE)
    if target is None:
        raise ValueError(f"{ptx} names no target")
    command = [assembler(), "--verbose", "--gpu-name", target[1], str(ptx), "--output-file", "/dev/null"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return _reported(report)


def _reported(report: str) -> Mapping[str, int]:
    return {
        "registers": max(map(int, re.findall(r"Used (\d+) registers", report))),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", report))),
    }


def assembler() -> str:
    """The ptxas of the environment, whose version is pinned; else the machine's."""
    if (package := importlib.util.find_spec("nvidia.cuda_nvcc")) and package.submodule_search_locations:
        return str(Path(package.submodule_search_locations[0]) / "bin" / "ptxas")
    if found := shutil.which("ptxas"):
        return found
    raise FileNotFoundError("no ptxas: install nvidia-cuda-nvcc-cu12")


def copied(program: str, shapes: Iterable[str]) -> list[str]:
    """Which of these shapes, such as `f32[2,8]`, some instruction of an optimised program copies."""
    copies = set(re.findall(r"= \(?(\w+\[[\d,]*\])[^=\n]* copy(?:-start)?\(", program))
    return sorted(copies & set(shapes))
