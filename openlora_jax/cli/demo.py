"""`openlora demo`: a server, a batch for its adapters and one for mixes, their answers. `make demo` calls it."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from openlora_jax.errors import EngineStopped

if TYPE_CHECKING:
    from openlora_jax.demo.display import Answer
    from openlora_jax.demo.prompts import DemoPrompt
    from serving.client import Client

ANNOUNCEMENT = "serving on "
NEXT = """
Keep a server on 127.0.0.1:50051:    make serve
Ask it, in another shell:            {openlora} generate --server 127.0.0.1:50051 --chat --adapter pirate --prompt "Hi"
See its adapters:                    {openlora} adapters list --store {store}
Your own model and adapters:         README.md
"""


def demo(
    base: Annotated[str, typer.Option(help="SmolLM2-135M-Instruct, converted.", show_default=False)],
    store: Annotated[str, typer.Option(help="A store with the demo's adapters.", show_default=False)],
) -> None:
    """Serves the demo's adapters, sends a batch for all of them and one for mixes, shows the answers and stops."""
    from openlora_jax.demo.prompts import PROMPTS, SLIDER
    from serving.client import Client

    console = Console(highlight=False)
    console.print("Starting the server. The first time it compiles its programs, for about a minute.")
    with _server(base, store) as address, Client(address) as client:
        console.print(f"Serving on {address}. One batch for the base model, four adapters and a mix of two:")
        tokens, seconds = _batch(client, PROMPTS, console)
        console.print("\nAnother batch: one prompt, from one adapter to the other in five mixes:")
        more_tokens, more_seconds = _batch(client, SLIDER, console)
    total = f"{tokens + more_tokens} tokens in {seconds + more_seconds:.1f} s"
    console.print(f"\n{total}; the server has stopped.")
    console.print(NEXT.format(openlora=sys.argv[0], store=store), soft_wrap=True)


@contextmanager
def _server(base: str, store: str) -> Iterator[str]:
    """A server on a free port of loopback while the block runs; its address."""
    serve = [sys.executable, "-m", "openlora_jax", "serve", "--config", "cpu", "--quiet"]
    where = ["--base", base, "--store", store, "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*serve, *where], stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith(ANNOUNCEMENT):
                raise EngineStopped("the server did not start; its message stands above")
            yield line.removeprefix(ANNOUNCEMENT).strip()
        finally:
            process.terminate()


def _batch(client: "Client", prompts: Sequence["DemoPrompt"], console: Console) -> tuple[int, float]:
    """Asks all at once and shows the answers as they come; tokens and seconds."""
    from openlora_jax.demo.display import Answer, shown

    answers = [Answer(prompt) for prompt in prompts]
    began = time.perf_counter()
    with shown(answers, console):
        _ask_all(client, answers)
    return sum(answer.tokens for answer in answers), time.perf_counter() - began


def _ask_all(client: "Client", answers: Sequence["Answer"]) -> None:
    """All at once, each streamed into its answer."""
    from openlora_jax import SamplingParams

    def ask(answer: "Answer") -> None:
        prompt = answer.prompt
        params = SamplingParams(max_tokens=prompt.max_tokens)
        for event in client.generate_stream(prompt.messages, params, adapter=prompt.adapters or None):
            answer.text += event.delta.text
            answer.tokens += len(event.delta.token_ids)

    with ThreadPoolExecutor(len(answers)) as threads:
        list(threads.map(ask, answers))
