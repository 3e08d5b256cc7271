"""`openlora generate` and `openlora score`, against the tiny model in this process and against a server."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from openlora_jax import LLM, SamplingParams, SchedulingParams, ensemble
from openlora_jax.cli import loading
from openlora_jax.config import EngineConfig
from serving.server import Server
from tests.openlora_jax.cli.conftest import Ended, RunCli
from tests.serving.fakes import FakeLLM


@pytest.fixture
def local(tiny_llm: LLM, openlora: RunCli, monkeypatch: pytest.MonkeyPatch) -> RunCli:
    """Commands with `--base` have the tiny model, already loaded."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: tiny_llm)
    monkeypatch.setattr(tiny_llm, "close", lambda: None)
    return openlora


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server, llm = Server("127.0.0.1:0"), FakeLLM("json", "pirate")
    llm.engine.start()
    address = await server.start()
    await server.open(llm)
    yield address
    llm.close()
    await server.stop()


def lines(*rows: dict[str, Any]) -> str:
    return "\n\n".join(json.dumps(row) for row in rows)


def parsed(ended: Ended) -> list[dict[str, Any]]:
    assert ended.status == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


def test_rows_are_answered_in_order(local: RunCli, tiny_llm: LLM) -> None:
    mix = [{"adapter": "one", "weight": 0.5}, {"adapter": "two", "weight": 0.5}]
    rows = [
        {"prompt": "hello", "max_tokens": 40, "ignore_eos": True, "id": 1},
        {"prompt_ids": [5, 6], "max_tokens": 2, "adapter": "one", "logprobs": 2, "n": 2, "note": {"any": "é"}},
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "mix": mix, "seed": 4},
    ]
    first, second, third = parsed(local("generate", "--base", "B", "--input", "-", stdin=lines(*rows)))
    [expected] = tiny_llm.generate("hello", SamplingParams(max_tokens=40, ignore_eos=True))
    assert first["id"] == 1
    assert first["outputs"] == [
        {
            "text": expected.outputs[0].text,
            "token_ids": list(expected.outputs[0].token_ids),
            "finish_reason": "length",
        }
    ]
    assert first["usage"] == {"prompt_tokens": expected.prompt_tokens, "completion_tokens": 40}
    assert first.keys() == {"id", "outputs", "seed", "adapter_digests", "usage", "timings"}
    assert second["note"] == {"any": "é"}
    assert len(second["outputs"]) == 2
    token = second["outputs"][0]["logprobs"][0]
    assert len(token["top"]) == 2
    assert token["top"][0] == {"token_id": token["token_id"], "logprob": token["logprob"]}
    assert (third["seed"], len(third["adapter_digests"])) == (4, 2)


def test_an_ensemble_in_a_row_and_as_an_option(local: RunCli, tiny_llm: LLM) -> None:
    spelt = {"members": ["one", None], "weights": [0.5, 0.5], "method": "mean_probs"}
    row = {"prompt": "hello", "max_tokens": 5, "ignore_eos": True, "logprobs": 0}
    rows = lines(row | {"ensemble": spelt}, row, row | {"adapter": "two"})
    command = ("generate", "--base", "B", "--input", "-", "--ensemble", json.dumps(spelt))
    in_row, by_option, alone = parsed(local(*command, stdin=rows))
    params = SamplingParams(max_tokens=5, ignore_eos=True, logprobs=0)
    [expected] = tiny_llm.generate("hello", params, ensemble(["one", None], [0.5, 0.5], "mean_probs"))
    assert in_row["outputs"] == by_option["outputs"]
    assert in_row["outputs"][0]["token_ids"] == list(expected.outputs[0].token_ids)
    assert in_row["adapter_digests"] == [tiny_llm.store.resolve("one")]
    assert alone["adapter_digests"] == [tiny_llm.store.resolve("two")]
    refused = local("generate", "--base", "B", "--prompt", "a", "--ensemble", "{")
    assert (refused.status, "--ensemble" in refused.err) == (2, True)


def test_scores_are_written_in_order(local: RunCli, tiny_llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(
        lines(
            {"prompt": "hello", "completion": " he", "id": 1}, {"prompt": "a", "completion_ids": [3], "adapter": "two"}
        )
    )
    ended = local("score", "--base", "B", "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert (ended.status, ended.out) == (0, "")
    first, second = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    [expected] = tiny_llm.score("hello", " he")
    assert first["logprobs"] == pytest.approx(expected.logprobs, abs=1e-4)
    assert first["greedy"] == list(expected.greedy)
    assert first.keys() == {"id", "logprobs", "greedy", "adapter_digests", "timings"}
    assert second["adapter_digests"] == [tiny_llm.store.resolve("two")]


@pytest.mark.parametrize("output", ["-", "out"])
def test_half_a_surrogate_pair_goes_to_the_output_as_it_came(
    local: RunCli, tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "a", "max_tokens": 1, "id": name} for name in ("\ud800", "é", "\ud83d\ude00")]
    ended = local("generate", "--base", "B", "--input", "-", "--output", output, stdin=lines(*rows))
    text = ended.out if output == "-" else Path(output).read_text()
    assert (ended.status, [json.loads(line)["id"] for line in text.splitlines()]) == (0, ["\ud800", "é", "😀"])


def test_options_hold_for_rows_that_do_not_say(local: RunCli, tiny_llm: LLM) -> None:
    rows = lines({"prompt": "a"}, {"prompt": "a", "max_tokens": 3, "adapter": None})
    options = ("--max-tokens", 2, "--adapter", "one", "--seed", 5)
    first, second = parsed(local("generate", "--base", "B", "--input", "-", *options, stdin=rows))
    assert (first["usage"]["completion_tokens"], first["seed"]) == (2, 5)
    assert first["adapter_digests"] == [tiny_llm.store.resolve("one")]
    assert (second["usage"]["completion_tokens"], second["adapter_digests"]) == (3, [])


def test_options_say_how_rows_are_scheduled(openlora: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    for command, row in (("generate", {"prompt": "a"}), ("score", {"prompt": "a", "completion": "b"})):
        module = f"openlora_jax.cli.{command}"
        monkeypatch.setattr(f"{module}.write_lines", lambda path, rows, *_: seen.extend(rows))
        monkeypatch.setattr(f"{module}.open_session", lambda *_: MagicMock())
        options = ("--priority", "high", "--tenant", "blue", "--ttft-deadline", 0.5)
        assert openlora(command, "--input", "-", *options, stdin=lines(row, row | {"priority": "low"})).status == 0
        first, second = (line.row.scheduling for line in seen)
        assert first == SchedulingParams(priority="high", tenant="blue", ttft_deadline=0.5)
        assert second.priority == "low"
        seen.clear()


def test_a_prompt_is_streamed(local: RunCli, tiny_llm: LLM) -> None:
    ended = local("generate", "--base", "B", "--prompt", "hello", "--mix", "one=0.5, two=-1", "--max-tokens", 9)
    [expected] = tiny_llm.generate("hello", SamplingParams(max_tokens=9), {"one": 0.5, "two": -1.0})
    assert (ended.status, ended.out) == (0, expected.outputs[0].text + "\n")


def test_a_prompt_as_a_message(local: RunCli, tiny_llm: LLM) -> None:
    ended = local("generate", "--base", "B", "--prompt", "hello", "--chat", "--max-tokens", 9)
    [expected] = tiny_llm.generate([[{"role": "user", "content": "hello"}]], SamplingParams(max_tokens=9))
    assert ended.out == expected.outputs[0].text + "\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"prompt": "a"}\n{"promt": "a"}', "-:2: promt: is not a known key; write 'prompt'"),
        ('{"prompt": "a"}\n{"prompt": "a"', "-:2: is not JSON"),
        ("[1]", "-:1: must hold a JSON object"),
        ('{"prompt": "a", "prompt": "b"}', "-:1: the key 'prompt' occurs more than once"),
        ('{"prompt": "a", "temperature": NaN}', "-:1: NaN is not a finite number"),
        ('{"prompt": "a"}\n\n{"prompt_ids": [300]}', "-:3: prompt: token id 300 is outside the vocabulary, 0..299"),
        ('{"prompt": "\\ud800"}', "-:1: text: has half a surrogate pair"),
        ('{"prompt": "a", "adapter": "none"}', "-:1: unknown adapter 'none'"),
        ('{"prompt": "a", "max_tokens": 128}', "-:1: max_tokens: "),
    ],
)
def test_a_bad_row_is_named_before_any_runs(local: RunCli, tmp_path: Path, rows: str, message: str) -> None:
    ended = local("generate", "--base", "B", "--input", "-", "--output", tmp_path / "out", stdin=rows)
    assert ended.status == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--base", "B"), "--prompt: give --prompt for one text, or --input"),
        (("--base", "B", "--prompt", "a", "--input", "-"), "--prompt: give --prompt for one text, or --input"),
        (("--prompt", "a"), "--base: give --base for an engine here, or --server"),
        (("--prompt", "a", "--base", "B", "--server", "127.0.0.1:1"), "--base: give --base"),
        (("--prompt", "a", "--base", "B", "--mix", "one"), "--mix: 'one' is no NAME=WEIGHT"),
        (("--prompt", "a", "--base", "B", "--mix", "one=x"), "--mix: 'one=x' is no NAME=WEIGHT"),
        (("--prompt", "a", "--base", "B", "--mix", "one=1", "--adapter", "one"), "mix: is given beside adapter"),
        (("--prompt", "a", "--base", "B", "--temperature", "-1"), "temperature: "),
        (("--prompt", "a", "--server", "127.0.0.1:1"), "UNAVAILABLE"),
        (("--prompt", "a", "--base", "nowhere"), "nowhere"),
    ],
)
def test_options_that_do_not_go_together(openlora: RunCli, arguments: tuple[str, ...], message: str) -> None:
    ended = openlora("generate", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "score"])
def test_a_wrong_output_is_named_before_anything_loads(openlora: RunCli, tmp_path: Path, command: str) -> None:
    rows = lines({"prompt": "a", "completion": "b"})
    for output, message in ((tmp_path / "none" / "out", "folder does not exist"), (tmp_path, "Is a directory")):
        ended = openlora(command, "--base", "nowhere", "--input", "-", "--output", output, stdin=rows)
        assert (ended.status, ended.out) == (2, "")
        assert f"{output}: " in ended.err
        assert message in ended.err


@pytest.mark.parametrize("command", ["generate", "score"])
def test_an_adapter_that_is_not_in_the_store_is_named_before_anything_loads(
    openlora: RunCli, tiny_store: Path, command: str
) -> None:
    rows = lines({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "adapter": "none"})
    ended = openlora(command, "--base", "nowhere", "--store", tiny_store, "--input", "-", stdin=rows)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "-:3: unknown adapter 'none'" in ended.err


def test_a_servers_configuration_names_base_and_store(
    openlora: RunCli, tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded = []

    def load(base: str, store: str | None, config: EngineConfig) -> LLM:
        loaded.append((base, store, config))
        return tiny_llm

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(tiny_llm, "close", lambda: None)
    file = tmp_path / "server.yaml"
    file.write_text(f"base: B\nstore: {tmp_path}\nlisten: 127.0.0.1:1\nmax_rows: 4\n")
    rows = lines({"prompt": "a", "completion": "b"})
    assert openlora("score", "--config", file, "--input", "-", stdin=rows).status == 0
    assert openlora("score", "--config", file, "--base", "X", "--input", "-", stdin=rows).status == 0
    assert loaded == [(base, str(tmp_path), EngineConfig(max_rows=4)) for base in "BX"]


async def test_a_server_answers_the_same_way(openlora: RunCli, address: str) -> None:
    rows = lines(
        {"prompt": "ab", "max_tokens": 2, "logprobs": 1, "id": 1}, {"prompt": "ab", "adapter": "json", "max_tokens": 1}
    )
    ended = await asyncio.to_thread(openlora, "generate", "--server", address, "--input", "-", stdin=rows)
    first, second = parsed(ended)
    assert first["id"] == 1
    assert first["outputs"][0]["text"] == "cd"
    assert first["outputs"][0]["finish_reason"] == "length"
    assert len(first["outputs"][0]["logprobs"]) == 2
    assert second["outputs"][0]["text"] == "C"
    assert len(second["adapter_digests"]) == 1


async def test_a_server_streams(openlora: RunCli, address: str) -> None:
    ended = await asyncio.to_thread(openlora, "generate", "--server", address, "--prompt", "ab", "--max-tokens", 3)
    assert (ended.status, ended.out) == (0, "cde\n")


async def test_a_server_scores(openlora: RunCli, address: str) -> None:
    rows = lines({"prompt": "ab", "completion": "cx", "id": 1})
    [line] = parsed(await asyncio.to_thread(openlora, "score", "--server", address, "--input", "-", stdin=rows))
    assert (line["id"], line["logprobs"], line["greedy"]) == (1, [-0.5, -8.0], [True, False])


async def test_a_servers_refusal_names_the_row(openlora: RunCli, address: str) -> None:
    rows = lines({"prompt": "ab"}, {"prompt": "ab", "adapter": "none"})
    ended = await asyncio.to_thread(openlora, "generate", "--server", address, "--input", "-", stdin=rows)
    assert ended.status == 2
    assert "-:3: unknown adapter 'none'" in ended.err
