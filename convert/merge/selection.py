"""Which values are the largest, and of equal ones those that torch keeps on a CPU.

An adapter in bfloat16 has thousands of values of one magnitude, so that a merge depends on which of them are kept.
`torch.topk` takes what `std::nth_element` leaves in front, and GNU's is quickselect with the median of three and
Hoare's partition, whose exchanges are done here all at once. For a 64th of the values or less, torch selects in another
way, and may keep others among equal ones.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """The mask of the `count` largest of a flat array without NaN."""
    keep = np.zeros(len(values), bool)
    if count:
        keep[_selected(values.copy(), count)[:count]] = True
    return keep


def _selected(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The order of indices in which the first `count` are the largest; reorders `values` alike."""
    order = np.arange(len(values))
    first, last = 0, len(values)
    for _ in range(2 * len(values).bit_length()):  # more only if somebody chose the values for it
        if last - first <= 3:
            break
        cut = first + _partition(values[first:last], order[first:last])
        first, last = (cut, last) if cut < count else (first, cut)
    rest = np.argsort(-values[first:last], kind="stable")
    order[first:last] = order[first:last][rest]
    return order


def _partition(values: NDArray[np.float32], order: NDArray[np.intp]) -> int:
    """Moves what is larger than a pivot to the front, in place; where the rest begins."""
    _exchange(values, order, 0, _median(values))
    pivot = values[0]
    lefts = 1 + np.flatnonzero(values[1:] <= pivot)
    rights = 1 + np.flatnonzero(values[1:] >= pivot)[::-1]
    pairs = min(len(lefts), len(rights))
    swaps = int(np.count_nonzero(lefts[:pairs] < rights[:pairs]))
    _exchange(values, order, lefts[:swaps], rights[:swaps])
    met = [int(side) for side in (*lefts[swaps : swaps + 1], *rights[max(swaps - 1, 0) : swaps])]
    return min(met)


def _median(values: NDArray[np.float32]) -> int:
    """The index of the median of the second, the middle and the last value."""
    a, b, c = 1, len(values) // 2, len(values) - 1
    if values[a] > values[b]:
        if values[b] > values[c]:
            return b
        return c if values[a] > values[c] else a
    if values[a] > values[c]:
        return a
    return c if values[b] > values[c] else b


def _exchange(values: NDArray[np.float32], order: NDArray[np.intp], left: Any, right: Any) -> None:
    for each in (values, order):
        each[left], each[right] = each[right].copy(), each[left].copy()
