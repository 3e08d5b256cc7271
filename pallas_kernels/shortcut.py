"""Work that a step can often do without: left out by a branch, or done all the same."""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from jax import Array, lax
from jaxtyping import Bool

Result = TypeVar("Result")


@runtime_checkable
class Shortcut(Protocol):
    """`brief()` where it is `enough`, else `full()`, which would do there as well and only costs more."""

    def __call__(self, enough: Bool[Array, ""], brief: Callable[[], Result], full: Callable[[], Result]) -> Result: ...


def taken(enough: Bool[Array, ""], brief: Callable[[], Result], full: Callable[[], Result]) -> Result:
    """A branch on the device."""
    result: Result = lax.cond(enough, brief, full)
    return result


def declined(enough: Bool[Array, ""], brief: Callable[[], Result], full: Callable[[], Result]) -> Result:
    """No branch: on a GPU the host would take it, and wait for `enough` and all that was dispatched before."""
    return full()
