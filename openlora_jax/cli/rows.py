"""JSON lines in and out, for `generate` and `score`: read and checked whole, written in order as results come."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from openlora_jax.cli.progress import progress_bar
from openlora_jax.engine.request import Scored, TokenLogprobs
from openlora_jax.errors import OpenLoraError
from openlora_jax.inputs import GenerateInput, ScoreInput
from openlora_jax.outputs import Generation, Sample
from openlora_jax.untrusted import parse_json_object

STANDARD = "-"
"""The name of standard input and output."""

Row = TypeVar("Row", GenerateInput, ScoreInput)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Line(Generic[Row]):
    """A checked row, and where it stands: FILE:NUMBER."""

    where: str
    row: Row


def read_lines(path: str, parse: Callable[[Mapping[str, Any]], Row]) -> list[Line[Row]]:
    """Every row of a file of JSON lines; empty lines are skipped.

    Raises:
        OpenLoraError: what is wrong with the first bad row; its note says where.
        OSError: the file cannot be read.
    """
    lines: list[Line[Row]] = []
    with _opened(path) as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                where = f"{path}:{number}"
                fields = parse_json_object(Path(where), text)
                with located(where):
                    lines.append(Line(where, parse(fields)))
    return lines


def check_output(path: str) -> None:
    """Finds a wrong path before a model loads, without touching what is there. Raises OSError."""
    if path == STANDARD:
        return
    if Path(path).is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not Path(path).parent.is_dir():
        raise OSError(errno.ENOENT, "its folder does not exist", path)


def write_lines(
    path: str, lines: Sequence[Line[Row]], results: Iterable[Result], line_of: Callable[[Row, Result], dict[str, Any]]
) -> None:
    """Writes one JSON line a result, behind a progress bar on a terminal.

    Raises:
        OpenLoraError: what ended a row; its note says which.
        OSError: the file cannot be written.
    """
    upcoming = iter(results)
    with _created(path) as file, progress_bar() as bar:
        for line in bar.track(lines, description="rows"):
            with located(line.where):
                result = next(upcoming)
            text = json.dumps(line_of(line.row, result), ensure_ascii=False) + "\n"
            file.write(text.encode(errors="backslashreplace"))  # half a surrogate pair, as JSON has it
            file.flush()


def generation_line(row: GenerateInput, generation: Generation) -> dict[str, Any]:
    """The output line of a generation: the row's own keys, then the results."""
    with_logprobs = row.params.logprobs is not None
    return {
        **row.extra,
        "outputs": [_sample(sample, with_logprobs) for sample in generation.outputs],
        "seed": generation.seed,
        "adapter_digests": generation.adapter_digests,
        "usage": {
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": generation.completion_tokens,
        },
        "timings": asdict(generation.timings),
    }


def score_line(row: ScoreInput, scored: Scored) -> dict[str, Any]:
    """The output line of a scoring: the row's own keys, then the results."""
    return {**row.extra, **asdict(scored)}


@contextmanager
def located(where: str) -> Iterator[None]:
    """Notes on an error where its row stands."""
    try:
        yield
    except OpenLoraError as error:
        error.add_note(where)
        raise


def _sample(sample: Sample, with_logprobs: bool) -> dict[str, Any]:
    fields = {"text": sample.text, "token_ids": sample.token_ids, "finish_reason": sample.finish_reason}
    return fields | ({"logprobs": [_token(token) for token in sample.logprobs]} if with_logprobs else {})


def _token(token: TokenLogprobs) -> dict[str, Any]:
    top = [{"token_id": token_id, "logprob": logprob} for token_id, logprob in token.top.items()]
    return {"token_id": token.token_id, "logprob": token.logprob, "top": top}


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == STANDARD:
        yield sys.stdin.buffer
    else:
        with open(path, "rb") as file:
            yield file


@contextmanager
def _created(path: str) -> Iterator[BinaryIO]:
    if path == STANDARD:
        yield sys.stdout.buffer
    else:
        with open(path, "wb") as file:
            yield file
