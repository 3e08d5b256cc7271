from openlora_jax.errors import MAX_PROBLEMS, BadCheckpoint


def test_a_bad_checkpoint_lists_its_first_problems_and_keeps_all() -> None:
    error = BadCheckpoint("file", *map(str, range(MAX_PROBLEMS + 3)))
    assert str(error).startswith("file: 0; 1; ")
    assert str(error).endswith(f"; {MAX_PROBLEMS - 1}; and 3 more")
    assert len(error.problems) == MAX_PROBLEMS + 3
    assert "more" not in str(BadCheckpoint("file", *map(str, range(MAX_PROBLEMS))))
