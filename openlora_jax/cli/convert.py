"""`openlora convert`: base models and adapters of others to ours, merged ones, and back."""

import json
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Annotated, Literal

import typer

from openlora_jax.cli.merge import export, merge
from openlora_jax.config import Dtype
from openlora_jax.errors import AdapterExists, InvalidRequest
from openlora_jax.quantization.format import Groups

app = typer.Typer(no_args_is_help=True)

Quant = Literal["none", "int8", "int4", "nf4"]
AdapterQuant = Literal["none", "int8", "int4", "auto"]


@app.callback()
def convert() -> None:
    """Convert a base model, or an adapter for a store; merge adapters, or write one back for peft."""


@app.command()
def base(
    source: Annotated[
        Path, typer.Argument(help="Hugging Face directory, .gguf file, or converted base.", show_default=False)
    ],
    destination: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    dtype: Annotated[Dtype, typer.Option(help="Of the stored weights.")] = "float32",
    quant: Annotated[Quant, typer.Option(help="Store matrices in few bits.")] = "none",
    group: Annotated[
        Groups | None,
        typer.Option(help="Columns that share a scale.", show_default="those of GPTQ or AWQ, else 32; of nf4 64"),
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="int4 without offsets.")] = False,
) -> None:
    """Converts a base model, and prints a JSON report."""
    if quant == "none" and (group or symmetric):
        raise InvalidRequest("--group" if group else "--symmetric", "is of a quantised model; give --quant as well")
    from rich.progress import DownloadColumn

    from convert.base import convert_base
    from openlora_jax.cli.progress import shown_progress

    with shown_progress("reading", DownloadColumn()) as progress:
        report = convert_base(
            source, destination, dtype, progress, None if quant == "none" else quant, group, symmetric
        )
    made = {"source": str(source), "destination": str(destination), "digest": report.manifest.digest, "dtype": dtype}
    how = report.manifest.config.quantization
    sizes = {"tensors": report.tensors, "parameters": report.parameters, "bytes": report.bytes}
    typer.echo(json.dumps(made | ({"quantization": asdict(how)} if how else {}) | sizes, indent=2))


@app.command()
def adapter(
    source: Annotated[Path, typer.Argument(help="Directory that peft saved.", show_default=False)],
    store: Annotated[Path, typer.Option(help="The store's directory; made if missing.", show_default=False)],
    name: Annotated[str, typer.Option(help="What requests will call the adapter.", show_default=False)],
    base: Annotated[Path, typer.Option(help="The converted base model that it is for.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report, install nothing.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the name from the adapter that has it.")] = False,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of what is not in few bits.", show_default="float32; with --quant bfloat16")
    ] = None,
    quant: Annotated[
        AdapterQuant, typer.Option(help="Store A and B in few bits; `auto` is int4 where that changes little.")
    ] = "none",
    max_error: Annotated[
        float | None,
        typer.Option(help="With `--quant auto`: what rounding may change of a matrix.", show_default="0.1"),
    ] = None,
    strict_base: Annotated[
        bool, typer.Option("--strict-base", help="Refuse an adapter that names another base model.")
    ] = False,
    initial: Annotated[
        Path | None,
        typer.Option(help="The same adapter before training, of PiSSA, OLoRA or CorDA.", show_default=False),
    ] = None,
) -> None:
    """Converts a PEFT LoRA checkpoint, installs it in a store under a name, and prints a JSON report."""
    if max_error is not None and (quant != "auto" or not 0 <= max_error < inf):
        raise InvalidRequest("--max-error", "is a finite number from 0 on, for --quant auto")
    from convert.adapter import BaseWeights, convert_adapter
    from openlora_jax.adapters.few_bits import MOST_ERROR, Rounding
    from openlora_jax.adapters.registry import check_name
    from openlora_jax.adapters.store import AdapterStore
    from openlora_jax.model.checkpoint import BaseManifest

    check_name(name)
    manifest = BaseManifest.read(base)
    weights, most = BaseWeights(base, manifest), MOST_ERROR if max_error is None else max_error
    rounding = None if quant == "none" else Rounding(quant, most, dtype or "bfloat16")
    conversion = convert_adapter(source, manifest, dtype or "float32", strict_base, weights, initial, rounding)
    if not dry_run:
        AdapterStore.create(store).install(name, conversion.manifest, conversion.tensors, replace)
    elif store.exists() and not replace:
        current = AdapterStore(store).registrations().get(name)
        if current and current.digest != conversion.report["digest"]:
            raise AdapterExists(name, current.digest)
    typer.echo(json.dumps({"name": name, "installed": not dry_run, **conversion.report}, indent=2))


app.command()(merge)
app.command()(export)
