"""Patterns match what PEFT's `re.match` matches, in PEFT's order."""

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from convert.adapter.patterns import Pattern

NAMES = [f"model.layers.{layer}.{module}" for layer in (1, 11) for module in ("self_attn.q_proj", "mlp.up_proj")]
NAMES += ["model.embed_tokens", "lm_head"]
PARTS = st.sampled_from(
    [
        "q_proj",
        "up_proj",
        "lm_head",
        "[qk]_proj",
        "layers",
        "model",
        "self_attn",
        "1",
        "(1|11)",
        r"\.",
        ".",
        "^",
        "$",
        ".*",
        "|",
        r"\d+",
    ]
)
KEYS = st.lists(PARTS, min_size=1, max_size=6).map("".join)


def peft_value(values: dict[str, int], name: str) -> int:
    """As `peft.utils.get_pattern_key` and a look-up of what it returns."""
    return next((value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", name)), -1)


@given(st.dictionaries(KEYS, st.integers(0, 99), max_size=4))
def test_the_first_key_that_peft_would_match(values: dict[str, int]) -> None:
    pattern = Pattern(Path("config"), "rank_pattern", values, -1)
    assert [pattern.value(name) for name in NAMES] == [peft_value(values, name) for name in NAMES]
