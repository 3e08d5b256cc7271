from collections.abc import Iterator

import pytest

from tests.openlora_jax.adapters.fakes import SMALL, Facts, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    for digest in SMALL:
        world.source.facts[digest] = Facts({"q_proj": 1})
    world.source.facts["wide"] = Facts({"q_proj": 3, "v_proj": 2})
    world.source.facts["huge"] = Facts({"q_proj": 4})
    world.source.names = {digest.upper(): digest for digest in world.source.facts}
    world.open()
    yield world
    for event in world.source.stalled.values():
        event.set()
    world.cache.validate()
    world.cache.close()
