"""Perplexity of every arm, its bytes, and how long its decode steps take."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from jaxtyping import Int

from openlora_jax import __version__
from openlora_jax.bench.quantised.arms import ARMS, Arm
from openlora_jax.bench.quantised.memory import peak
from openlora_jax.bench.quantised.perplexity import perplexity, windows
from openlora_jax.bench.quantised.tensors import errors
from openlora_jax.bench.quantised.text import library_text
from openlora_jax.bench.quantised.tuned_base import RECIPE, make_tuned_base
from openlora_jax.bench.samples import Samples
from openlora_jax.bench.throughput import decode_step_ms
from openlora_jax.config import EngineConfig
from openlora_jax.errors import InvalidConfig
from openlora_jax.llm import LLM
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.model.stored import weight_bytes
from openlora_jax.model.weight import Weight
from openlora_jax.model.weights import weight_table
from openlora_jax.progress import Progress
from openlora_jax.quantization.format import Quantization, problem
from openlora_jax.tokenizer import Tokenizer

CONVERTING, LOADING = "openlora_jax", "openlora_jax.bench.quantised.memory"
"""Modules that are run."""
FOUR_BITS = Quantization(format="int4", group=32)

ROWS = (1, 16)
POSITION = 96
"""Tokens that each row of a decode step has behind it."""
LONG = 960
"""The same in a long context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Of every arm, by name, or by the folder of its base.

    Attributes:
        text: the digest of the library's text.
        scored: tokens of the text that a perplexity is of.
        parameters: of the model.
        largest: bytes of its largest tensor in float32.
        sizes: bytes of the weights of each base.
        converting, loading: bytes that a process holds at its height, beyond what it holds without a model.
        perplexity: of each arm.
        steps: milliseconds of decode steps, by rows and tokens behind each.
        errors: format -> distribution of a matrix's numbers -> relative error.
    """

    text: str
    scored: int
    parameters: int
    largest: int
    sizes: dict[str, int]
    converting: dict[str, int]
    loading: dict[str, int]
    perplexity: dict[str, float]
    steps: dict[str, dict[tuple[int, int], Samples]]
    errors: dict[str, dict[str, float]]


def measure(base: Path, cache: Path, tokens: int, rounds: int, progress: Progress) -> Results:
    """Of a base model that is tuned off its grid, once, and kept in the cache.

    The cache is of what made it: another recipe, or another release of what computes, finds nothing there.

    Args:
        base: a converted base model.
        cache: where that one, and its perplexities, are kept.
        tokens: to score, at least.
        rounds: of decode steps.
        progress: told what is under way.

    Raises:
        InvalidConfig: no torch or transformers to tune with, matrices that cannot be in 4 bits, a conversion that
            failed, or a system that does not tell what a process holds.
    """
    manifest = BaseManifest.read(base)
    table = weight_table(manifest.config)
    _refuse_widths(table)
    alone = peak(LOADING)
    text, tokenizer = library_text(), Tokenizer.load(base)
    cache.mkdir(parents=True, exist_ok=True)
    tuned = cache / f"tuned-{manifest.digest[:16]}-{text.digest[:16]}-{RECIPE}"
    if not tuned.exists():
        make_tuned_base(base, tuned, tokenizer.encode(text.tuned_on), progress)
    with TemporaryDirectory(dir=cache) as folder:
        bases, converting = _converted(tuned, Path(folder), progress)
        loading = {name: peak(LOADING, str(path)) - alone for name, path in bases.items()}
        texts = windows(tokenizer.encode(text.held_out), tokens)
        return Results(
            text=text.digest,
            scored=texts.size - len(texts),
            parameters=sum(math.prod(weight.shape) for weight in table.values()),
            largest=4 * max(math.prod(weight.shape) for weight in table.values()),
            sizes={name: weight_bytes(BaseManifest.read(path).config, "float32") for name, path in bases.items()},
            converting=converting,
            loading=loading,
            steps=step_times(bases, rounds, progress),
            perplexity=perplexities(bases, texts, cache / "perplexity.json", progress),
            errors=errors(),
        )


def _refuse_widths(table: Mapping[str, Weight]) -> None:
    for name, weight in table.items():
        if len(weight.shape) == 2 and (reason := problem(weight.shape[1], FOUR_BITS)):
            raise InvalidConfig("--base", f"is measured in 4 bits too, where {name} cannot be: {reason}")


def _converted(source: Path, folder: Path, progress: Progress) -> tuple[dict[str, Path], dict[str, int]]:
    """The base of every arm, and what it took to make it; refused, as its destination is in use, it takes the rest.

    In plain memory, as a user's conversion has it: a benchmark itself, as whatever computes, starts with huge pages.
    """
    arms = {arm.folder: arm for arm in ARMS}
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    alone = peak(CONVERTING, "convert", "base", str(source), str(source), status=2, environment=plain)
    held = {}
    for done, (name, arm) in enumerate(arms.items()):
        progress(f"converting to {arm.name}", done, len(arms))
        command = ("convert", "base", str(source), str(folder / name), *arm.options)
        held[name] = peak(CONVERTING, *command, environment=plain) - alone
    return {name: folder / name for name in arms}, held


def perplexities(
    bases: Mapping[str, Path], texts: Int[np.ndarray, "X L"], kept: Path, progress: Progress
) -> dict[str, float]:
    """By arm. They are always the same, and take minutes each: what is known is kept in a file."""
    software = f"openlora-jax {__version__} jax {jax.__version__}"
    text = hashlib.sha256(texts.tobytes()).hexdigest()
    known: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    found = {}
    for arm in ARMS:
        base = bases[arm.folder]
        key = f"{BaseManifest.read(base).digest} {arm.kv_dtype} {text} {software}"
        if key not in known:
            known[key] = perplexity(base, arm.kv_dtype, texts, partial(_named, progress, arm.name))
            kept.write_text(json.dumps(known, indent=2) + "\n")
        found[arm.name] = known[key]
    return found


def _named(progress: Progress, name: str, stage: str, done: int, total: int) -> None:
    progress(f"{stage} of {name}", done, total)


def step_times(bases: Mapping[str, Path], rounds: int, progress: Progress) -> dict[str, dict[tuple[int, int], Samples]]:
    """By arm; every round takes every arm once, in turn."""
    cases = [(rows, position) for rows in ROWS for position in (POSITION, LONG)]
    found = {arm.name: {case: Samples(arm.name, "ms") for case in cases} for arm in ARMS}
    with ExitStack() as engines:
        llms = {}
        for done, arm in enumerate(ARMS):
            progress(f"loading {arm.name}", done, len(ARMS))
            llms[arm.name] = engines.enter_context(loaded(arm, bases[arm.folder]))
        for round_number in range(-1, rounds):
            progress("decode steps", round_number + 1, rounds + 1)
            for name, llm in llms.items():
                for rows, position in cases:
                    taken = decode_step_ms(llm, [{}] * rows, position)
                    if round_number >= 0:
                        found[name][rows, position].values.append(taken)
    return found


@contextmanager
def loaded(arm: Arm, base: Path) -> Iterator[LLM]:
    """An engine that decodes alone, or all rows in long contexts."""
    blocks = LONG // EngineConfig().kv_block + 1
    config = EngineConfig(
        max_rows=ROWS[-1],
        row_buckets=ROWS,
        chunk_buckets=(256,),
        max_model_len=LONG + 1,
        kv_blocks=1 + ROWS[-1] * blocks,
        kv_dtype="int8" if arm.kv_dtype == "int8" else None,
        pool_pages=2,
        wide_pool_pages=1,
    )
    with LLM(base, config=config) as llm:
        yield llm
