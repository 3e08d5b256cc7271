"""What rounding adapters to few bits costs, and what it saves: errors, answers, bytes and loads, adapter by adapter.

The demo's adapters answer what their training held out. The others are random, with spectra as training leaves them:
singular values that fall, and input columns that differ in size.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

import jax
import jax.numpy as jnp
import numpy as np

from openlora_jax.adapters.artifact import DTYPES, Tensor
from openlora_jax.adapters.few_bits import Rounding, in_few_bits
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.modules import INT4, MODULES, PAGE_RANK
from openlora_jax.adapters.pages import placed
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import synthetic_manifest, synthetic_tensors
from openlora_jax.bench.long_tail import page_cache
from openlora_jax.demo.training.behaviour import Behaviour
from openlora_jax.demo.training.json_objects import JSON
from openlora_jax.demo.training.pirate import PIRATE
from openlora_jax.demo.training.sentiment import SENTIMENT
from openlora_jax.demo.training.sql import SQL
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.llm import LLM
from openlora_jax.model.config import ModelConfig

BEHAVIOURS = {behaviour.name: behaviour for behaviour in (JSON, SQL, SENTIMENT, PIRATE)}
FORMS = ("16 bits", "int8", "int4")
LOADS = (*FORMS, "int4 pages")
"""As plain pages; and int4 as it is."""
ATTENTION, LINEAR = MODULES[:4], MODULES[:7]
KINDS = tuple((modules, rank) for rank in (4, 8, 16, 32, 64) for modules in (("q_proj", "v_proj"), ATTENTION, LINEAR))
RANDOM = 20
SCORED = 4
"""Held-out answers, of each behaviour, whose log-probabilities are compared."""
ROUNDS = 5
"""Of loads."""

Adapter = tuple[Manifest, Mapping[str, Tensor]]


@dataclass(slots=True)
class Measured:
    """One adapter; what is by form is in the order of `FORMS`.

    Attributes:
        rank: the largest.
        sizes: bytes, by form.
        errors: of the deltas of all layers and modules: what int8 and int4 changed, relative.
        scores: share of right answers, by form; none where there is no task.
        moved: mean distance of a token's log-probability to that with 16 bits, in int8 and int4.
        without: the same of the base, which shows what the adapter does at all.
        loads: seconds from files in the page cache to the pool, by `LOADS`.
        cold: the same from files out of it.
        stayed: files that could not be taken out of it.
    """

    name: str
    rank: int
    modules: int
    sizes: list[int] = field(default_factory=list)
    errors: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    without: float = 0.0
    loads: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    stayed: int = 0


def random_adapters(config: ModelConfig, base_digest: str) -> dict[str, Adapter]:
    """As many as `RANDOM`, each a function of its number."""
    made: dict[str, Adapter] = {}
    for seed in range(RANDOM):
        modules, rank = KINDS[seed % len(KINDS)]
        tensors, rng = synthetic_tensors(config, modules, rank, seed), np.random.default_rng(seed)
        for name, tensor in tensors.items():
            ranks = np.arange(1, tensor.shape[1] * PAGE_RANK + 1, dtype=np.float32)
            falling = (ranks ** -rng.uniform(0.25, 0.75)).astype(np.float32).reshape(1, -1, PAGE_RANK, 1)
            columns = rng.lognormal(0, 0.5, tensor.shape[-1]).astype(np.float32)
            tensors[name] = tensor * falling * columns
        made[f"random {seed + 1}"] = (synthetic_manifest(config, base_digest, modules, rank), tensors)
    return made


def install(store: AdapterStore, adapters: Mapping[str, Adapter]) -> list[Measured]:
    """Each adapter in every form, as `NAME.FORM`."""
    found = []
    for name, (manifest, tensors) in adapters.items():
        rank = max(size.rank for size in manifest.modules.values())
        measured = Measured(name, rank, len(manifest.modules))
        narrow = {key: tensor.astype(DTYPES["bfloat16"]) for key, tensor in tensors.items()}
        forms = [(manifest.model_copy(update={"dtype": "bfloat16"}), narrow)]
        forms += [in_few_bits(manifest, tensors, Rounding(kind)) for kind in ("int8", "int4")]
        for form, (stated, arrays) in zip(FORMS, forms, strict=True):
            store.install(_named(name, form), stated, arrays)
            measured.sizes.append(stated.nbytes)
            errors = [error for size in stated.modules.values() for error in size.delta_errors or () if error]
            measured.errors += [errors] if errors else []
        found.append(measured)
    return found


def answer(llm: LLM, adapters: Sequence[Measured]) -> None:
    """Scores of the demo's adapters, and what rounding moved in the log-probabilities of all."""
    held_out = {
        name: behaviour.make_held_out(random.Random(f"{name} held out")) for name, behaviour in BEHAVIOURS.items()
    }
    for measured in adapters:
        if behaviour := BEHAVIOURS.get(measured.name):
            measured.scores = _scores(llm, behaviour, [_named(measured.name, form) for form in FORMS])
        own = held_out.get(measured.name)
        examples = own[:SCORED] if own else [each for of in held_out.values() for each in of[: SCORED // 4]]
        prompts = [llm.tokenizer.encode_chat([{"role": "user", "content": each.prompt}]) for each in examples]
        wanted = [llm.tokenizer.encode(each.answer, special=False) for each in examples]
        names = [_named(measured.name, form) for form in FORMS]
        exact, *others = (
            [logprob for scored in llm.score(prompts, wanted, adapters=name) for logprob in scored.logprobs]
            for name in (*names, None)
        )
        *measured.moved, measured.without = (mean(np.abs(np.subtract(exact, other)).tolist()) for other in others)


def load(store: AdapterStore, config: ModelConfig, dtype: str, adapters: Sequence[Measured]) -> None:
    """Times every adapter's way from the files to the device, in turns; what was not compiled before does not count.

    Raises:
        InvalidConfig: this system cannot take files out of its page cache.
    """
    capacities = dict.fromkeys((*LINEAR, *INT4), 1 + max(measured.rank for measured in adapters) // PAGE_RANK + 1)
    pool = AdapterPool.create(config, capacities, jnp.dtype(dtype))
    pool.compile()

    def seconds(digest: str, arm: str) -> float:
        begin = time.perf_counter()
        manifest, tensors = store.read(digest)
        counts = placed(manifest.pages, capacities if arm == LOADS[-1] else {})
        pages = {name: tuple(range(1, 1 + count)) for name, count in counts.items()}
        pool.write(pages, pool.stage(counts, tensors))
        jax.block_until_ready(pool.arrays)
        return time.perf_counter() - begin

    for measured in adapters:
        loads, cold = ({arm: list[float]() for arm in LOADS} for _ in range(2))
        for _ in range(1 + ROUNDS):
            for arm in LOADS:
                digest = store.resolve(_named(measured.name, arm.removesuffix(" pages")))
                measured.stayed += page_cache.drop(store, [digest])
                cold[arm].append(seconds(digest, arm))
                loads[arm].append(seconds(digest, arm))
        measured.loads, measured.cold = ([median(found[arm][1:]) for arm in LOADS] for found in (loads, cold))


def _scores(llm: LLM, behaviour: Behaviour, adapters: Sequence[str]) -> list[float]:
    """Of each adapter, greedily; all of them in one batch."""
    examples = behaviour.make_held_out(random.Random(f"{behaviour.name} held out"))
    prompts = [[{"role": "user", "content": example.prompt}] for example in examples] * len(adapters)
    names = [name for name in adapters for _ in examples]
    answers = llm.generate(prompts, SamplingParams(max_tokens=behaviour.max_new_tokens), names)
    texts = iter(each.outputs[0].text for each in answers)
    return [mean(behaviour.is_right(example, next(texts)) for example in examples) for _ in adapters]


def _named(name: str, form: str) -> str:
    return f"{name}.{form}".replace(" ", "-")
