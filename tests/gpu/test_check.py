"""`make gpu-check`: how it sums up real reports of pytest, and what it says where there is no GPU."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gpu import check

TESTS = """
import pytest

@pytest.mark.parametrize("number", [1, 2, 3])
def test_numbers(number):
    assert number != 2, "two is wrong"

def test_that_passes():
    pass

@pytest.mark.skip
def test_that_is_skipped():
    pass

@pytest.fixture
def broken():
    raise RuntimeError("no device")

def test_that_cannot_start(broken):
    pass
"""


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    monkeypatch.setattr(check, "ON_GPU", {})
    return tmp_path


def test_verdicts_are_by_function(results: Path) -> None:
    file = results / "test_some.py"
    file.write_text(TESTS)
    numbers, passes, cannot = check.run_tests(file)
    assert (numbers.test, numbers.passed, numbers.ran) == ("test_some.test_numbers", 2, 3)
    assert str(numbers).startswith("FAIL  test_some.test_numbers  2 of 3  2: AssertionError: two is wrong")
    assert str(passes) == "pass  test_some.test_that_passes  1 of 1"
    assert cannot.passed == 0
    assert "no device" in cannot.failure


def test_a_process_that_dies_is_a_failure(results: Path) -> None:
    file = results / "test_some.py"
    file.write_text("import os\n\ndef test_that_dies():\n    os._exit(9)\n")
    (verdict,) = check.run_tests(file)
    assert str(verdict).startswith("FAIL  test_some.py  0 of 0  ended with status 9")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(["make", "--no-print-directory", "gpu-check"], cwd=check.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "no NVIDIA GPU is here: nvidia-smi lists none"
