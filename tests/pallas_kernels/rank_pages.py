"""Work lists and pools for tests of LoRA, and what has to come out of them, in float64."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from pallas_kernels.lora.api import WorkList

LAYERS, PAGES, RANK = 2, 7, 16
Run = Sequence[tuple[int, float]]
Runs = Sequence[Run]
Host = NDArray[np.floating[Any]]
Operands = tuple[Array, Array, tuple[tuple[Array, Array], ...]]


def work_list(*modules: Runs, capacity: int = 12) -> WorkList:
    """Each module's list of its tiles' (page, scale) items; entries past the end name a page that is not there."""
    shape = (len(modules), capacity)
    tile, page = np.zeros(shape, np.int32), np.full(shape, PAGES - 1, np.int32)
    scale = np.full(shape, np.nan, np.float32)
    for module, runs in enumerate(modules):
        items = [(tile, page, scale) for tile, run in enumerate(runs) for page, scale in run]
        for n, item in enumerate(items):
            tile[module, n], page[module, n], scale[module, n] = item
    start = np.array([np.cumsum([0, *map(len, runs)]) for runs in modules], np.int32)
    return WorkList(jnp.asarray(start), jnp.asarray(tile), jnp.asarray(page), jnp.asarray(scale))


BROKEN = {
    "pages that the pool has not": lambda work: work._replace(
        page=work.page.at[0, 1:4].set([-1, PAGES, 2**31 - 1]), scale=work.scale.at[0, 2].set(np.nan)
    ),
    "a start before the list": lambda work: work._replace(start=work.start.at[0, 0].set(-(2**30))),
    "an end past the list": lambda work: work._replace(start=work.start.at[0, 3].set(2**30)),
    "an end before the start": lambda work: work._replace(start=work.start.at[0, 1].set(100)),
}


def broken_runs(kind: str, by_tile: bool = False) -> tuple[WorkList, Runs]:
    """A broken list, and the items of its tiles that count: by where tiles start, or by what items say of theirs."""
    whole = work_list([[(1, 1.0), (2, 1.0)], [(3, 1.0), (4, 0.5), (5, 1.0)], [(0, 1.0)] * 7], capacity=12)
    broken = BROKEN[kind](whole)
    start, of_tile, page, scale = (np.asarray(field)[0] for field in broken)
    runs: list[Sequence[int]] = [range(max(first, 0), min(end, 12)) for first, end in itertools.pairwise(start)]
    if by_tile:
        runs = [[n for n in range(min(start[-1], 12)) if of_tile[n] == tile] for tile in range(3)]
    return broken, [[(int(page[n]), float(scale[n])) for n in run if 0 <= page[n] < PAGES] for run in runs]


def operands(
    tiles: int, tokens: int, seed: int, width: int = 24, widths: tuple[int, ...] = (40,), dtype: str = "float32"
) -> Operands:
    """x, y and the pools of modules that are `widths` wide; products of pages are about as large as y."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int, by: float = 1.0) -> Array:
        return jnp.asarray(generator.normal(size=shape, scale=by), dtype)

    x, y = normal(tiles, tokens, width), normal(tiles, tokens, sum(widths))
    pools = tuple(
        (normal(LAYERS, PAGES, RANK, width, by=width**-0.5), normal(LAYERS, PAGES, RANK, out, by=RANK**-0.5))
        for out in widths
    )
    return x, y, pools


def expected(runs: Runs, layer: int, *arrays: Array | Host) -> NDArray[np.float64]:
    """One module's y with its items added."""
    x, y, a, b = (np.array(array, np.float64) for array in arrays)
    for tile, run in enumerate(runs):
        for page, scale in run:
            y[tile] += scale * (x[tile] @ a[layer, page].T) @ b[layer, page]
    return y


def parted(y: Array, pools: tuple[tuple[Array, Array], ...]) -> list[Host]:
    """Each module's columns of y."""
    return np.split(np.array(y, np.float64), np.cumsum([b.shape[3] for _, b in pools])[:-1], axis=2)
