"""`json`: a description of a person, a product or an event in, one compact JSON object out."""

import json
import random
import string

from openlora_jax.demo.training.behaviour import Behaviour, Example, pick
from openlora_jax.demo.training.json_descriptions import EXTRAS, HELD_OUT, LEADS, TRAINING, Split

Value = str | int

FIELDS = {
    "person": ("name", "age", "job", "city"),
    "product": ("name", "item", "colour", "price"),
    "event": ("name", "city", "day", "price"),
}


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def make_values(rng: random.Random, split: Split, kind: str) -> dict[str, Value]:
    """A value for every field of the kind."""
    values = split.values
    name = {
        "person": f"{pick(rng, values['first'])} {pick(rng, values['last'])}",
        "product": f"{pick(rng, values['brand'])} {rng.choice([rng.randrange(2, 100), rng.randrange(100, 999)])}",
        "event": pick(rng, values["event_name"]),
    }[kind]
    return {
        "name": name,
        "age": rng.randrange(18, 90),
        "job": pick(rng, values["job"]),
        "city": pick(rng, values["city"]),
        "item": pick(rng, values["item"]),
        "colour": pick(rng, values["colour"]),
        "day": f"{rng.randrange(1, 29)} {pick(rng, values['month'])}",
        "price": rng.choice([rng.randrange(2, 100), rng.randrange(100, 2000)]),
    }


def make_example(rng: random.Random, split: Split, kind: str) -> Example:
    """One description; its object has the fields that the template mentions, in the kind's order."""
    template = pick(rng, split.templates[kind])
    values = make_values(rng, split, kind)
    a_job, a_item = with_article(str(values["job"])), with_article(str(values["item"]))
    text = template.format(**values, a_job=a_job, a_job_upper=a_job.capitalize(), a_item=a_item)
    mentioned = {
        name.removeprefix("a_").removesuffix("_upper") for _, name, _, _ in string.Formatter().parse(template) if name
    }
    fields = {"type": kind} | {name: values[name] for name in FIELDS[kind] if name in mentioned}
    prompt = pick(rng, LEADS).format(kind=kind).capitalize() + text + pick(rng, EXTRAS)
    return Example(prompt, json.dumps(fields, separators=(",", ":")))


def make_training(rng: random.Random) -> list[Example]:
    return [make_example(rng, TRAINING, kind) for _ in range(320) for kind in FIELDS]


def make_held_out(rng: random.Random) -> list[Example]:
    return [make_example(rng, HELD_OUT, kind) for _ in range(14) for kind in FIELDS]


def is_right(example: Example, text: str) -> bool:
    """The whole answer is one JSON object with exactly the wanted fields and values."""
    try:
        return bool(json.loads(text) == json.loads(example.answer))
    except json.JSONDecodeError:
        return False


JSON = Behaviour(
    name="json",
    make_training=make_training,
    make_held_out=make_held_out,
    is_right=is_right,
    instruction=(
        "Answer with one JSON object and nothing else. Fields: type (person, product or event), then for a person "
        "name, age, job, city; for a product name, item, colour, price; for an event name, city, day, price. "
        "Numbers are bare."
    ),
    max_new_tokens=56,
    lora={"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
)
