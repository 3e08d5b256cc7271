"""`make gpu-check`: how it sums up real reports of pytest, and what it says where there is no GPU."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from openlora_jax.demo.prompts import PROMPTS
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


@pytest.mark.parametrize("changed", [False, True])
def test_the_engines_answers_are_held_against_the_cpus(
    results: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """The second token of the first answer differs, and in all of them the third is a toss-up."""

    def openlora(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        rows = Path(arguments[arguments.index("--input") + 1]).read_text().splitlines()
        cuda = environment["OPENLORA_BACKEND"] == "cuda"
        assert json.loads(rows[1])["mix"] == [{"adapter": "json", "weight": 1.0}]
        ids = [[5, 7 if cuda and changed and nth == 0 else 6, 8 + cuda] for nth in range(len(rows))]
        Path(arguments[arguments.index("--output") + 1]).write_text("\n".join(line(each) for each in ids))
        return subprocess.CompletedProcess(arguments, 0, "", "")

    def line(ids: list[int]) -> str:
        tops = [[{"token_id": 1, "logprob": -0.1}, {"token_id": 2, "logprob": second}] for second in (-3, -2, -0.1)]
        return json.dumps(
            {"outputs": [{"text": str(ids), "token_ids": ids, "logprobs": [{"top": top} for top in tops]}]}
        )

    monkeypatch.setattr(check, "openlora", openlora)
    text, failed = check.demo()
    assert failed is changed
    assert f"as on the CPU: {2 * len(PROMPTS)} tokens" in text
    assert ("answer 1: '[5, 7, 9]' in the place of '[5, 6, 8]'" in text) is changed


def test_an_engine_that_does_not_start_is_a_failure(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "STORE", results / "nothing")
    text, failed = check.demo()
    assert failed
    assert "FAIL  the demo's answers: " in text
    assert "nothing" in text


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(["make", "--no-print-directory", "gpu-check"], cwd=check.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "no NVIDIA GPU is here: nvidia-smi lists none"
