"""`openlora bench quantised`: what few bits cost a base model, and save."""

from typing import Annotated

import typer

from openlora_jax.cli.bench_options import BaseOption, CacheOption, JsonOption, MarkdownOption, write
from openlora_jax.cli.console import output


def quantised(
    base: BaseOption,
    tokens: Annotated[int, typer.Option(min=1, help="To score, at least.")] = 50_000,
    rounds: Annotated[int, typer.Option(min=1, help="Of decode steps; each runs every format.")] = 7,
    cache: CacheOption = None,
    json_file: JsonOption = None,
    markdown: MarkdownOption = None,
) -> None:
    """Perplexity, bytes, memory and decode steps of a base model in every format, and of a KV cache in int8.

    The model is tuned first, off the grid of the format that it came in; that takes torch. Takes half an hour on two
    cores with a model of 135 million weights.
    """
    from openlora_jax.bench.quantised import report
    from openlora_jax.bench.quantised.measure import measure
    from openlora_jax.cli.loading import user_cache
    from openlora_jax.cli.progress import shown_progress

    with shown_progress("reading") as progress:
        results = measure(base, cache or user_cache() / "bench", tokens, rounds, progress)
    console = output()
    console.print(report.heading(results))
    for grid in report.grids(results):
        console.print(grid.rich())
    write(json_file, report.setup(), report.as_json(results))
    if markdown:
        markdown.write_text(report.markdown(results))
