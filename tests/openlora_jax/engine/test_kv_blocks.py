from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_jax.engine.kv_blocks import SCRATCH_BLOCK, BlockPool, blocks_for


@pytest.mark.parametrize(("positions", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_blocks_for(positions: int, blocks: int) -> None:
    assert blocks_for(positions, 16) == blocks


def test_allocates_all_or_nothing() -> None:
    pool = BlockPool(num_blocks=5, block_size=16)
    assert pool.allocate(5) is None
    assert pool.num_free == pool.usable == 4
    assert sorted(pool.allocate(4) or []) == [1, 2, 3, 4]


def test_a_block_without_a_holder_cannot_be_shared_or_released() -> None:
    pool = BlockPool(num_blocks=5, block_size=16)
    with pytest.raises(KeyError):
        pool.share([1])
    with pytest.raises(KeyError):
        pool.release([1])


@given(st.lists(st.tuples(st.sampled_from(["allocate", "share", "release"]), st.integers(0, 6)), max_size=60))
def test_blocks_are_free_or_held_never_both(operations: list[tuple[str, int]]) -> None:
    pool = BlockPool(num_blocks=12, block_size=16)
    tables: list[list[int]] = []
    for operation, number in operations:
        if operation == "allocate":
            held = {block for table in tables for block in table}
            blocks = pool.allocate(number)
            if blocks is not None:
                assert len(set(blocks)) == number
                assert not held & set(blocks)
                assert SCRATCH_BLOCK not in blocks
                tables.append(blocks)
            else:
                assert number > pool.num_free
        elif tables and operation == "share":
            table = tables[number % len(tables)]
            pool.share(table)
            tables.append(list(table))
        elif tables:
            pool.release(tables.pop(number % len(tables)))
        holders = Counter(block for table in tables for block in table)
        assert pool.num_free == pool.usable - len(holders)
    for table in tables:
        pool.release(table)
    assert sorted(pool.allocate(pool.usable) or []) == list(range(1, 12))


def test_the_peak_is_what_was_held_at_once() -> None:
    pool = BlockPool(9, 16)
    named = pool.allocate(2) or []
    pool.name(named[0], b"prompt")
    pool.release(named)
    assert (pool.peak, len(pool.allocate(2) or [])) == (2, 2)
    pool.share(named[:1])
    assert pool.peak == 3, "a block that was free and known is held again"
