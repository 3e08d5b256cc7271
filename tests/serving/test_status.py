import logging
import re
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from openlora_jax import errors
from serving import status
from serving.client import Client
from serving.proto import openlora_pb2 as pb
from tests.serving.fakes import FakeLLM, generate, until


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server has logged, a line a call."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("serving")]


CASES: list[tuple[errors.OpenLoraError, grpc.StatusCode]] = [
    (errors.InvalidRequest("sampling.n", "is 9; at most 8"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.UnknownAdapter("näme\n"), grpc.StatusCode.NOT_FOUND),
    (errors.AdapterExists("sql", "ab"), grpc.StatusCode.ALREADY_EXISTS),
    (errors.AdapterUnavailable("sql", "ab", "too large"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.AdapterDamaged("sql", "ab", "t is truncated", 2.5), grpc.StatusCode.DATA_LOSS),
    (errors.AdapterUnreachable("sql", "ab", "the disk is gone", 1 / 3), grpc.StatusCode.UNAVAILABLE),
    (errors.AdapterOutOfMemory("sql", "ab", "of 9 bytes", 60.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.UnsupportedFeature("x", "DoRA", "merge it"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.InvalidConfig("store", "is gone"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.BadCheckpoint("registry.jsonl", "line 3"), grpc.StatusCode.DATA_LOSS),
    (errors.NotFinite("1 'sql'"), grpc.StatusCode.INTERNAL),
    (errors.Overloaded("waiting requests", 4), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.CannotMeetDeadline("ttft_deadline", 0.5, 1 / 3), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlineExceeded("decode"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.EngineStopped("the device is lost"), grpc.StatusCode.UNAVAILABLE),
]


@pytest.mark.parametrize(("error", "code"), CASES, ids=lambda value: type(value).__name__)
async def test_an_error_crosses_the_wire(
    stub: Any, llm: FakeLLM, error: errors.OpenLoraError, code: grpc.StatusCode
) -> None:
    llm.engine.fault = error
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(generate())
    assert failure.value.code() is code
    assert failure.value.details() == str(error)
    back = status.to_error(failure.value)
    if isinstance(error, errors.BadCheckpoint | errors.InvalidConfig):
        assert isinstance(back, status.CallFailed)
        assert str(error) in str(back)
    else:
        assert type(back) is type(error)
        assert vars(back) == vars(error)
        assert str(back) == str(error)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.BadCheckpoint("/srv/my store/registry.jsonl", "line 3"), "registry.jsonl: line 3"),
        (errors.BadCheckpoint("store/artifacts/ab/manifest.json", "is not JSON"), "manifest.json: is not JSON"),
        (
            errors.AdapterUnavailable("sql", "ab", "/srv/store/ab/t.safetensors: is a link, to /srv/x/y; put it there"),
            "adapter 'sql' (ab) cannot be served: t.safetensors: is a link, to y; put it there",
        ),
        (
            errors.AdapterUnavailable("sql", "ab", "[Errno 2] No such file or directory: '/srv/a b/c'"),
            "adapter 'sql' (ab) cannot be served: [Errno 2] No such file or directory: 'c'",
        ),
        (errors.UnsupportedFeature("/srv/x", "DoRA", "merge it"), "x: DoRA is not supported; merge it"),
        (errors.InvalidRequest("stop", "a/b is not"), "stop: a/b is not"),
        (errors.UnknownAdapter("a/b"), str(errors.UnknownAdapter("a/b"))),
    ],
)
async def test_folders_of_the_server_stay_in_its_log(
    stub: Any, llm: FakeLLM, error: errors.OpenLoraError, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serving")
    llm.engine.fault = error
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(generate())
    assert failure.value.details() == told
    await until(lambda: bool(lines(caplog)))
    [line] = lines(caplog)
    assert f"error={str(error)!r}" in line
    assert "srv" not in str(failure.value.trailing_metadata())


def details(failure: grpc.aio.AioRpcError, kind: type[Any]) -> Any:
    rich = rpc_status.from_call(failure)
    found = kind()
    assert any(detail.Unpack(found) for detail in rich.details)
    return found


async def test_generic_clients_find_googles_details(stub: Any, llm: FakeLLM) -> None:
    request = generate()
    request.adapter = "nobody"
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(request)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    resource = details(failure.value, error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("adapter", "nobody")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(generate(n=9))
    assert details(failure.value, error_details_pb2.BadRequest).field_violations[0].field == "n"
    llm.engine.fault = errors.Overloaded("waiting requests", 4)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(generate())
    assert details(failure.value, error_details_pb2.RetryInfo).retry_delay.seconds == status.RETRY_SECONDS


async def test_a_long_text_fits_the_trailers(stub: Any, llm: FakeLLM) -> None:
    llm.engine.fault = errors.InvalidRequest("x", "😀" * 5000)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(generate())
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_an_unforeseen_fault_leaks_nothing_and_is_logged(
    stub: Any, llm: FakeLLM, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    llm.engine.fault = RuntimeError("secret /srv/path")
    call = getattr(stub, method)(generate())
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await (call if method == "Generate" else call.read())
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(failure.value)
    correlation_id = details(failure.value, error_details_pb2.ErrorInfo).metadata["correlation_id"]
    assert correlation_id in (failure.value.details() or "")
    logged = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert correlation_id in logged.getMessage()
    assert "secret" in str(logged.exc_info)


async def test_one_log_line_a_request_without_its_text(
    stub: Any, llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serving")
    request = generate("confidential", max_tokens=2)
    request.adapter = "sql"
    await stub.Generate(request)
    request.adapter = "nobody"
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Generate(request)
    request.sampling.n = 9
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Generate(request)
    llm.engine.fault = errors.InvalidRequest("messages", "the chat template refuses them: confidential")
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Generate(generate())
    await until(lambda: len(lines(caplog)) == 4)
    good, *bad = lines(caplog)
    assert good.startswith("Generate ")
    assert " OK " in good
    assert "adapters=['sql'] prompt=12 completion=2" in good
    assert [line.split()[2] for line in bad] == ["NOT_FOUND", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]
    for line, reason in zip(bad, ["unknown adapter", "n: ", "messages'"], strict=True):
        assert re.search(f"error=['\"]{reason}", line)
    assert "confidential" not in "".join([good, *bad])


async def test_a_name_cannot_forge_a_log_line(stub: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "serving")
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetAdapter(pb.GetAdapterRequest(name="a\nGenerate 0 OK"))
    await until(lambda: bool(lines(caplog)))
    (line,) = lines(caplog)
    assert "\n" not in line


def test_a_server_that_is_not_there_is_an_error_of_ours() -> None:
    with (
        Client("127.0.0.1:1", timeout=5) as client,
        pytest.raises(status.CallFailed, match=r"UNAVAILABLE.*is `openlora serve` running"),
    ):
        client.server_info()
