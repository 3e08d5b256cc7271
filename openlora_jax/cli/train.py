"""`openlora train`: a LoRA adapter of your own, from prompts and the completions that are wanted."""

import json
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from openlora_jax.cli.generate import BackendOption
from openlora_jax.cli.progress import shown_progress
from openlora_jax.cli.rows import located, read_lines
from openlora_jax.inputs import parse_score

ALL = "all-linear"


def train(
    base: Annotated[Path, typer.Option(help="Converted base model, which stays as it is.", show_default=False)],
    data: Annotated[str, typer.Option(help="JSON lines to learn from; - is stdin.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory to make, as peft saves adapters.", show_default=False)],
    rank: Annotated[int, typer.Option(help="Of every target module.")] = 16,
    alpha: Annotated[float, typer.Option(help="The adapter is scaled by alpha / rank.")] = 32.0,
    targets: Annotated[str, typer.Option(metavar="MODULE,MODULE", help="Modules of each layer to adapt.")] = ALL,
    steps: Annotated[int, typer.Option(help="Updates.")] = 100,
    batch: Annotated[int, typer.Option(help="Rows of an update.")] = 8,
    lr: Annotated[float, typer.Option(help="Learning rate, after warm-up and before it falls.")] = 5e-4,
    seed: Annotated[int, typer.Option(help="Of the first values and of the order of rows.")] = 0,
    backend: BackendOption = None,
) -> None:
    """Trains a LoRA adapter on a frozen base model, and prints a JSON report.

    A row is a JSON object with prompt, messages or prompt_ids, and with completion or completion_ids, of which a text
    ends with the model's end token. `openlora convert adapter` takes what is written.
    """
    from openlora_jax.config import EngineConfig
    from openlora_jax.engine.admission import Admission
    from openlora_jax.llm import resolve_ops
    from openlora_jax.model.checkpoint import BaseManifest
    from openlora_jax.model.parameters import Parameters
    from openlora_jax.tokenizer import Tokenizer
    from openlora_jax.training import peft_checkpoint
    from openlora_jax.training.data import Example
    from openlora_jax.training.recipe import Recipe
    from openlora_jax.training.train import train

    settings = {"rank": rank, "alpha": alpha, "steps": steps, "batch": batch, "learning_rate": lr, "seed": seed}
    modules = {} if targets == ALL else {"targets": tuple(targets.split(","))}
    recipe = Recipe.of(settings | modules)
    peft_checkpoint.check_destination(out)
    manifest, tokenizer = BaseManifest.read(base), Tokenizer.load(base)
    model = manifest.config
    limits = EngineConfig(max_model_len=min(EngineConfig().max_model_len, model.max_position))
    examples = []
    for line in read_lines(data, parse_score):
        with located(line.where):
            admission = Admission(limits, model.vocab_size)
            examples.append(Example.of(line.row, tokenizer, admission, model.eos_token_ids[:1]))
    ops = resolve_ops(backend or "auto")
    with shown_progress("loading") as progress:
        parameters = Parameters.read(base, model, "float32")
        adapter, losses = train(parameters, model, ops, examples, recipe, progress)
    peft_checkpoint.write_peft(out, adapter, recipe, manifest.source)
    report = {"adapter": str(out), "examples": len(examples), "steps": steps}
    typer.echo(json.dumps(report | {"loss": {"first": fmean(losses[:10]), "last": fmean(losses[-10:])}}, indent=2))
