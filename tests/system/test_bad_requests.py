"""What a client may get wrong, over the wire to the real engine: the right status, and nobody else notices."""

import asyncio
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from openlora_jax import LLM
from openlora_jax.adapters.store import AdapterStore
from serving.client import Client
from serving.proto import openlora_pb2 as pb
from serving.proto import openlora_pb2_grpc as pb_grpc
from serving.server import Server
from tests.system.compare import GREEDY
from tests.system.crowd import Crowd
from tests.system.models import TINY, install

VOCABULARY, CONTEXT = TINY["vocab_size"], TINY["max_position_embeddings"]
TIMEOUT = 60.0

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
DATA_LOSS = grpc.StatusCode.DATA_LOSS


@pytest.fixture(scope="module")
def address(llm: LLM) -> Iterator[str]:
    """A server in front of the engine."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[Server, str]:
        server = Server("127.0.0.1:0")
        address = await server.start()
        await server.open(llm)
        return server, address

    server, address = asyncio.run_coroutine_threadsafe(start(), loop).result(TIMEOUT)
    yield address
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(TIMEOUT)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[pb_grpc.OpenLoraStub]:
    with grpc.insecure_channel(address) as channel:
        yield pb_grpc.OpenLoraStub(channel)


@pytest.fixture(scope="module")
def unharmed(address: str) -> Iterator[Callable[[], None]]:
    """Checks that the server answers a good request as it did in the beginning."""

    def ask() -> list[pb.GenerateResponse]:
        answers = [client.generate("the sea", GREEDY, adapter=adapter) for adapter in (None, "adapter-1")]
        for answer in answers:
            answer.ClearField("timings")
            answer.ClearField("seed")
        return answers

    with Client(address, timeout=TIMEOUT) as client:
        before = ask()

        def check() -> None:
            for found, expected in zip(ask(), before, strict=True):
                assert found.adapter_digests == expected.adapter_digests
                assert found.outputs[0].token_ids == expected.outputs[0].token_ids

        yield check


def ids(*values: int) -> pb.Prompt:
    return pb.Prompt(token_ids=pb.TokenIds(ids=values))


def mix(*items: tuple[str, float]) -> pb.Mix:
    return pb.Mix(items=[pb.MixItem(adapter=name, weight=weight) for name, weight in items])


SAMPLING: list[tuple[str, Any]] = [
    *[("max_tokens", value) for value in (0, -1, CONTEXT, 2**62)],
    *[("min_tokens", value) for value in (-1, 17)],
    *[("temperature", value) for value in (math.nan, math.inf, -0.1, 101.0)],
    *[("top_k", value) for value in (-1,)],
    *[("top_p", value) for value in (math.nan, 0.0, -0.5, 1.01)],
    *[("min_p", value) for value in (math.nan, -0.1, 1.01)],
    *[("repetition_penalty", value) for value in (math.nan, math.inf, 0.0, 10.1)],
    *[("presence_penalty", value) for value in (math.nan, -2.1, 2.1)],
    *[("frequency_penalty", value) for value in (-math.inf, -2.1, 2.1)],
    *[("logit_bias", value) for value in ({3: math.nan}, {3: 101.0}, {VOCABULARY: 1.0}, {-1: 1.0})],
    ("logit_bias", dict.fromkeys(range(301), 1.0)),
    *[("stop", value) for value in ([""], ["x"] * 17, ["x" * 257])],
    *[("stop_token_ids", value) for value in ([VOCABULARY], [-1], [1] * 17)],
    *[("logprobs", value) for value in (-1, 21)],
    *[("n", value) for value in (0, -1, 9)],
    *[("seed", value) for value in (-1, 2**31)],
]

REQUESTS: list[tuple[dict[str, Any], grpc.StatusCode]] = [
    ({"adapter": "nobody"}, NOT_FOUND),
    ({"adapter": "../adapter-1"}, NOT_FOUND),
    ({"adapter": ""}, INVALID),
    ({"adapter": "x" * 129}, INVALID),
    ({"mix": mix(("adapter-1", 1.0), ("nobody", 1.0))}, NOT_FOUND),
    ({"mix": mix(("adapter-1", 0.5), ("adapter-1", 0.5))}, INVALID),
    ({"mix": mix(("adapter-1", math.nan))}, INVALID),
    ({"mix": mix(("adapter-1", 1.0), ("adapter-2", math.inf))}, INVALID),
    ({"mix": mix()}, INVALID),
    ({"mix": mix(*((f"adapter-{index}", 1.0) for index in range(9)))}, INVALID),
    ({"prompt": None}, INVALID),
    ({"prompt": pb.Prompt(text="")}, INVALID),
    ({"prompt": ids()}, INVALID),
    ({"prompt": ids(3, VOCABULARY)}, INVALID),
    ({"prompt": ids(-1)}, INVALID),
    ({"prompt": ids(2**31 - 1)}, INVALID),
    ({"prompt": ids(*[5] * CONTEXT)}, INVALID),
    ({"prompt": pb.Prompt(text="x" * CONTEXT)}, INVALID),
    ({"prompt": pb.Prompt(text="x" * 1_000_000)}, INVALID),
    ({"prompt": pb.Prompt(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")]))}, INVALID),
    *[({"sampling": pb.SamplingParams(**{name: value})}, INVALID) for name, value in SAMPLING],
]


@pytest.mark.parametrize(("overrides", "code"), REQUESTS)
def test_generate(
    stub: pb_grpc.OpenLoraStub, unharmed: Callable[[], None], overrides: Mapping[str, Any], code: grpc.StatusCode
) -> None:
    sampling = pb.SamplingParams(max_tokens=16)
    sampling.MergeFrom(overrides.get("sampling", pb.SamplingParams()))
    request = pb.GenerateRequest(**{"prompt": ids(3, 4), **overrides, "sampling": sampling})
    for call in (lambda: stub.Generate(request, timeout=TIMEOUT), lambda: list(stub.GenerateStream(request))):
        with pytest.raises(grpc.RpcError) as failure:
            call()
        assert failure.value.code() is code, failure.value.details()
    unharmed()


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"completion_ids": pb.TokenIds()}, INVALID),
        ({"completion": ""}, INVALID),
        ({}, INVALID),
        ({"completion_ids": pb.TokenIds(ids=[VOCABULARY])}, INVALID),
        ({"completion_ids": pb.TokenIds(ids=[5] * (CONTEXT - 1))}, INVALID),
        ({"completion": "a", "prompt": ids()}, INVALID),
        ({"completion": "a", "adapter": "nobody"}, NOT_FOUND),
    ],
)
def test_score(
    stub: pb_grpc.OpenLoraStub, unharmed: Callable[[], None], overrides: Mapping[str, Any], code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stub.Score(pb.ScoreRequest(**{"prompt": ids(3, 4), **overrides}), timeout=TIMEOUT)
    assert failure.value.code() is code, failure.value.details()
    unharmed()


def _truncate(folder: Path) -> None:
    tensor = _tensor(folder)
    tensor.write_bytes(tensor.read_bytes()[:-4])


def _flip(folder: Path) -> None:
    tensor = _tensor(folder)
    content = bytearray(tensor.read_bytes())
    content[len(content) // 3] ^= 0x40
    tensor.write_bytes(content)


def _tensor(folder: Path) -> Path:
    return max(folder.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "missing-tensor": lambda folder: _tensor(folder).unlink(),
    "manifest": lambda folder: (folder / "manifest.json").write_text('{"format": 1}'),
    "gone": shutil.rmtree,
    "flipped": _flip,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_an_adapter_damaged_on_disk(
    address: str, base: Path, store: Path, llm: LLM, names: list[str], unharmed: Callable[[], None], kind: str
) -> None:
    name = f"damaged-{kind}"
    [digest] = install(store, base, [name], first_seed=1000 + len(name)).values()
    adapters = AdapterStore(store)
    DAMAGE[kind](adapters.folder(digest))
    with grpc.insecure_channel(address) as channel, Crowd(llm, names[:20], 4, seed=0):
        stub = pb_grpc.OpenLoraStub(channel)
        request = pb.GenerateRequest(prompt=ids(3, 4), sampling=pb.SamplingParams(max_tokens=4), adapter=name)
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as failure:
                stub.Generate(request, timeout=TIMEOUT)
            assert failure.value.code() is DATA_LOSS, failure.value.details()
            assert name in str(failure.value.details())
            unharmed()
    adapters.remove(name)
