"""The page of the proof is what was measured and executed, all of it."""

import json

from tests.gpu import proof


def test_the_page_is_that_of_the_figures() -> None:
    assert proof.report() == proof.REPORT.read_text()


def test_all_that_was_executed_is_on_it() -> None:
    executed = json.loads(proof.EMULATED.read_text())
    rows = [set(line.split(" | ")) for line in proof.report().replace(" |\n", "\n").splitlines()]
    missing = [name for name, run in executed.items() if not any(set(run.values()) <= row for row in rows)]
    assert executed
    assert missing == []
