"""`openlora score`: the log-probability of given completions."""

from typing import Annotated

import typer

from openlora_jax.cli.generate import (
    BackendOption,
    BaseOption,
    ConfigOption,
    PriorityOption,
    ServerOption,
    StoreOption,
    TenantOption,
    TtftOption,
    given,
)
from openlora_jax.cli.rows import STANDARD, check_output, read_lines, score_line, write_lines
from openlora_jax.cli.session import open_session
from openlora_jax.inputs import parse_score


def score(
    source: Annotated[str, typer.Option("--input", help="JSON lines to score; - is stdin.", show_default=False)],
    base: BaseOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    backend: BackendOption = None,
    server: ServerOption = None,
    output: Annotated[str, typer.Option(help="Where to write JSON lines; - is stdout.")] = STANDARD,
    priority: PriorityOption = None,
    tenant: TenantOption = None,
    ttft_deadline: TtftOption = None,
) -> None:
    """Scores each row's completion, token by token, given what precedes it.

    A row is a JSON object with prompt, messages or prompt_ids, with completion or completion_ids, and with adapter or
    mix, if it is not for the base model; also priority, tenant and ttft_deadline, which options may give for all. Its
    output line has the logprobs, and whether each token was the most likely.
    """
    defaults = given({"priority": priority, "tenant": tenant, "ttft_deadline": ttft_deadline})
    lines = read_lines(source, lambda fields: parse_score({**defaults, **fields}))
    check_output(output)
    with open_session(base, store, config, backend, server, lines) as session:
        write_lines(output, lines, session.score(lines), score_line)
