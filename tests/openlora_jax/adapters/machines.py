"""Runs of hypothesis' state machines that are long enough together."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test

RUN = 40
"""Steps of one run, at most."""

FEW_OR_MANY_STEPS = pytest.mark.parametrize(
    "steps", [2_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=lambda steps: f"{steps}_steps"
)


def take_steps(machine: type[RuleBasedStateMachine], steps: int) -> None:
    """So many steps at least, in runs of a few, each from the beginning."""
    taken = [0]

    class Counted(machine):  # type: ignore[misc, valid-type]
        @invariant()
        def count(self) -> None:
            taken[0] += 1

    run_state_machine_as_test(
        Counted,
        settings=settings(
            max_examples=3 * steps // (2 * RUN),  # some runs end early
            stateful_step_count=RUN,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert taken[0] >= steps
