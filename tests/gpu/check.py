"""`python -m tests.gpu.check`: what kernels and engine do on the GPU of this machine, on one page to send back."""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from xml.etree import ElementTree

from tests.gpu.answers import answered, differences, sure_tokens

ROOT = Path(__file__).resolve().parents[2]
KERNEL_TESTS = ROOT / "tests" / "pallas_kernels"
RESULTS = ROOT / ".cache" / "gpu-check"
BASE, STORE = ROOT / ".cache" / "base" / "smollm2-135m-instruct", ROOT / ".cache" / "store"
"""What `make demo` serves."""
DRIVER_FACTS = "name,driver_version,memory.total,compute_cap,clocks.max.sm,clocks.max.memory,power.limit"
COMPUTING = ("jax", "jaxlib", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-runtime-cu12", "openlora-jax")
BACKENDS = {"cuda": (0,), "mosaic": (0, 2)}
"""Backend -> the statuses that are in order: this GPU may be older than the kernels of the second, which says so."""
TIME_LIMIT = 1800.0
"""Of one file of tests, or of the benchmark; seconds."""

ON_GPU = {"JAX_PLATFORMS": "cuda,cpu", "COLUMNS": "150"}
IN_FULL = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
"""Else XLA takes products of float32 with 10 bits, and the references are wrong."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one test function, over its parameters; `failure` is the first one's."""

    test: str
    passed: int
    ran: int
    failure: str

    def __str__(self) -> str:
        state = "FAIL" if self.failure else "pass"
        return f"{state}  {self.test}  {self.passed} of {self.ran}  {self.failure}".rstrip()


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    page = RESULTS / "page.txt"
    failed = False
    with page.open("w") as file:
        for text, bad in sections():
            failed |= bad
            print(text, flush=True)  # noqa: T201
            file.write(f"{text}\n")
    print(f"\nPlease send {page.relative_to(ROOT)} back, and {RESULTS.relative_to(ROOT)}/*.json.")  # noqa: T201
    sys.exit(failed)


def sections() -> Iterator[tuple[str, bool]]:
    """The page part by part, as it comes about, and whether something in it is wrong."""
    yield "\n".join(facts()), False
    for file in sorted(KERNEL_TESTS.glob("test_*.py")):
        if file.name != "test_registry.py":  # it is about machines without a GPU
            found = run_tests(file)
            yield "\n".join(map(str, found)), any(verdict.failure for verdict in found)
    for backend in BACKENDS:
        yield shown("doctor", backend=backend)
        yield shown("bench", "kernels", "--json", str(RESULTS / f"{backend}.json"), backend=backend)
    yield demo()
    yield shown("bench", "throughput", "--base", str(BASE), "--json", str(RESULTS / "throughput.json"), backend="cuda")


def shown(*command: str, backend: str) -> tuple[str, bool]:
    """A command of `openlora` with what it printed, and whether it failed."""
    done = openlora(*command, OPENLORA_BACKEND=backend)
    text = f"\n$ OPENLORA_BACKEND={backend} openlora {' '.join(command[:2])}\n{done.stdout}{_end(done.stderr)}"
    return text, done.returncode not in BACKENDS[backend]


def demo() -> tuple[str, bool]:
    """Whether the engine on this GPU gives the demo's greedy answers of the CPU."""
    where = ("--base", str(BASE), "--store", str(STORE))
    platforms = {"cpu": "cpu", "cuda": ON_GPU.get("JAX_PLATFORMS", "cpu")}
    try:
        expected, found = (
            answered(openlora, where, RESULTS, OPENLORA_BACKEND=backend, JAX_PLATFORMS=platform, **IN_FULL)
            for backend, platform in platforms.items()
        )
    except RuntimeError as error:
        return f"\nFAIL  the demo's answers: {_end(str(error))}", True
    problems = differences(found, expected)
    sure = sum(sure_tokens(sample) for line in expected for sample in line["outputs"])
    state = "FAIL" if problems else "pass"
    head = f"\n{state}  the demo's answers, greedy, as on the CPU: {sure} tokens"
    return "\n".join([head, *problems]), bool(problems)


def openlora(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "openlora_jax", *arguments, **environment)


def facts() -> list[str]:
    """The machine, the commit, and the versions of what computes."""
    device = run("nvidia-smi", f"--query-gpu={DRIVER_FACTS}", "--format=csv,noheader")
    commit = run("git", "describe", "--always", "--dirty")
    named = sorted((each.metadata["Name"], each.version) for each in distributions())
    computing = [f"{name} {version}" for name, version in named if name in COMPUTING or name.startswith("jax-cuda")]
    return [f"gpu-check of {commit.stdout.strip()}", device.stdout.strip(), ", ".join(computing), ""]


def run_tests(file: Path) -> list[Verdict]:
    """One file in a process of its own: a wild read takes the rest of its process down."""
    report = RESULTS / f"{file.stem}.xml"
    report.unlink(missing_ok=True)
    # A warning about this machine is no failure of a kernel.
    pytest = ("pytest", "-q", "-W", "default", "-p", "no:cacheprovider", f"--junit-xml={report}", str(file))
    done = run(sys.executable, "-m", *pytest, **IN_FULL)
    if report.exists():
        return verdicts(report)
    return [Verdict(file.name, 0, 0, f"ended with status {done.returncode}: {_end(done.stderr or done.stdout)}")]


def verdicts(report: Path) -> list[Verdict]:
    """What a JUnit report of pytest says, function by function."""
    cases = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            place = case.get("classname", "").rpartition(".")[2]
            cases[f"{place}.{case.get('name', '').partition('[')[0]}"].append(case)
    return [_verdict(test, of_test) for test, of_test in cases.items()]


def _verdict(test: str, cases: list[ElementTree.Element]) -> Verdict:
    bad = [(case, problem) for case in cases for kind in ("failure", "error") for problem in case.findall(kind)]
    failure = ""
    if bad:
        case, problem = bad[0]
        parameters = case.get("name", "").partition("[")[2].rstrip("]")
        failure = f"{parameters}: {' '.join(problem.get('message', '').split())[:200]}"
    return Verdict(test, len(cases) - len({id(case) for case, _ in bad}), len(cases), failure)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | ON_GPU | environment,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"took longer than {TIME_LIMIT:.0f} s")


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-5:])


if __name__ == "__main__":
    main()
