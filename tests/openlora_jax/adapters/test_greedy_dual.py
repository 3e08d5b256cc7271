from openlora_jax.adapters.greedy_dual import GreedyDual


def valued(**worths: float) -> GreedyDual:
    values = GreedyDual()
    for key, worth in worths.items():
        values.use(key, worth)
    return values


def test_the_least_valued_leaves_and_of_equals_the_least_recently_used() -> None:
    values = valued(a=2.0, b=1.0, c=1.0)
    values.use("b", 1.0)
    assert [values.least(spared) for spared in ("", "c")] == ["c", "b"]
    assert values.least({"a", "b", "c"}) is None


def test_what_is_no_longer_used_leaves_in_time_whatever_it_was_worth() -> None:
    values = valued(old=10.5)
    for number in range(20):
        values.use(f"new{number}", 1.0)
        values.evict(values.least(()) or "")
        if values.least({f"new{n}" for n in range(20)}) is None:
            assert number == 10
            return
    raise AssertionError("it has never left")


def test_what_was_removed_neither_leaves_nor_ages_the_others() -> None:
    values = valued(a=5.0, b=1.0)
    values.remove("b")
    values.use("c", 4.0)
    assert values.least(()) == "c"
