"""Names of mixes in requests: they become their members, all weights multiplied out."""

import pytest

from openlora_jax.adapters.mixes import NamedMix
from openlora_jax.adapters.registry import Names, Registration
from openlora_jax.engine.members import resolve_names
from openlora_jax.engine.request import MixItem, ScoreRequest
from openlora_jax.errors import InvalidRequest, UnknownAdapter

NAMES = Names(
    {f"a{index}": Registration(f"{index}" * 64, "") for index in range(10)},
    {
        "m": NamedMix({"a1": 0.5, "a2": -2.0}, ""),
        "six": NamedMix({f"a{index}": 1.0 for index in range(3, 9)}, ""),
        "large": NamedMix({"a1": 1e4}, ""),
        "broken": NamedMix({"a1": 1.0, "gone": 1.0}, ""),
    },
)


def members(**mix: float) -> dict[str, float]:
    items = tuple(MixItem(name, weight) for name, weight in mix.items())
    request, adapters = resolve_names(ScoreRequest(prompt_ids=(1,), completion_ids=(2,), mix=items), NAMES)
    assert adapters == [(item.adapter, item.adapter[1:] * 64) for item in request.mix]
    return {item.adapter: item.weight for item in request.mix}


def test_what_names_stand_for() -> None:
    assert members() == {}
    assert members(a3=0.5) == {"a3": 0.5}
    assert members(m=1.0) == {"a1": 0.5, "a2": -2.0}
    assert members(a5=1.0, m=0.5, a1=0.25) == {"a5": 1.0, "a1": 0.5, "a2": -1.0}, "deltas of one adapter add up"
    assert members(m=1.0, six=0.5).keys() == {f"a{index}" for index in range(1, 9)}


def test_limits_hold_for_all_members_together() -> None:
    with pytest.raises(InvalidRequest, match="9 adapters are more than the 8 allowed"):
        members(m=1.0, six=1.0, a9=1.0)
    with pytest.raises(InvalidRequest, match=r"weight 1e\+40 of adapter 'a1'"):
        members(large=1e36)
    with pytest.raises(UnknownAdapter, match="'gone'"):
        members(broken=1.0)
    with pytest.raises(UnknownAdapter, match="'nobody'"):
        members(nobody=1.0)
