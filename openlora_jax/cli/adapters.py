"""`openlora adapters`: what a store holds, and mixes of it under names of their own."""

import json
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from openlora_jax.adapters.mixes import Member, check_mix, mix_text
from openlora_jax.adapters.modules import MODULES
from openlora_jax.adapters.registry import Registration
from openlora_jax.cli.console import output
from openlora_jax.cli.members import weighted
from openlora_jax.errors import BadCheckpoint

if TYPE_CHECKING:
    from openlora_jax.adapters.store import AdapterStore

app = typer.Typer(no_args_is_help=True, help="List, inspect, verify, mix and remove the adapters of a store.")

StoreOption = Annotated[Path, typer.Option("--store", help="The store's directory.", show_default=False)]
NameArgument = Annotated[str, typer.Argument(help="The adapter's name.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_adapters(store: StoreOption, as_json: JsonOption = False) -> None:
    """Lists the registered adapters and mixes."""
    opened = _open(store)
    names = opened.names()
    rows = [_summary(opened, name, entry) for name, entry in names.adapters.items()]
    rows += [{"name": name, "mix": mix.weights, "registered": mix.time} for name, mix in names.mixes.items()]
    rows.sort(key=itemgetter("name"))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", Column("digest", no_wrap=True), "modules", "rank", "pages", "MB", "stored", "registered")
    for row in rows:
        table.add_row(row["name"], row.get("digest", "mix")[:12], *_cells(row), row["registered"][:16])
    output().print(table)


@app.command()
def inspect(name: NameArgument, store: StoreOption, as_json: JsonOption = False) -> None:
    """Shows one adapter: its digest, its base, and every module that it targets; or a mix and its members."""
    opened = _open(store)
    if name in opened.names().mixes:
        _show_mix(name, opened.members(name), as_json)
        return
    digest = opened.resolve(name)
    manifest = opened.manifest(digest)
    if as_json:
        typer.echo(json.dumps({"name": name, "digest": digest, **manifest.to_fields()}, indent=2))
        return
    typer.echo(f"{name}\ndigest {digest}\nbase   {manifest.base_digest}\nstored {manifest.stored}")
    if manifest.recipe:
        typer.echo(f"merged {json.dumps(manifest.recipe.model_dump(exclude_none=True))}")
    if manifest.invocation_tokens:
        typer.echo(f"acts   from the last {manifest.invocation_tokens} of a prompt on")
    for module, nbytes in manifest.saved_bytes.items():
        typer.echo(f"saved  {module}, {nbytes / 1e6:,.1f} MB, in the place of the base's")
    table = Table("module", "rank", "pages", "vector", "layers", "in", "out", "few bits", "error")
    for module in filter(manifest.modules.__contains__, MODULES):
        size = manifest.modules[module]
        sizes = (size.rank, size.pages, size.vector or "", size.layers, size.d_in, size.d_out)
        stored = " ".join(f"{side} {bits.format}" for side, bits in (size.few_bits or {}).items())
        error = f"{max(size.delta_errors):g}" if size.delta_errors else ""
        table.add_row(module, *map(str, sizes), stored, error)
    output().print(table)


@app.command()
def verify(store: StoreOption) -> None:
    """Recomputes the digest of every registered adapter; a damaged one ends with status 2."""
    opened = _open(store)
    found = opened.verify()
    damaged = [str(damage) for damage in found.values() if damage]
    if damaged:
        raise BadCheckpoint(store, f"{len(damaged)} of {len(found)} adapters are damaged", *damaged)
    typer.echo(f"{len(found)} adapters verified")


@app.command()
def mix(
    mixed: Annotated[
        str,
        typer.Argument(metavar="NAME=A:WEIGHT,B:WEIGHT", help="The mix's name, and its members.", show_default=False),
    ],
    store: StoreOption,
    replace: Annotated[bool, typer.Option("--replace", help="Take the name from what it stands for.")] = False,
) -> None:
    """Gives a name to a weighted mix of adapters; requests ask for it as for an adapter.

    It follows its members' names: an adapter that is replaced is replaced in the mix.
    """
    name, _, members = mixed.partition("=")
    weights = [weighted("mix", text, ":", "both=legal:0.6,tone:0.4") for text in members.split(",")]
    check_mix(weights)
    _open(store).mix(name, dict(weights), replace)
    typer.echo(f"registered {name}")


@app.command()
def remove(name: NameArgument, store: StoreOption) -> None:
    """Removes a name, and the adapter's files if no other name stands for them. Members of a mix stay until it goes."""
    _open(store).remove(name)
    typer.echo(f"removed {name}")


def _show_mix(name: str, members: Sequence[Member], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"name": name, "mix": [member._asdict() for member in members]}, indent=2))
        return
    table = Table("member", "weight", Column("digest", no_wrap=True))
    for member in members:
        table.add_row(member.adapter, f"{member.weight:g}", member.digest)
    typer.echo(name)
    output().print(table)


def _open(path: Path) -> "AdapterStore":
    from openlora_jax.adapters.store import AdapterStore  # orbax takes a second, which `--help` need not wait for

    return AdapterStore(path)


def _summary(store: "AdapterStore", name: str, entry: Registration) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "digest": entry.digest, "registered": entry.time}
    try:
        manifest = store.manifest(entry.digest)
    except BadCheckpoint as error:
        return {**row, "damage": str(error)}
    return {
        **row,
        "base_digest": manifest.base_digest,
        "dtype": manifest.dtype,
        "stored": manifest.stored,
        "bytes": manifest.nbytes,
        "modules": {
            module: {"rank": size.rank, "pages": size.pages, **size.bits_report}
            for module, size in manifest.modules.items()
        },
        **({"saved": manifest.saved_bytes} if manifest.saved else {}),
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "mix" in row:
        return (mix_text(row["mix"]), "", "", "", "")
    if "damage" in row:
        return ("damaged", "", "", "", "")
    ranks = sorted({module["rank"] for module in row["modules"].values()})
    saved = row.get("saved", {})
    pages = sum(module["pages"] for module in row["modules"].values()) + len(saved)
    modules = ", ".join([*(each.removesuffix("_proj") for each in row["modules"]), *(f"own {each}" for each in saved)])
    return (modules, ", ".join(map(str, ranks)), str(pages), f"{row['bytes'] / 1e6:.1f}", row["stored"])
