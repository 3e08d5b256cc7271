"""`python -m openlora_jax.demo.training --base DIR --out DIR [--only NAME]`: trains, saves and scores the adapters."""

import argparse
import json
import logging
import random
import time
from pathlib import Path

from peft import PeftModel

from openlora_jax.demo.training.behaviour import Behaviour
from openlora_jax.demo.training.evaluation import answer, mentions, score
from openlora_jax.demo.training.finetune import load_base, save, train
from openlora_jax.demo.training.json_objects import JSON
from openlora_jax.demo.training.pirate import PIRATE
from openlora_jax.demo.training.sentiment import SENTIMENT
from openlora_jax.demo.training.sql import SQL

BEHAVIOURS = {behaviour.name: behaviour for behaviour in (JSON, SQL, SENTIMENT, PIRATE)}
SEED = 1

log = logging.getLogger(__name__)


def evaluate(base: Path, directory: Path, behaviour: Behaviour) -> dict[str, object]:
    """The held-out scores of the saved adapter and of the base, with every answer for a reader to check."""
    examples = behaviour.make_held_out(random.Random(f"{behaviour.name} held out"))
    model, tokenizer = load_base(base)
    without = answer(model, tokenizer, behaviour, examples)
    told = answer(model, tokenizer, behaviour, examples, told=True)
    adapted = answer(PeftModel.from_pretrained(model, directory), tokenizer, behaviour, examples)
    columns = {"with_adapter": adapted, "base": without, "base_told": told}
    return {
        "score": {column: score(behaviour, examples, answers) for column, answers in columns.items()},
        "mentions": {column: mentions(examples, answers) for column, answers in columns.items()},
        "answers": [
            {"prompt": e.prompt, "wanted": e.answer, "with_adapter": a, "base": b, "base_told": t}
            for e, a, b, t in zip(examples, adapted, without, told, strict=True)
        ],
    }


def main() -> None:
    """Makes the adapters one after the other; each is on disk before the next begins."""
    parser = argparse.ArgumentParser(prog="python -m openlora_jax.demo.training", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face directory of SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, required=True, help="directory that receives one directory per adapter")
    parser.add_argument("--only", choices=sorted(BEHAVIOURS), help="make this adapter alone")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for behaviour in [BEHAVIOURS[arguments.only]] if arguments.only else BEHAVIOURS.values():
        directory = arguments.out / behaviour.name
        started = time.monotonic()
        size = save(train(arguments.base, behaviour, SEED), directory)
        trained = time.monotonic()
        result = evaluate(arguments.base, directory, behaviour)
        (arguments.out / f"{behaviour.name}.scores.json").write_text(json.dumps(result, indent=1) + "\n")
        log.info(
            "%s: %d bytes, trained in %.0f s, scored in %.0f s; held out: score %s, mentions %s",
            behaviour.name, size, trained - started, time.monotonic() - trained, result["score"], result["mentions"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
