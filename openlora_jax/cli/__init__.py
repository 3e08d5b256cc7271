"""The `openlora` command. Each command is a module here that imports what it needs when it runs, so that help is fast.

Status 0 is success, 1 an engine that has stopped, 2 a caller's mistake (one line on stderr says which, and what to do),
130 an interrupt.
"""

import sys
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from openlora_jax import __version__
from openlora_jax.cli import adapters, bench, convert, demo, doctor, generate, plan_memory, score, serve, top, train
from openlora_jax.errors import EngineStopped, OpenLoraError

app = typer.Typer(
    name="openlora",
    help="Thousands of LoRA adapters on one resident base model, served in one batch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(convert.app, name="convert")
app.add_typer(adapters.app, name="adapters")
app.add_typer(bench.app, name="bench")
for command in (
    generate.generate,
    score.score,
    serve.serve,
    top.top,
    train.train,
    plan_memory.plan_memory,
    doctor.doctor,
):
    app.command()(command)
app.command(hidden=True)(demo.demo)


@app.callback(invoke_without_command=True)
def options(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Runs the command line and exits."""
    try:
        sys.exit(app(prog_name="openlora", standalone_mode=False))
    except TyperException as error:
        if not error.format_message():  # a group without its command: the help has been shown
            sys.exit(2)
        _fail(f"{error.format_message()} (`openlora --help` shows how)")
    except EngineStopped as error:
        _fail(str(error), status=1)
    except OpenLoraError as error:
        _fail(": ".join([*getattr(error, "__notes__", ()), str(error)]))
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")


def _fail(message: str, status: int = 2) -> NoReturn:
    typer.echo(f"openlora: {' '.join(message.split())}", err=True)
    sys.exit(status)
