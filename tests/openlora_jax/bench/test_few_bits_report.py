"""The page of `bench few-bits`, from made-up results: what it says follows from them, and every column has a name."""

from openlora_jax.bench.few_bits import Measured
from openlora_jax.bench.few_bits_report import markdown

SETUP = {
    "machine": {"cpu": "A processor", "cores": 2},
    "versions": {"jax": "0.12.0.1", "python": "3.12.1"},
    "backend": "cpu",
    "dtype": "float32",
}
ADAPTERS = (
    Measured(
        "sql",
        rank=8,
        modules=7,
        sizes=[1000, 531, 281],
        errors=[[0.001, 0.005, 0.006], [0.08, 0.09, 0.1]],
        scores=[0.75, 0.75, 0.5],
        moved=[0.0001, 0.02],
        without=1.5,
        loads=[0.010, 0.012, 0.013, 0.009],
        cold=[0.020, 0.021, 0.018, 0.016],
        stayed=3,
    ),
    Measured(
        "random 1",
        rank=16,
        modules=2,
        sizes=[2000, 1100, 600],
        errors=[[0.01], [0.2]],
        moved=[0.001, 0.03],
        without=0.5,
        loads=[0.004, 0.005, 0.002, 0.002],
        cold=[0.010, 0.009, 0.008, 0.006],
    ),
)


def test_the_page_says_where_it_was_measured_and_what_follows() -> None:
    page = markdown(ADAPTERS, SETUP)
    assert page.startswith(
        "# `openlora bench few-bits`\n\nA processor, 2 cores; jax 0.12.0.1, python 3.12.1; backend cpu, base and plain"
        " pages in float32\n"
    )
    assert "the median: int8 0.54, int4 0.29. Scores that change, of 1: int8 0, int4 1.\n" in page
    assert "Adapters that load slower than in 16 bits, of 2" in page
    assert "from cached files int8 2 (1.23), int4 1 (0.90), int4 pages 0 (0.70)" in page
    assert "from uncached files int8 1 (0.97), int4 0 (0.85), int4 pages 0 (0.70)." in page
    assert "out of the page cache: 3." in page


def test_each_question_has_a_table_of_its_own() -> None:
    tables = [block.splitlines() for block in markdown(ADAPTERS, SETUP).split("\n\n") if block.startswith("| adapter")]
    assert [len(table) for table in tables] == [2 + len(ADAPTERS)] * 3
    for table in tables:
        assert len({row.count("|") for row in table}) == 1
        heading = table[0].split(" | ")
        assert len(heading) == len(set(heading)) <= 9
    rounding, answers, loads = tables
    assert rounding[2] == "| sql | 8 | 7 | 0.531 | 0.0050 | 0.0060 | 0.281 | 0.0900 | 0.1000 |"
    assert answers[2:] == [
        "| sql | 75% | 75% | 50% | 0.0001 | 0.0200 | 1.5000 |",
        "| random 1 |  |  |  | 0.0010 | 0.0300 | 0.5000 |",
    ]
    assert loads[2] == "| sql | 10.0 | 12.0 | 13.0 | 9.0 | 20.0 | 21.0 | 18.0 | 16.0 |"
