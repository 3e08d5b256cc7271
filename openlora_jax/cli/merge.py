"""`openlora convert merge` and `openlora convert export`: new adapters and bases out of a store's adapters."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import DownloadColumn

from openlora_jax.adapters.recipe import MajoritySign, Method, Recipe
from openlora_jax.cli.members import weighted
from openlora_jax.cli.progress import shown_progress
from openlora_jax.config import Dtype
from openlora_jax.errors import AdapterExists, InvalidRequest

if TYPE_CHECKING:
    from convert.merge import Weighted, Wish
    from openlora_jax.adapters.store import AdapterStore

StoreOption = Annotated[Path, typer.Option(help="The store's directory.", show_default=False)]


def merge(
    members: Annotated[list[str], typer.Argument(metavar="NAME=WEIGHT", help="Adapters of the store, and weights.")],
    store: StoreOption,
    name: Annotated[str | None, typer.Option(help="What requests will call the merged adapter.")] = None,
    into_base: Annotated[
        Path | None, typer.Option(help="Directory to make: a base with the exact sum in its weights.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The converted base model of the members; needed for --into-base.")
    ] = None,
    method: Annotated[
        Method | None, typer.Option(help="As in peft's add_weighted_adapter.", show_default=False)
    ] = None,
    density: Annotated[float | None, typer.Option(help="Part of the values to keep, above 0 and at most 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what dare_* drops; 0 by default.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of svd and *_svd; the largest of the members by default.")] = None,
    majority_sign: Annotated[MajoritySign | None, typer.Option(help="Of ties and dare_ties; total by default.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the merged adapter as stored; float32 by default.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the name from the adapter that has it.")] = False,
) -> None:
    """Merges adapters into a new adapter (--name) or into their base model (--into-base), and prints a JSON report.

    A weighted sum needs no merge: requests may name a mix. This is for what is not a sum, and for other engines.
    """
    from convert.merge import Weighted, Wish
    from openlora_jax.adapters.store import AdapterStore

    parts = [Weighted(*weighted("members", text, "=", "legal=0.6 tone=0.4")) for text in members]
    if (name is None) == (into_base is None):
        raise InvalidRequest("--name", "give --name for a merged adapter, or --into-base for a merged base model")
    if name is not None:
        if method is None:
            raise InvalidRequest("--method", "name one, such as ties; `openlora convert merge --help` lists them")
        wish = Wish(method=method, density=density, seed=seed, rank=rank, majority_sign=majority_sign)
        report = _into_adapter(AdapterStore(store), name, parts, base, wish, dtype or "float32", replace)
    elif into_base is not None:
        options: dict[str, object] = {"--method": method, "--density": density, "--seed": seed, "--rank": rank}
        options |= {"--majority-sign": majority_sign, "--dtype": dtype, "--replace": replace or None}
        for option, value in options.items():
            if value is not None:
                raise InvalidRequest(option, "has no part in --into-base, which adds the exact sum; leave it out")
        if base is None:
            raise InvalidRequest("--base", "--into-base needs the converted base model of the members")
        report = _into_base(AdapterStore(store), parts, base, into_base)
    typer.echo(json.dumps(report, indent=2))


def export(
    name: Annotated[str, typer.Argument(help="The adapter's name.", show_default=False)],
    store: StoreOption,
    out: Annotated[Path, typer.Option(help="Directory to make.", show_default=False)],
    base: Annotated[Path | None, typer.Option(help="Its converted base model; needed for DoRA.")] = None,
) -> None:
    """Writes an adapter as a directory that peft loads, and prints a JSON report."""
    from convert.adapter import BaseWeights
    from convert.merge import export_adapter
    from openlora_jax.adapters.store import AdapterStore
    from openlora_jax.model.checkpoint import BaseManifest

    opened = AdapterStore(store)
    digest = opened.resolve(name)
    manifest, tensors = opened.read(digest)
    weights = BaseWeights(base, BaseManifest.read(base)) if base else None
    report = export_adapter(manifest, tensors, out, weights)
    typer.echo(json.dumps({"name": name, "digest": digest, **report}, indent=2))


def _into_adapter(
    store: "AdapterStore",
    name: str,
    members: Sequence["Weighted"],
    base: Path | None,
    wish: "Wish",
    dtype: Dtype,
    replace: bool,
) -> dict[str, Any]:
    from convert.merge import merge, read_sources, recipe_of
    from openlora_jax.adapters.registry import check_name
    from openlora_jax.model.checkpoint import BaseManifest

    check_name(name)
    with shown_progress("reading") as progress:
        sources = read_sources(store, members, BaseManifest.read(base).digest if base else None)
        recipe = recipe_of(wish, sources)
        if not replace:
            _check_free(store, name, recipe)
        merged = merge(sources, recipe, dtype, progress)
        store.install(name, merged.manifest, merged.tensors, replace)
    warnings = [] if recipe.method == wish.method else ["a single adapter is merged by linear, whatever the method"]
    return {"name": name, **merged.report, "warnings": warnings}


def _into_base(store: "AdapterStore", members: Sequence["Weighted"], base: Path, destination: Path) -> dict[str, Any]:
    from convert.merge import merge_into_base, read_sources
    from openlora_jax.model.checkpoint import BaseManifest

    with shown_progress("reading", DownloadColumn()) as progress:
        sources = read_sources(store, members, BaseManifest.read(base).digest, into_base=True)
        return merge_into_base(base, sources, destination, progress)


def _check_free(store: "AdapterStore", name: str, recipe: Recipe) -> None:
    """Finds before the work that the name is taken by something else. Raises AdapterExists."""
    current = store.registrations().get(name)
    if current and store.manifest(current.digest).recipe != recipe:
        raise AdapterExists(name, current.digest)
