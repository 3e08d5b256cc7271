"""`openlora bench`: measurements, each beside its floor or its peer."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from openlora_jax.cli.generate import BackendOption

if TYPE_CHECKING:
    from openlora_jax.bench.throughput import Peer

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
    json_file: Annotated[Path | None, typer.Option("--json", help="Write setup and samples here.")] = None,
) -> None:
    """Tokens per second base-only, with one adapter, and with several; a decode step over its matrix products."""
    from openlora_jax.adapters.manifest import MAX_RANK
    from openlora_jax.bench import report
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
    machine, versions = setup["machine"], setup["versions"]
    console.print(f"{machine['cpu']}, {machine['cores']} cores; jax {versions['jax']}, python {versions['python']}")
    console.print(report.table(results, workload, setup["peer"]))
    if json_file:
        json_file.write_text(json.dumps({"setup": setup, "results": report.as_json(results)}, indent=2) + "\n")


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
