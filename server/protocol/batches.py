"""Files and batches: the shapes of what is asked and answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from server.protocol.sampling import Labels
from server.protocol.wire import WireModel

MIN_LIFETIME_S = 3600
MAX_LIFETIME_S = 30 * 24 * 3600
Lifetime = Annotated[int, Field(ge=MIN_LIFETIME_S, le=MAX_LIFETIME_S)]


class ExpiresAfter(WireModel):
    """How long a file is kept."""

    place = "output_expires_after"
    anchor: Literal["created_at"]
    seconds: Lifetime


class BatchRequest(WireModel):
    """The body of `POST /v1/batches`."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}[smhd]$")]
    metadata: Labels | None = None
    output_expires_after: ExpiresAfter | None = None


class FileForm(WireModel):
    """The form of `POST /v1/files`, beside the file itself."""

    file: Annotated[bytes, Field(json_schema_extra={"format": "binary"})]
    purpose: Literal["batch"]
    anchor: Annotated[Literal["created_at"] | None, Field(alias="expires_after[anchor]")] = None
    seconds: Annotated[Lifetime | None, Field(alias="expires_after[seconds]")] = None


class FileObject(TypedDict):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    status_details: None


class BatchFault(TypedDict):
    """Why nothing of a batch's file can be asked."""

    code: str | None
    message: str
    param: str | None
    line: int | None


class BatchFaults(TypedDict):
    """The first of them."""

    object: Literal["list"]
    data: list[BatchFault]


class RequestCounts(TypedDict):
    """Lines of a batch: all, those in the output file, and those in the error file."""

    total: int
    completed: int
    failed: int


class Batch(TypedDict):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: dict[str, Any]
    metadata: dict[str, str] | None
    paused: NotRequired[str]
