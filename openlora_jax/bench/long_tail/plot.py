"""The figures as pictures, PNG and SVG. Needs matplotlib, the extra `plot`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from openlora_jax.bench.long_tail.coldstart import Results as ColdstartResults
from openlora_jax.bench.long_tail.figures import quantile
from openlora_jax.bench.long_tail.oversubscribe import Results as OversubscribeResults
from openlora_jax.bench.long_tail.oversubscribe_report import all_gaps, deciles_of, ttfts
from openlora_jax.bench.long_tail.traffic import DECILES

POINTS = 400
"""Of a curve."""


def coldstart(results: ColdstartResults) -> Figure:
    """The share of requests by time to first token in both settings, and of the streams' tokens by gap."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, setting in zip(axes, ("alone", "beside"), strict=False):
        for state, runs in results.settings[setting].items():
            _curve(ax, [each.ttft for run in runs for each in run.answers], state)
        ax.set(title=f"{setting}: to the first token", xlabel="ms", ylabel="share of requests")
    for state, runs in results.beside.items():
        _curve(axes[2], [gap for run in runs for gap in run.gaps], state)
    axes[2].set(title="between tokens of the streams beside", xlabel="ms", ylabel="share of tokens")
    for ax in axes:
        ax.legend(title="adapter")
    return figure


def oversubscribe(results: OversubscribeResults) -> Figure:
    """Time to first token and between tokens, by popularity."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    places = range(1, DECILES + 1)
    for ax, of, title in zip(
        figure.subplots(1, 2), (ttfts, all_gaps), ("to the first token", "between tokens"), strict=True
    ):
        for arm, runs in results.arms.items():
            tenths = deciles_of(runs)
            for share, style in ((0.5, "o-"), (0.99, "s--")):
                values = [1000 * quantile(of(tenth), share) for tenth in tenths]
                ax.plot(places, values, style, label=f"{arm}, p{100 * share:.0f}", color=_colour(arm))
        ax.set(
            title=title, xlabel="tenth of the requests, the most popular adapters first", ylabel="ms", ylim=(0, None)
        )
        ax.legend()
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Writes STEM.png and STEM.svg."""
    for ending in ("png", "svg"):
        figure.savefig(stem.with_name(f"{stem.name}.{ending}"), dpi=120)


def _curve(ax: Any, values: Sequence[float], label: str) -> None:
    shares = np.linspace(0, 1, POINTS)
    ax.plot(1000 * np.quantile(values, shares), shares, label=label)


def _colour(arm: str) -> str:
    return {"paged": "tab:orange", "control": "tab:blue"}[arm]
