"""`openlora bench`: measurements, each beside its floor or its peer."""

import json
import tempfile
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from openlora_jax.cli.generate import BackendOption
from openlora_jax.config import Dtype

if TYPE_CHECKING:
    from openlora_jax.bench.long_tail.document import Document
    from openlora_jax.bench.throughput import Peer

ShapeName = Literal["smollm2", "llama-3.1-8b"]

RanksOption = Annotated[str, typer.Option(help="Of the adapters, in turn, on q and v.")]
PagesOption = Annotated[int, typer.Option(min=1, help="Rank pages of each module on the device.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of arrivals and prompts.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="Synthetic adapters are kept here.", show_default="the user's cache")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write setup and samples here.")]
MarkdownOption = Annotated[Path | None, typer.Option(help="Write the tables here, in Markdown.")]
PlotOption = Annotated[Path | None, typer.Option(help="Write PLOT.png and PLOT.svg; needs matplotlib.")]

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure this machine."""


@app.command()
def throughput(
    base: Annotated[Path, typer.Option(help="A converted base model.")],
    requests: Annotated[int, typer.Option(min=1, help="Requests of one batch.")] = 16,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 64,
    new: Annotated[int, typer.Option(min=2, help="Tokens generated for each.")] = 64,
    adapters: Annotated[str, typer.Option(help="Numbers of distinct adapters; 0 is base-only.")] = "0,1,16",
    ranks: Annotated[str, typer.Option(help="Ranks of the adapters.")] = "16",
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds; every arm runs once in each.")] = 7,
    backend: BackendOption = None,
    peer: Annotated[str | None, typer.Option(help="`peft` compares with its adapter_names batch.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Tokens per second base-only, with one adapter, and with several; a decode step over its matrix products."""
    from openlora_jax.adapters.manifest import MAX_RANK
    from openlora_jax.bench import machine, report
    from openlora_jax.bench.throughput import Workload, install_adapters, measure, settings
    from openlora_jax.cli.loading import load
    from openlora_jax.cli.progress import shown_progress

    workload = Workload(
        requests=requests,
        prompt=prompt,
        new=new,
        adapters=_numbers("--adapters", adapters, 0, requests),
        ranks=_numbers("--ranks", ranks, 1, MAX_RANK),
        rounds=rounds,
    )
    other = _peer(peer, base, workload.adapters, workload.ranks)
    with tempfile.TemporaryDirectory() as store:
        install_adapters(Path(store), base, workload)
        with (
            load(str(base), store, config=settings(workload).using(backend)) as llm,
            shown_progress("warm-up") as progress,
        ):
            results = measure(llm, workload, other, progress)
            setup = report.setup(llm, workload, other.name if other else None)
    console = Console()
    console.print(machine.line(setup["machine"], setup["versions"]))
    console.print(report.table(results, workload, setup["peer"]))
    _write(json_file, setup, report.as_json(results))


@app.command()
def kernels(
    shape: Annotated[ShapeName | None, typer.Option(help="The model's sizes.", show_default=False)] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of all operands.", show_default=False)] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of a decode step.", show_default=False)] = None,
    ranks: Annotated[
        str | None, typer.Option(help="Of the adapters, the most popular one's first.", show_default=False)
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Modules with LoRA, of qkv,o,gate_up,down.", show_default=False)
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Samples of each.", show_default=False)] = None,
    backend: BackendOption = None,
    json_file: JsonOption = None,
) -> None:
    """Each op as a backend runs it, checked, beside XLA's plain forms of it and the floor of the device.

    By default the sizes are two minutes' work for a CPU, and a server's for a GPU. What fails or is wrong is not timed,
    and the status is 1.
    """
    import jax

    from openlora_jax.adapters.manifest import MAX_RANK
    from openlora_jax.bench.kernels import report
    from openlora_jax.bench.kernels.devices import peak
    from openlora_jax.bench.kernels.measure import measure
    from openlora_jax.bench.kernels.workload import GROUPS, Workload
    from openlora_jax.cli.progress import shown_progress
    from openlora_jax.llm import resolve_ops

    asked: dict[str, Any] = {
        "shape": shape,
        "dtype": dtype,
        "rows": rows,
        "ranks": ranks and _numbers("--ranks", ranks, 1, MAX_RANK),
        "groups": groups and _names("--groups", groups, GROUPS),
        "rounds": rounds,
    }
    ops, device = resolve_ops(backend or "auto"), jax.devices()[0]
    workload = replace(Workload.default(device.platform), **{key: value for key, value in asked.items() if value})
    with shown_progress("the device's limits") as progress:
        limits = peak(device, workload.dtype)
        results = measure(workload, ops, limits, progress)
    setup = report.setup(workload, ops, device, limits)
    console = Console()
    console.print(report.heading(setup))
    console.print(report.table(results, ops.backend))
    _write(json_file, setup, report.as_json(results))
    problems = report.problems(results)
    for problem in problems:
        typer.echo(f"openlora: {problem}", err=True)
    raise typer.Exit(1 if problems else 0)


@app.command()
def coldstart(
    base: Annotated[Path, typer.Option(help="A converted base model.")],
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 256,
    new: Annotated[int, typer.Option(min=2, help="Tokens generated for each.")] = 8,
    alone: Annotated[int, typer.Option(min=1, help="Requests of each state in an idle engine, a round.")] = 8,
    beside: Annotated[int, typer.Option(min=1, help="Requests of each state beside streams, a round.")] = 16,
    rate: Annotated[float, typer.Option(min=0.01, help="Of their arrivals, a second.")] = 0.7,
    streams: Annotated[int, typer.Option(min=1, help="That run beside them.")] = 8,
    stream_new: Annotated[int, typer.Option(min=2, help="Tokens that each of these makes, at most.")] = 1000,
    pages: PagesOption = 32,
    ranks: RanksOption = "8,16,32,64",
    rounds: Annotated[int, typer.Option(min=1, help="Each runs every state in both settings.")] = 6,
    seed: SeedOption = 0,
    backend: BackendOption = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
    markdown: MarkdownOption = None,
    plot: PlotOption = None,
) -> None:
    """The first token when the adapter is on the device, in host memory, or on disk; and what a load costs others.

    Takes 10 minutes on two cores with a model of 135 million weights.
    """
    from openlora_jax.adapters.manifest import MAX_RANK
    from openlora_jax.bench.long_tail import coldstart_report, document
    from openlora_jax.bench.long_tail.coldstart import Workload, measure
    from openlora_jax.cli.loading import load, user_cache
    from openlora_jax.cli.progress import shown_progress

    workload = Workload(
        pages=pages,
        ranks=_numbers("--ranks", ranks, 1, MAX_RANK),
        prompt=prompt,
        new=new,
        alone=alone,
        beside=beside,
        rate=rate,
        streams=streams,
        stream_new=stream_new,
        rounds=rounds,
        seed=seed,
    )
    began = time.monotonic()
    with shown_progress("making adapters") as progress:
        store = workload.fleet.install(cache or user_cache() / "bench", base, progress)
    config = workload.settings.using(backend)
    with load(str(base), str(store), config=config) as llm, shown_progress("warm-up") as progress:
        results = measure(llm, store, workload, progress)
        setup = document.setup(llm, workload, time.monotonic() - began)
    grids = coldstart_report.grids(results, workload)
    found = document.Document("coldstart", setup, coldstart_report.as_json(results), grids)
    _publish(found, json_file, markdown)
    if plot:
        _plot(plot, "coldstart", results)


@app.command()
def oversubscribe(
    base: Annotated[Path, typer.Option(help="A converted base model.")],
    registered: Annotated[int, typer.Option(min=1, help="Adapters.")] = 2000,
    pages: PagesOption = 32,
    ranks: RanksOption = "8,16,32,64",
    zipf: Annotated[float, typer.Option(min=0.0, help="Exponent of their popularity.")] = 1.0,
    load_share: Annotated[float, typer.Option("--load", min=0.01, help="Share of the capacity offered.")] = 0.7,
    requests: Annotated[int, typer.Option(min=1, help="Of each arm, over all rounds.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Each runs both arms.")] = 4,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 64,
    new: Annotated[int, typer.Option(min=2, help="Tokens generated for each.")] = 16,
    rows: Annotated[int, typer.Option(min=1, help="Sequences decoded together, at most.")] = 16,
    closed: Annotated[int, typer.Option(min=1, help="Requests of one measurement of capacity.")] = 64,
    closed_rounds: Annotated[int, typer.Option(min=1, help="Measurements of capacity.")] = 4,
    seed: SeedOption = 0,
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
    from openlora_jax.adapters.manifest import MAX_RANK
    from openlora_jax.bench.long_tail import document, oversubscribe_report
    from openlora_jax.bench.long_tail.oversubscribe import Workload, measure
    from openlora_jax.cli.loading import load, user_cache
    from openlora_jax.cli.progress import shown_progress

    workload = Workload(
        registered=registered,
        pages=pages,
        ranks=_numbers("--ranks", ranks, 1, MAX_RANK),
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
    began = time.monotonic()
    with shown_progress("making adapters") as progress:
        stores = [
            fleet.install(cache or user_cache() / "bench", base, progress)
            for fleet in (workload.fleet, workload.resident)
        ]
    config = workload.settings.using(backend)
    with (
        load(str(base), str(stores[0]), config=config) as llm,
        load(str(base), str(stores[1]), config=config) as few,
        shown_progress("warm-up") as progress,
    ):
        results = measure(llm, few, stores[0], workload, progress)
        setup = document.setup(llm, workload, time.monotonic() - began)
    found = document.Document(
        "oversubscribe", setup, oversubscribe_report.as_json(results), oversubscribe_report.grids(results)
    )
    _publish(found, json_file, markdown)
    if plot:
        _plot(plot, "oversubscribe", results)


def _publish(found: "Document", json_file: Path | None, markdown: Path | None) -> None:
    console = Console()
    console.print(found.heading)
    for grid in found.grids:
        console.print(grid.rich())
    _write(json_file, found.setup, found.results)
    if markdown:
        markdown.write_text(found.markdown())


def _plot(stem: Path, name: str, results: Any) -> None:
    """Draws what a function of the name draws, or says what it takes."""
    try:
        from openlora_jax.bench.long_tail import plot
    except ImportError:
        typer.echo("openlora: no plot: matplotlib is not installed; `pip install 'openlora-jax[plot]'`", err=True)
        return
    plot.save(getattr(plot, name)(results), stem)


def _write(file: Path | None, setup: dict[str, Any], results: Any) -> None:
    if file:
        file.write_text(json.dumps({"setup": setup, "results": results}, indent=2) + "\n")


def _peer(name: str | None, base: Path, adapters: tuple[int, ...], ranks: tuple[int, ...]) -> "Peer | None":
    if name is None:
        return None
    if name != "peft" or len(ranks) != 1:
        raise typer.BadParameter("`peft` is the one peer, and takes one rank", param_hint="--peer")
    from openlora_jax.bench.peft_peer import PeftPeer

    return PeftPeer(base, max(1, *adapters), ranks[0])


def _numbers(option: str, text: str, least: int, most: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < least or max(numbers) > most:
        problem = f"{text!r} is not a list of whole numbers from {least} to {most}, like 1,16"
        raise typer.BadParameter(problem, param_hint=option)
    return numbers


def _names(option: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint=option)
    return names
