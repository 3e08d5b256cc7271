import pytest

from openlora_jax.engine.request import Delta, Event, Finished, Scored, Timings, TokenLogprobs
from openlora_jax.errors import EngineStopped
from openlora_jax.outputs import Generation, Sample, collect

TIMINGS = Timings(queue=1.0, load=2.0, prefill=3.0, decode=4.0)
FINISHED = Finished(seed=5, adapter_digests=("d",), prompt_tokens=6, completion_tokens=3, timings=TIMINGS)
FIRST, SECOND = TokenLogprobs(7, -0.5, {7: -0.5}), TokenLogprobs(8, -1.5)


def test_deltas_of_several_samples_are_put_together() -> None:
    events: list[Event] = [
        Delta(index=1, token_ids=(9,), text="x", finish_reason="stop"),
        Delta(index=0, token_ids=(7,), text="a", logprobs=(FIRST,)),
        Delta(index=0, token_ids=(8,), text="b", logprobs=(SECOND,), finish_reason="length"),
        FINISHED,
    ]
    assert collect(events) == Generation(
        outputs=(
            Sample(text="ab", token_ids=(7, 8), finish_reason="length", logprobs=(FIRST, SECOND)),
            Sample(text="x", token_ids=(9,), finish_reason="stop"),
        ),
        seed=5,
        adapter_digests=("d",),
        prompt_tokens=6,
        completion_tokens=3,
        timings=TIMINGS,
    )


def test_scores_are_their_event() -> None:
    scored = Scored(logprobs=(-1.0,), greedy=(True,), adapter_digests=(), timings=TIMINGS)
    assert collect([scored]) is scored


def test_a_stream_without_an_end_was_cancelled() -> None:
    with pytest.raises(EngineStopped, match="cancelled"):
        collect([Delta(index=0, token_ids=(7,), text="a")])
