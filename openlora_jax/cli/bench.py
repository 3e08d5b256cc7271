"""`openlora bench`: measurements, each beside its floor or its peer."""

import tempfile
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from openlora_jax.cli.bench_long_tail import coldstart, oversubscribe
from openlora_jax.cli.bench_options import JsonOption, MarkdownOption, numbers, write
from openlora_jax.cli.bench_quantised import quantised
from openlora_jax.cli.console import output
from openlora_jax.cli.generate import BackendOption
from openlora_jax.config import Dtype

if TYPE_CHECKING:
    from openlora_jax.bench.throughput import Peer, Workload

ShapeName = Literal["smollm2", "llama-3.1-8b"]

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
    members: Annotated[str, typer.Option(help="Adapters of each request's mix; with 2, a mix of two each.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds; every arm runs once in each.")] = 7,
    backend: BackendOption = None,
    peer: Annotated[str | None, typer.Option(help="`peft` compares with its adapter_names batch.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Tokens per second base-only, with adapters, and with mixes of them; a decode step over its matrix products."""
    from openlora_jax.adapters.manifest import MAX_RANK
    from openlora_jax.adapters.mixes import MAX_MIX
    from openlora_jax.bench import machine, report
    from openlora_jax.bench.throughput import Workload, install_adapters, measure, settings
    from openlora_jax.cli.loading import load
    from openlora_jax.cli.progress import shown_progress

    workload = Workload(
        requests=requests,
        prompt=prompt,
        new=new,
        adapters=numbers("--adapters", adapters, 0, requests),
        ranks=numbers("--ranks", ranks, 1, MAX_RANK),
        members=numbers("--members", members, 1, MAX_MIX),
        rounds=rounds,
    )
    other = _peer(peer, base, workload)
    with tempfile.TemporaryDirectory() as store:
        install_adapters(Path(store), base, workload)
        with (
            load(str(base), store, config=settings(workload).using(backend)) as llm,
            shown_progress("warm-up") as progress,
        ):
            results = measure(llm, workload, other, progress)
            setup = report.setup(llm, workload, other.name if other else None)
    console = output()
    console.print(machine.line(setup["machine"], setup["versions"]))
    console.print(report.table(results, workload, setup["peer"]))
    write(json_file, setup, report.as_json(results))


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

    All but embeddings of an adapter's own, which are one gather.

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
        "ranks": ranks and numbers("--ranks", ranks, 1, MAX_RANK),
        "groups": groups and _names("--groups", groups, GROUPS),
        "rounds": rounds,
    }
    ops, device = resolve_ops(backend or "auto"), jax.devices()[0]
    workload = replace(Workload.default(device.platform), **{key: value for key, value in asked.items() if value})
    with shown_progress("the device's limits") as progress:
        limits = peak(device, workload.dtype)
        results = measure(workload, ops, limits, progress)
    setup = report.setup(workload, ops, device, limits)
    console = output()
    console.print(report.heading(setup))
    console.print(report.table(results, ops.backend))
    write(json_file, setup, report.as_json(results))
    problems = report.problems(results)
    for problem in problems:
        typer.echo(f"openlora: {problem}", err=True)
    raise typer.Exit(1 if problems else 0)


@app.command()
def few_bits(
    base: Annotated[Path, typer.Option(help="The converted SmolLM2-135M-Instruct.")],
    backend: BackendOption = None,
    markdown: MarkdownOption = None,
    json_file: JsonOption = None,
) -> None:
    """The demo's adapters and 20 random ones in 16, 8 and 4 bits: errors, answers, bytes, and loads.

    These are from files in the page cache and out of it. Takes four minutes on two cores.
    """
    from importlib import resources

    from convert.adapter import convert_adapter
    from openlora_jax.adapters.store import AdapterStore
    from openlora_jax.bench import few_bits, few_bits_report, machine
    from openlora_jax.bench.long_tail import page_cache
    from openlora_jax.cli.loading import load, user_cache
    from openlora_jax.config import EngineConfig
    from openlora_jax.model.checkpoint import BaseManifest

    manifest, cache = BaseManifest.read(base), user_cache() / "bench"
    cache.mkdir(parents=True, exist_ok=True)  # on a disk, which a folder for temporary files may not be
    with (
        tempfile.TemporaryDirectory(dir=cache) as folder,
        resources.as_file(resources.files("openlora_jax.demo")) as demo,
    ):
        demos = {name: convert_adapter(demo / "adapters" / name, manifest) for name in few_bits.BEHAVIOURS}
        adapters = {name: (each.manifest, each.tensors) for name, each in demos.items()}
        store = AdapterStore.create(folder)
        page_cache.drop(store, ())  # refused before anything is measured, where that cannot be
        found = few_bits.install(store, adapters | few_bits.random_adapters(manifest.config, manifest.digest))
        with load(str(base), folder, config=EngineConfig().using(backend)) as llm:
            few_bits.answer(llm, found)
            setup: dict[str, Any] = {"backend": llm.backend, "dtype": llm.config.dtype}
        few_bits.load(store, manifest.config, setup["dtype"], found)
    setup |= {"machine": machine.machine(), "versions": machine.versions()}
    page = few_bits_report.markdown(found, setup)
    typer.echo(page)
    if markdown:
        markdown.write_text(page)
    write(json_file, setup, [asdict(each) for each in found])


app.command()(coldstart)
app.command()(oversubscribe)
app.command()(quantised)


def _peer(name: str | None, base: Path, workload: "Workload") -> "Peer | None":
    if name is None:
        return None
    if name != "peft" or len(workload.ranks) != 1 or workload.members != (1,):
        raise typer.BadParameter("`peft` is the one peer, and takes one rank and no mixes", param_hint="--peer")
    from openlora_jax.bench.peft_peer import PeftPeer

    return PeftPeer(base, max(1, *workload.adapters), workload.ranks[0])


def _names(option: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint=option)
    return names
