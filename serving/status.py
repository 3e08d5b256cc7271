"""The one place where errors become gRPC statuses, and statuses errors again.

The details follow https://google.aip.dev/193: an ErrorInfo with the error's data first, then what generic clients read
(BadRequest, ResourceInfo, RetryInfo). No text of an unforeseen exception leaves the server, and no folder of its files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from openlora_jax import errors

DOMAIN = "openlora"
MAX_BYTES = 800
"""Of a message or a datum, which travel in HTTP/2 headers up to three times, encoded: clients take 8 KiB in all."""
RETRY_SECONDS = 1

ABOUT_FILES = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""The statuses of errors that may speak of the server's files: the client is told names, the log folders."""

FOLDERS = re.compile(r"""(?:(?<![^\s'"(])/[^:;,'"()\n]*|[^\s'"(]*)/(?=\S)""")
"""What stands before the name in a path: of an absolute one also where it has spaces."""


@dataclass(frozen=True)
class Row:
    """How one error class travels: its status, its name on the wire, and what it is built from again, if it can be."""

    error: type[errors.OpenLoraError]
    code: grpc.StatusCode
    reason: str
    arguments: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)


OF_ADAPTER: Mapping[str, Callable[[str], Any]] = {"name": str, "digest": str, "reason": str, "retry_after": float}

ROWS = (
    Row(errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", {"field": str, "problem": str}),
    Row(errors.UnknownAdapter, grpc.StatusCode.NOT_FOUND, "UNKNOWN_ADAPTER", {"name": str}),
    Row(errors.AdapterExists, grpc.StatusCode.ALREADY_EXISTS, "ADAPTER_EXISTS", {"name": str, "digest": str}),
    Row(errors.AdapterDamaged, grpc.StatusCode.DATA_LOSS, "ADAPTER_DAMAGED", OF_ADAPTER),
    Row(errors.AdapterUnreachable, grpc.StatusCode.UNAVAILABLE, "ADAPTER_UNREACHABLE", OF_ADAPTER),
    Row(errors.AdapterOutOfMemory, grpc.StatusCode.RESOURCE_EXHAUSTED, "ADAPTER_OUT_OF_MEMORY", OF_ADAPTER),
    Row(errors.AdapterUnavailable, grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_UNAVAILABLE", OF_ADAPTER),
    Row(
        errors.UnsupportedFeature,
        grpc.StatusCode.FAILED_PRECONDITION,
        "FEATURE_UNSUPPORTED",
        {"path": str, "feature": str, "remedy": str},
    ),
    Row(errors.BadCheckpoint, grpc.StatusCode.DATA_LOSS, "BAD_CHECKPOINT"),
    Row(errors.NotFinite, grpc.StatusCode.INTERNAL, "NOT_FINITE", {"adapters": str}),
    Row(errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", {"limit": str, "value": int}),
    Row(
        errors.CannotMeetDeadline,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "DEADLINE_UNMEETABLE",
        {"deadline": str, "limit": float, "estimate": float},
    ),
    Row(errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", {"phase": str}),
    Row(errors.EngineStopped, grpc.StatusCode.UNAVAILABLE, "ENGINE_STOPPED", {"reason": str}),
    Row(errors.OpenLoraError, grpc.StatusCode.FAILED_PRECONDITION, "FAILED_PRECONDITION"),
)
"""The first row of an error's class or of a base of it counts; the last one is for those that no call raises today."""


class CallFailed(errors.OpenLoraError):
    """A call that ended with a status that no error class stands for, or that never reached the server."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(f"the server answered {code}: {message}{hint}")
        self.code = code
        self.message = message


def to_status(error: errors.OpenLoraError) -> grpc.Status:
    """The status of a caller's error, with its data in the details."""
    row = next(row for row in ROWS if isinstance(error, row.error))
    told = _without_folders if row.code in ABOUT_FILES else str
    data = {name: _cut(told(getattr(error, name))) for name in row.arguments}
    info = error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN, metadata=data)
    return _status(row.code, told(error), info, *_generic(error, data))


def internal(correlation_id: str) -> grpc.Status:
    """The status of an unforeseen exception: nothing of it but where to find it in the log."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"correlation_id": correlation_id})
    return _status(grpc.StatusCode.INTERNAL, f"internal error; the server's log has it under {correlation_id}", info)


def to_error(failure: grpc.RpcError) -> errors.OpenLoraError:
    """The error that a failed call stands for; `CallFailed` where there is none."""
    status = rpc_status.from_call(failure)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            for row in ROWS:
                if row.reason == info.reason and row.arguments and row.arguments.keys() == info.metadata.keys():
                    return row.error(*[read(info.metadata[name]) for name, read in row.arguments.items()])
    if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:  # seen by the client first
        return errors.DeadlineExceeded("flight")
    hint = "; is `openlora serve` running there?" if failure.code() is grpc.StatusCode.UNAVAILABLE else ""
    return CallFailed(failure.code().name, failure.details() or "", hint)


def _generic(error: errors.OpenLoraError, data: Mapping[str, str]) -> tuple[Message, ...]:
    match error:
        case errors.InvalidRequest():
            violation = error_details_pb2.BadRequest.FieldViolation(field=data["field"], description=data["problem"])
            return (error_details_pb2.BadRequest(field_violations=[violation]),)
        case errors.UnknownAdapter():
            return (error_details_pb2.ResourceInfo(resource_type="adapter", resource_name=data["name"]),)
        case errors.AdapterUnavailable() if error.retry_after > 0:
            return (error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after)),)
        case errors.Overloaded() | errors.CannotMeetDeadline():
            return (error_details_pb2.RetryInfo(retry_delay=Duration(seconds=RETRY_SECONDS)),)
        case _:
            return ()


def _status(code: grpc.StatusCode, message: str, *details: Message) -> grpc.Status:
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    rich = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=_cut(message), details=packed)
    status: grpc.Status = rpc_status.to_status(rich)
    return status


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(1000 * seconds))
    return duration


def _without_folders(value: object) -> str:
    return FOLDERS.sub("", str(value)[: 2 * MAX_BYTES])  # no more than that, as its time grows with the square


def _cut(text: str) -> str:
    return text.encode()[:MAX_BYTES].decode(errors="ignore")
