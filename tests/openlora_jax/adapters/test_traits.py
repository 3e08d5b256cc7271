import pytest

from openlora_jax.adapters.traits import PLAIN, Traits


@pytest.mark.parametrize(
    ("invocation", "prompt", "begin"),
    [
        ((5, 6), (5, 6, 1, 5, 6, 2), 3),
        ((5, 6), (1, 5, 6), 1),
        ((5, 6), (5, 6), 0),
        ((5, 6), (5, 1, 6, 5), None),
        ((5, 6), (5,), None),
        ((5, 5), (5, 5, 5), 1),
        ((5,), (5, 5, 5), 2),
    ],
)
def test_an_adapter_acts_from_its_last_invocation(
    invocation: tuple[int, ...], prompt: tuple[int, ...], begin: int | None
) -> None:
    assert Traits(invocation).begin(prompt) == begin


def test_a_plain_one_acts_everywhere() -> None:
    assert PLAIN.begin((1, 2, 3)) == 0
