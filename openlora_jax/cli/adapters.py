"""`openlora adapters`: what a store holds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from openlora_jax.adapters.modules import MODULES
from openlora_jax.adapters.registry import Registration
from openlora_jax.errors import BadCheckpoint

if TYPE_CHECKING:
    from openlora_jax.adapters.store import AdapterStore

app = typer.Typer(no_args_is_help=True, help="List, inspect, verify and remove the adapters of a store.")

StoreOption = Annotated[Path, typer.Option("--store", help="The store's directory.", show_default=False)]
NameArgument = Annotated[str, typer.Argument(help="The adapter's name.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_adapters(store: StoreOption, as_json: JsonOption = False) -> None:
    """Lists the registered adapters."""
    opened = _open(store)
    rows = [_summary(opened, name, entry) for name, entry in sorted(opened.registrations().items())]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", Column("digest", no_wrap=True), "modules", "rank", "pages", "MB", "dtype", "registered")
    for row in rows:
        table.add_row(row["name"], row["digest"][:12], *_cells(row), row["registered"][:16])
    Console().print(table)


@app.command()
def inspect(name: NameArgument, store: StoreOption, as_json: JsonOption = False) -> None:
    """Shows one adapter: its digest, its base, and every module that it targets."""
    opened = _open(store)
    digest = opened.resolve(name)
    manifest = opened.manifest(digest)
    if as_json:
        typer.echo(json.dumps({"name": name, "digest": digest, **manifest.to_fields()}, indent=2))
        return
    typer.echo(f"{name}\ndigest {digest}\nbase   {manifest.base_digest}\ndtype  {manifest.dtype}")
    if manifest.recipe:
        typer.echo(f"merged {json.dumps(manifest.recipe.model_dump(exclude_none=True))}")
    if manifest.invocation_tokens:
        typer.echo(f"acts   from the last {manifest.invocation_tokens} of a prompt on")
    table = Table("module", "rank", "pages", "vector", "layers", "in", "out")
    for module in filter(manifest.modules.__contains__, MODULES):
        size = manifest.modules[module]
        sizes = (size.rank, size.pages, size.vector or "", size.layers, size.d_in, size.d_out)
        table.add_row(module, *map(str, sizes))
    Console().print(table)


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
def remove(name: NameArgument, store: StoreOption) -> None:
    """Removes a name, and the adapter's files if no other name stands for them."""
    _open(store).remove(name)
    typer.echo(f"removed {name}")


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
        "bytes": manifest.nbytes,
        "modules": {module: {"rank": size.rank, "pages": size.pages} for module, size in manifest.modules.items()},
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "damage" in row:
        return ("damaged", "", "", "", "")
    ranks = sorted({module["rank"] for module in row["modules"].values()})
    pages = sum(module["pages"] for module in row["modules"].values())
    modules = ", ".join(module.removesuffix("_proj") for module in row["modules"])
    return (modules, ", ".join(map(str, ranks)), str(pages), f"{row['bytes'] / 1e6:.1f}", row["dtype"])
