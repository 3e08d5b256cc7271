"""The house rules that a program can check: who imports whom, what is declared, what is shipped."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pallas_kernels

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "pallas_kernels": set[str](),
    "openlora_jax": {"pallas_kernels"},
    "serving": {"openlora_jax"},
    "convert": {"openlora_jax"},
    "configs": set[str](),
}
"""Each package of the house, and which others it may name."""

COMMAND_LINE = ROOT / "openlora_jax" / "cli"
ORACLES = {"torch", "transformers", "peft", "bitsandbytes", "torchao", "sentencepiece"}
ORACLE_USERS = (
    ROOT / "openlora_jax" / "demo" / "training",
    ROOT / "openlora_jax" / "bench" / "peft_peer.py",
    ROOT / "openlora_jax" / "bench" / "transformers_model.py",
    ROOT / "openlora_jax" / "bench" / "quantised",
)
OPTIONAL = {"fsspec", "matplotlib"}
"""What works without, and says so where it is needed."""
ARRAYS = {"jax", "jaxlib", "flax", "numpy"}


@dataclass(frozen=True)
class Import:
    """A module named by a file; `late` where that is inside a function, or for a type checker only."""

    file: Path
    module: str
    late: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def imports(package: str) -> Iterator[Import]:
    for file in sorted((ROOT / package).rglob("*.py")):
        yield from imports_of(file, ast.parse(file.read_text()))


def imports_of(file: Path, tree: ast.Module) -> Iterator[Import]:
    late = {child for node in ast.walk(tree) if _is_late(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(file, alias.name, node in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (Import(file, f"{node.module}.{alias.name}", node in late) for alias in node.names)


def _is_late(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_downwards(package: str) -> None:
    for found in imports(package):
        if found.top in MAY_IMPORT.keys() - {package} - MAY_IMPORT[package]:
            in_command = found.file.is_relative_to(COMMAND_LINE) and found.late
            assert in_command, f"{found.file} imports {found.module}"


def test_nothing_is_imported_from_the_tests() -> None:
    assert not [found for package in MAY_IMPORT for found in imports(package) if found.top == "tests"]


def test_only_kernels_import_pallas() -> None:
    users = {
        package for package in MAY_IMPORT for found in imports(package) if "jax.experimental.pallas" in found.module
    }
    assert users <= {"pallas_kernels"}


def test_oracles_are_not_imported_at_run_time() -> None:
    for package in MAY_IMPORT:
        for found in imports(package):
            if found.top in ORACLES:
                assert any(found.file.is_relative_to(user) for user in ORACLE_USERS), f"{found.file}: {found.module}"


def axes(package: str) -> Iterator[tuple[Path, str]]:
    """Every axis that is named in a shape of jaxtyping."""
    for file in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(file.read_text())
        dtypes = {found.module.split(".")[1] for found in imports_of(file, tree) if found.top == "jaxtyping"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in dtypes:
                shape = ast.literal_eval(node.slice.elts[1]) if isinstance(node.slice, ast.Tuple) else ""
                yield from ((file, axis) for axis in re.findall(r"[A-Za-z]\w*", re.sub(r"{.*?}", "", shape)))


def test_shapes_are_written_in_one_alphabet() -> None:
    alphabet = re.findall(r"(?<=  )([A-Z])  ", pallas_kernels.__doc__ or "")
    used = {axis: file for package in MAY_IMPORT for file, axis in axes(package)}
    assert len(alphabet) == len(set(alphabet))
    assert {axis: file for axis, file in used.items() if axis not in alphabet} == {}
    assert sorted(set(alphabet) - used.keys()) == []


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        pytest.param(
            "openlora_jax.engine.engine openlora_jax.engine.scheduler openlora_jax.engine.kv_blocks"
            " openlora_jax.engine.admission openlora_jax.adapters.pages openlora_jax.adapters.residency"
            " openlora_jax.adapters.loader openlora_jax.adapters.registry openlora_jax.adapters.demand"
            " openlora_jax.adapters.counters openlora_jax.adapters.greedy_dual openlora_jax.adapters.forecast"
            " openlora_jax.adapters.quarantine",
            ARRAYS | {"jaxtyping"},
            id="what decides knows no arrays",
        ),
        pytest.param("serving.server serving.client", ARRAYS - {"numpy"}, id="the server knows no arrays"),
        pytest.param("openlora_jax.cli", ARRAYS - {"numpy"} | {"grpc", "orbax"}, id="help is fast"),
    ],
)
def test_import_weight(modules: str, forbidden: set[str]) -> None:
    script = f"import {', '.join(modules.split())}, sys; print(*sorted({forbidden} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == []


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    fields: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return fields


def test_dependencies_are_what_is_imported(project: dict[str, Any]) -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    providers = {
        name: {canonicalize_name(distribution) for distribution in distributions}
        for name, distributions in packages_distributions().items()
    }
    not_ours = ORACLES | OPTIONAL | MAY_IMPORT.keys() | set(sys.stdlib_module_names) | {"grpc_tools"}
    used = {found.top for package in MAY_IMPORT for found in imports(package)} - not_ours
    assert [name for name in sorted(used) if not providers[name] & declared] == []
    assert sorted(declared - set().union(*(providers[name] for name in used))) == []


def test_dependencies_have_both_bounds(project: dict[str, Any]) -> None:
    for text in project["dependencies"]:
        operators = {specifier.operator for specifier in Requirement(text).specifier}
        assert operators == {">=", "<"}, text


def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    files = {path for package in MAY_IMPORT for path in (ROOT / package).rglob("*") if path.is_file()}
    assert shipped == {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert {"configs/cpu.yaml", "serving/proto/openlora.proto"} <= shipped
    assert any(name.endswith("adapter_model.safetensors") for name in shipped)
    assert licences
