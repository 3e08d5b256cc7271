"""`openlora top`: what a running server does with its adapters, as it does it."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from serving.client import Client
    from serving.proto import openlora_pb2 as pb

HEAD = 6
"""Lines of the screen that are not adapters."""


def top(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server to look at.")] = "127.0.0.1:50051",
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    rows: Annotated[int | None, typer.Option(min=1, help="Adapters to show.", show_default="what fits")] = None,
) -> None:
    """Shows the adapters in memory, those in use first, until interrupted; once where the output is no terminal."""
    from serving.client import Client

    console = Console()
    with Client(server, timeout=10.0) as client:
        if not console.is_terminal:
            console.print(_screen(next(_looks(client)), rows))
            return
        with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
            for look in _looks(client):
                live.update(_screen(look, rows or max(1, console.height - HEAD)), refresh=True)
                time.sleep(interval)


@dataclass(frozen=True, slots=True)
class Look:
    """What a server said at one time.

    Attributes:
        tokens: generated per second since the look before; None at the first.
    """

    info: "pb.ServerInfoResponse"
    adapters: "list[pb.Adapter]"
    tokens: float | None


def _looks(client: "Client") -> Iterator[Look]:
    before: tuple[float, int] | None = None
    while True:
        info, adapters = client.server_info(), list(client.list_adapters(1000, in_memory=True))
        now = time.monotonic()
        tokens = (info.generated_tokens - before[1]) / (now - before[0]) if before else None
        before = now, info.generated_tokens
        yield Look(info, adapters, tokens)


def _screen(look: Look, rows: int | None) -> Group:
    info = look.info
    speed = "" if look.tokens is None else f", {look.tokens:,.0f} tokens/s"
    lines = (
        f"{info.running} running, {info.waiting} waiting{speed}",
        f"device pages {_part(info.pages - info.free_pages, info.pages)}, KV blocks "
        f"{_part(info.kv_blocks - info.free_kv_blocks, info.kv_blocks)}, host memory "
        f"{_part(info.host_bytes / 1e6, info.host_budget / 1e6)} MB",
        f"{len(look.adapters):,} of {info.adapters:,} adapters in memory",
    )
    return Group(*map(Text, lines), _table(_busiest(look.adapters)[:rows]))


def _part(used: int | float, total: int | float) -> str:
    return f"{used:,.0f} of {total:,.0f}"


def _busiest(adapters: "Iterable[pb.Adapter]") -> "list[pb.Adapter]":
    """Those with requests first, then those asked for last."""
    never = float("inf")
    return sorted(
        adapters, key=lambda each: (-each.requests, each.idle_seconds if each.HasField("idle_seconds") else never)
    )


def _table(adapters: "Iterable[pb.Adapter]") -> Table:
    from serving.proto import openlora_pb2 as pb

    numbers = ("rank", "pages", "host MB", "requests", "look-ups", "hits", "idle s", "load ms")
    table = Table("adapter", "tier", *(Column(name, justify="right") for name in numbers), box=None)
    for each in adapters:
        tier = pb.AdapterState.Name(each.state).removeprefix("ADAPTER_STATE_").lower()
        table.add_row(
            each.name,
            tier + " pinned" * each.pinned,
            str(each.rank),
            str(each.pages),
            f"{each.host_bytes / 1e6:.1f}",
            str(each.requests),
            str(each.lookups),
            f"{each.hits / each.lookups:.0%}" if each.lookups else "",
            f"{each.idle_seconds:.0f}" if each.HasField("idle_seconds") else "",
            f"{1000 * each.load_seconds:.1f}" if each.HasField("load_seconds") else "",
        )
    return table
