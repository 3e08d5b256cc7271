"""`openlora generate`: one prompt, streamed, or a file of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from openlora_jax.cli.members import weighted
from openlora_jax.cli.rows import STANDARD, Line, check_output, generation_line, read_lines, write_lines
from openlora_jax.cli.session import open_session
from openlora_jax.config import BackendName
from openlora_jax.engine.scheduling_params import Priority
from openlora_jax.errors import InvalidRequest
from openlora_jax.inputs import TARGET_KEYS, GenerateInput, parse_generate
from openlora_jax.untrusted import parse_json_object

BaseOption = Annotated[str | None, typer.Option(help="Converted base model.", show_default=False)]
StoreOption = Annotated[str | None, typer.Option(help="Adapter store.", show_default=False)]
ConfigOption = Annotated[
    str | None, typer.Option(help="A shipped configuration's name, such as cpu, or a YAML file.", show_default=False)
]
BackendOption = Annotated[
    BackendName | None,
    typer.Option(envvar="OPENLORA_BACKEND", help="Of the engine, instead of the configuration's.", show_default=False),
]
ServerOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Ask this server; no base is loaded.", show_default=False)
]

PriorityOption = Annotated[Priority | None, typer.Option(help="Class beside other requests.", show_default=False)]
TenantOption = Annotated[str | None, typer.Option(help="Whose request it is, for fairness.", show_default=False)]
TtftOption = Annotated[
    float | None, typer.Option(help="Seconds to the first token; refused if too short.", show_default=False)
]
TpotOption = Annotated[
    float | None, typer.Option(help="Seconds from token to token; refused if too short.", show_default=False)
]


def generate(
    base: BaseOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    backend: BackendOption = None,
    server: ServerOption = None,
    prompt: Annotated[str | None, typer.Option(help="Text to continue; the answer is streamed.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt as a user's message.")] = False,
    adapter: Annotated[str | None, typer.Option(help="The adapter that answers.", show_default=False)] = None,
    mix: Annotated[
        str | None, typer.Option(metavar="NAME=W,NAME=W", help="Adapters and weights.", show_default=False)
    ] = None,
    ensemble: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Members, weights and method, as in a row.", show_default=False),
    ] = None,
    source: Annotated[str | None, typer.Option("--input", help="JSON lines to answer; - is stdin.")] = None,
    output: Annotated[str, typer.Option(help="Where to write JSON lines; - is stdout.")] = STANDARD,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.", show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default=False)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus to sample from.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Reproduces an answer.", show_default=False)] = None,
    priority: PriorityOption = None,
    tenant: TenantOption = None,
    ttft_deadline: TtftOption = None,
    tpot_deadline: TpotOption = None,
) -> None:
    """Continues a prompt, or each row of a file, with the base model, an adapter, a mix of adapters, or an ensemble.

    A row is a JSON object with prompt, messages or prompt_ids, and any of adapter, mix, ensemble, the sampling
    parameters, and priority, tenant, ttft_deadline and tpot_deadline. What options say holds for rows that do not say
    it themselves.
    """
    if (prompt is None) == (source is None):
        raise InvalidRequest("--prompt", "give --prompt for one text, or --input for a file of rows")
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    deadlines = {"ttft_deadline": ttft_deadline, "tpot_deadline": tpot_deadline}
    scheduling = {"priority": priority, "tenant": tenant, **deadlines}
    defaults = given(sampling | scheduling) | _target(adapter, mix, ensemble)

    def parse(fields: Mapping[str, Any]) -> GenerateInput:
        own_target = TARGET_KEYS & fields.keys()
        kept = {key: value for key, value in defaults.items() if not (own_target and key in TARGET_KEYS)}
        return parse_generate({**kept, **fields})

    if prompt is None:
        lines = read_lines(str(source), parse)
        check_output(output)
        with open_session(base, store, config, backend, server, lines) as session:
            write_lines(output, lines, session.generate(lines), generation_line)
    else:
        row = parse({"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt})
        with open_session(base, store, config, backend, server, [Line("--prompt", row)]) as session:
            for text in session.stream(row):
                typer.echo(text, nl=False)
            typer.echo()


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were."""
    return {key: value for key, value in options.items() if value is not None}


def _target(adapter: str | None, mix: str | None, ensemble: str | None) -> dict[str, Any]:
    """The fields that the options stand for."""
    fields: dict[str, Any] = {} if adapter is None else {"adapter": adapter}
    if mix is not None:
        members = (weighted("--mix", text, "=", "--mix legal=0.6,tone=0.4") for text in mix.split(","))
        fields["mix"] = [{"adapter": name, "weight": weight} for name, weight in members]
    if ensemble is not None:
        fields["ensemble"] = parse_json_object(Path("--ensemble"), ensemble.encode())
    return fields
