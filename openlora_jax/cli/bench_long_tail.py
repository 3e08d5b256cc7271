"""`openlora bench coldstart` and `oversubscribe`: what adapters cost that are seldom asked for."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openlora_jax.bench.long_tail.fleet import Fleet
from openlora_jax.bench.long_tail.workloads import Coldstart, Oversubscribe
from openlora_jax.cli.bench_options import (
    BaseOption,
    CacheOption,
    JsonOption,
    MarkdownOption,
    PlotOption,
    listed,
    numbers,
    write,
)
from openlora_jax.cli.console import output
from openlora_jax.cli.generate import BackendOption
from openlora_jax.config import BackendName

if TYPE_CHECKING:
    from openlora_jax.bench.long_tail.document import Document

COLDSTART, OVERSUBSCRIBE = Coldstart(), Oversubscribe()
"""The defaults."""
COLDSTART_RANKS, OVERSUBSCRIBE_RANKS = listed(COLDSTART.ranks), listed(OVERSUBSCRIBE.ranks)

RanksOption = Annotated[str, typer.Option(help="Of the adapters, in turn, on q and v.")]
PagesOption = Annotated[int, typer.Option(min=1, help="Rank pages of each module on the device.")]
PromptOption = Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")]
NewOption = Annotated[int, typer.Option(min=2, help="Tokens generated for each.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of arrivals and prompts.")]


def coldstart(
    base: BaseOption,
    prompt: PromptOption = COLDSTART.prompt,
    new: NewOption = COLDSTART.new,
    alone: Annotated[
        int, typer.Option(min=1, help="Requests of each state in an idle engine, a round.")
    ] = COLDSTART.alone,
    bursts: Annotated[
        int, typer.Option(min=1, help="Times that several adapters are asked for at once, a round.")
    ] = COLDSTART.bursts,
    together: Annotated[int, typer.Option(min=1, help="That are asked for at once.")] = COLDSTART.together,
    burst_prompt: Annotated[int, typer.Option(min=1, help="Tokens of their prompts.")] = COLDSTART.burst_prompt,
    beside: Annotated[
        int, typer.Option(min=1, help="Requests of each state beside streams, a round.")
    ] = COLDSTART.beside,
    rate: Annotated[float, typer.Option(min=0.01, help="Of their arrivals, a second.")] = COLDSTART.rate,
    streams: Annotated[int, typer.Option(min=1, help="That run beside them.")] = COLDSTART.streams,
    stream_new: Annotated[
        int, typer.Option(min=2, help="Tokens that each of these makes, at most.")
    ] = COLDSTART.stream_new,
    pages: PagesOption = COLDSTART.pages,
    ranks: RanksOption = COLDSTART_RANKS,
    rounds: Annotated[int, typer.Option(min=1, help="Each runs every state in every setting.")] = COLDSTART.rounds,
    seed: SeedOption = COLDSTART.seed,
    backend: BackendOption = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
    markdown: MarkdownOption = None,
    plot: PlotOption = None,
) -> None:
    """The first token when the adapter is on the device, in host memory, or on disk; and what a load costs others.

    Takes 10 minutes on two cores with a model of 135 million weights.
    """
    workload = Coldstart(
        pages=pages,
        ranks=_ranks(ranks),
        prompt=prompt,
        new=new,
        alone=alone,
        bursts=bursts,
        together=together,
        burst_prompt=burst_prompt,
        beside=beside,
        rate=rate,
        streams=streams,
        stream_new=stream_new,
        rounds=rounds,
        seed=seed,
    )
    _publish(*_coldstart(workload, base, backend, cache), json_file, markdown, plot)


def _coldstart(
    workload: Coldstart, base: Path, backend: BackendName | None, cache: Path | None
) -> tuple["Document", Any]:
    """The tables, and what the plot is drawn from."""
    from openlora_jax.bench.long_tail import coldstart_report, document
    from openlora_jax.bench.long_tail.coldstart import measure
    from openlora_jax.cli.loading import load
    from openlora_jax.cli.progress import shown_progress

    began = time.monotonic()
    [store] = _stores(cache, base, workload.fleet)
    config = workload.settings.using(backend)
    with load(str(base), str(store), config=config) as llm, shown_progress("warm-up") as progress:
        results = measure(llm, store, workload, progress)
        setup = document.setup(llm, workload, time.monotonic() - began)
    tables = coldstart_report.grids(results, workload)
    return document.Document("coldstart", setup, coldstart_report.as_json(results), tables), results


def oversubscribe(
    base: BaseOption,
    registered: Annotated[int, typer.Option(min=1, help="Adapters.")] = OVERSUBSCRIBE.registered,
    pages: PagesOption = OVERSUBSCRIBE.pages,
    ranks: RanksOption = OVERSUBSCRIBE_RANKS,
    zipf: Annotated[float, typer.Option(min=0.0, help="Exponent of their popularity.")] = OVERSUBSCRIBE.zipf,
    load_share: Annotated[
        float, typer.Option("--load", min=0.01, help="Share of the capacity offered.")
    ] = OVERSUBSCRIBE.load,
    requests: Annotated[int, typer.Option(min=1, help="Of each arm, over all rounds.")] = OVERSUBSCRIBE.requests,
    rounds: Annotated[int, typer.Option(min=1, help="Each runs both arms.")] = OVERSUBSCRIBE.rounds,
    prompt: PromptOption = OVERSUBSCRIBE.prompt,
    new: NewOption = OVERSUBSCRIBE.new,
    rows: Annotated[int, typer.Option(min=1, help="Sequences decoded together, at most.")] = OVERSUBSCRIBE.rows,
    closed: Annotated[int, typer.Option(min=1, help="Requests of one measurement of capacity.")] = OVERSUBSCRIBE.closed,
    closed_rounds: Annotated[int, typer.Option(min=1, help="Measurements of capacity.")] = OVERSUBSCRIBE.closed_rounds,
    seed: SeedOption = OVERSUBSCRIBE.seed,
    backend: BackendOption = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
    markdown: MarkdownOption = None,
    plot: PlotOption = None,
) -> None:
    """Time to first token and between tokens with many more adapters than fit, by popularity, beside a control.

    The control is the same arrivals for adapters that are always resident. Takes 15 minutes on two cores with a model
    of 135 million weights, and keeps 7 GB of adapters for the next time.
    """
    workload = Oversubscribe(
        registered=registered,
        pages=pages,
        ranks=_ranks(ranks),
        zipf=zipf,
        load=load_share,
        requests=requests,
        rounds=rounds,
        prompt=prompt,
        new=new,
        rows=rows,
        closed=closed,
        closed_rounds=closed_rounds,
        seed=seed,
    )
    _publish(*_oversubscribe(workload, base, backend, cache), json_file, markdown, plot)


def _oversubscribe(
    workload: Oversubscribe, base: Path, backend: BackendName | None, cache: Path | None
) -> tuple["Document", Any]:
    """The tables, and what the plot is drawn from."""
    from openlora_jax.bench.long_tail import document, oversubscribe_report
    from openlora_jax.bench.long_tail.oversubscribe import measure
    from openlora_jax.cli.loading import load
    from openlora_jax.cli.progress import shown_progress

    began = time.monotonic()
    many, resident = _stores(cache, base, workload.fleet, workload.resident)
    config = workload.settings.using(backend)
    with (
        load(str(base), str(many), config=config) as llm,
        load(str(base), str(resident), config=config) as few,
        shown_progress("warm-up") as progress,
    ):
        results = measure(llm, few, many, workload, progress)
        setup = document.setup(llm, workload, time.monotonic() - began)
    tables = oversubscribe_report.grids(results)
    return document.Document("oversubscribe", setup, oversubscribe_report.as_json(results), tables), results


def _ranks(text: str) -> tuple[int, ...]:
    from openlora_jax.adapters.manifest import MAX_RANK

    return numbers("--ranks", text, 1, MAX_RANK)


def _stores(cache: Path | None, base: Path, *fleets: Fleet) -> list[Path]:
    """Where the adapters are; what is missing is made."""
    from openlora_jax.bench.long_tail.fleet_store import install
    from openlora_jax.cli.loading import user_cache
    from openlora_jax.cli.progress import shown_progress

    with shown_progress("making adapters") as progress:
        return [install(fleet, cache or user_cache() / "bench", base, progress) for fleet in fleets]


def _publish(found: "Document", results: Any, json_file: Path | None, markdown: Path | None, plot: Path | None) -> None:
    """Shows the tables, and writes what is asked for."""
    console = output()
    console.print(found.heading)
    for grid in found.grids:
        console.print(grid.rich())
    write(json_file, found.setup, found.results)
    if markdown:
        markdown.write_text(found.markdown())
    if plot:
        _plot(plot, found.command, results)


def _plot(stem: Path, name: str, results: Any) -> None:
    """Draws what a function of the name draws, or says what it takes."""
    try:
        from openlora_jax.bench.long_tail import plot
    except ImportError:
        typer.echo("openlora: no plot: matplotlib is not installed; `pip install 'openlora-jax[plot]'`", err=True)
        return
    plot.save(getattr(plot, name)(results), stem)
