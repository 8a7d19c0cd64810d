"""Every setting of a server, in one place."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from export.errors import UsageError
from export.machine import usable_cores
from export.sessions import MemoryPool, Provider

_DAY_SECONDS = 86400


class ServeSettings(BaseModel):
    """How a server listens, how much it does at once, and what it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 or :: for every interface."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on. 0 takes any free port; the log says which."""
    keep_alive_seconds: int = Field(default=75, ge=1)
    """An idle connection is kept this long. The default is longer than the 60 s of most load balancers, which would
    otherwise reuse a connection at the moment when it is closed."""

    threads_per_run: int = Field(default=1, ge=1)
    """Threads of one run of the model. One thread, with as many runs as cores, costs the least CPU per image."""
    providers: tuple[Provider, ...] = Field(default=(Provider.CPU,), min_length=1)
    """What runs the models: the first of these that is installed and takes an operator. Unless named, CPU is last."""
    concurrency: int = Field(default_factory=usable_cores, ge=1)
    """Requests computed at once, over all models. Default: the cores that this process may use."""
    queue_limit: int = Field(default=64, ge=0)
    """Requests that may wait for their turn; one more is answered 429."""
    max_wait_seconds: float = Field(default=10.0, gt=0)
    """A request that would wait longer than this for its turn, or longer than its own deadline, is answered 429 at
    once. The wait is estimated from the waiting requests and from how long recent runs of their models took."""
    max_batch: int = Field(default=1, ge=1)
    """When a worker becomes free, up to this many waiting requests for one model are run together, if they have the
    same padded size. On a CPU that gains little, and the first of them waits for the last."""
    batch_delay_seconds: float = Field(default=0.0, ge=0, le=_DAY_SECONDS)
    """With `max_batch`: a worker waits this long for more requests before it starts. 0 takes only those that wait
    already."""
    size_bucket: int = Field(default=1, ge=1)
    """Images are padded to multiples of this many pixels, in addition to the model's own multiple. There are then fewer
    sizes, so more requests can be run together and memory settles sooner. The model sees more padding, which may change
    masks slightly near the lower and the right border."""
    memory_pool: MemoryPool = "shrink"
    """What is done with memory between runs: `keep` all that was ever needed, `shrink` after runs that had more than
    twice the usual pixels, or `off` for no pool. Usual is the average of the last runs, and at least the size that the
    bundle is meant for: what it resizes to, was measured at, or has most images of. For the CPU only: a GPU's provider
    manages its own memory."""
    deadline_seconds: float = Field(default=30.0, gt=0, le=_DAY_SECONDS)
    """A request that has waited this long since its body was complete is answered 504 and never computed."""

    max_body_bytes: int = Field(default=32 * 2**20, ge=1)
    """Bytes of one request's body, whether or not the request announces its length."""
    max_buffered_bytes: int = Field(default=512 * 2**20, validate_default=True)
    """Bytes of all request bodies held at once, complete or still being received. Beyond it, requests are answered 429.
    A message over gRPC is seen only when it is complete: one that takes longer than a moment counts as the largest that
    is accepted. Such messages get half of this, shared among clients. As much again may be held in answers that clients
    have not taken."""
    max_pixels: int = Field(default=16 * 2**20, ge=1)
    """Pixels of one image, read from its header before decoding, and again as padded for the model. A model of more
    than four channels takes a page for each channel, and the pixels of every page count."""
    max_windowed_pixels: int = Field(default=64 * 2**20, ge=1)
    """Pixels of one image that is run in windows (`?window=HxW`), in place of `max_pixels`; and of all its windows
    together, as padded. One window has at most `max_pixels`."""
    max_probabilities: int = Field(default=32 * 2**20, ge=1)
    """Classes times pixels, when a request asks for probabilities; also of what the model gives for one window, and of
    one row of windows. Each value takes two bytes in the answer, and about twelve while the answer is made."""
    max_images: int = Field(default=16, ge=1)
    """Images in one request. Each is computed or waits, so no request may have more than `concurrency` and
    `queue_limit` together."""
    upload_seconds: float = Field(default=30.0, gt=0)
    """A body that is not complete after this long is answered 408."""

    header_seconds: float = Field(default=10.0, gt=0)
    """Headers that are not complete after this long are answered 408. The rest of a body that no route reads has this
    long, too; then the connection is closed."""
    send_seconds: float = Field(default=30.0, gt=0)
    """A client that takes less than 1,024 bytes a second of its answer for this long is cut off."""
    max_connections: int = Field(default=1000, ge=1)
    """On connections beyond this number only health is answered; connections beyond twice this number are closed
    unanswered. Over gRPC it is the number of calls at once, at most half of which may take longer than a moment to
    bring their message."""

    grace_seconds: float = Field(default=2.0, ge=0, le=_DAY_SECONDS)
    """For this long after SIGTERM the server says that it is not ready but still answers, because load balancers hear
    of it late. Ctrl-C has no grace."""
    drain_seconds: float = Field(default=25.0, gt=0, le=_DAY_SECONDS)
    """After the grace, accepted requests have this long to be answered. Both together fit into the 30 s of
    Kubernetes."""

    objective_seconds: float | None = Field(default=None, gt=0)
    """How long a request should take at most, if that was promised. Histograms get buckets close around it, one of
    which ends at it, and /metrics shows it as segpress_objective_seconds. Nothing is refused because of it: that is
    what the deadline is for."""
    triton_metrics: bool = False
    """Show the same figures under Triton Inference Server's names (nv_inference_...), too."""
    otel: bool = False
    """Send OpenTelemetry traces; the OTEL_... environment variables say where and how many."""

    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """Serve the Open Inference Protocol over gRPC on this port, too, on the same host; 0 takes any free port."""
    allow_load: bool = False
    """Without `api_keys`: let anybody who reaches the server load and unload models. With keys, only admins may."""

    api_keys: Path | None = None
    """File of keys made by `compress serve-key`. Everything but health then requires a key. None: no key is
    required."""
    tls_cert: Path | None = None
    """Certificate chain (PEM); with `tls_key`, the server speaks HTTPS instead of HTTP. A new certificate is read at
    the next start."""
    tls_key: Path | None = None
    """Private key (PEM) of `tls_cert`, not encrypted."""

    @field_validator("providers", mode="before")
    @classmethod
    def _may_be_a_list_with_commas(cls, providers: Any) -> Any:
        return [name.strip() for name in providers.split(",")] if isinstance(providers, str) else providers

    @field_validator("batch_delay_seconds")
    @classmethod
    def _is_of_batches(cls, batch_delay_seconds: float, others: ValidationInfo) -> float:
        if batch_delay_seconds and others.data.get("max_batch") == 1:
            raise ValueError("with max_batch=1 no request waits for others; set that to more, too")
        return batch_delay_seconds

    @field_validator("max_buffered_bytes")
    @classmethod
    def _has_room_for_a_body(cls, max_buffered_bytes: int, others: ValidationInfo) -> int:
        body = others.data.get("max_body_bytes", 1)
        if max_buffered_bytes < body:
            raise ValueError(f"a body of max_body_bytes={body} would never fit; set it to that or more")
        return max_buffered_bytes

    @field_validator("grpc_port")
    @classmethod
    def _is_a_port_of_its_own(cls, grpc_port: int | None, others: ValidationInfo) -> int | None:
        if grpc_port and grpc_port == others.data.get("port"):
            raise ValueError("that is the port of HTTP; give gRPC another one, or 0 for any that is free")
        return grpc_port

    def with_given(self, settings: Sequence[str], **values: Any) -> "ServeSettings":
        """These settings with `values` in place of their own, and then each `NAME=VALUE`.

        Raises UsageError with everything that is wrong.
        """
        unsaid = [setting for setting in settings if "=" not in setting]
        if unsaid:
            raise UsageError(
                f"settings of the server: {', '.join(unsaid)}: write NAME=VALUE, such as max_pixels=4000000"
            )
        given = dict(setting.partition("=")[::2] for setting in settings)
        try:
            return ServeSettings.model_validate(self.model_dump() | values | given)
        except ValidationError as error:
            raise UsageError("settings of the server:" + "".join(map(_problem, error.errors()))) from error


def _problem(found: ErrorDetails) -> str:
    name = str(found["loc"][0])
    if found["type"] == "extra_forbidden":
        near = get_close_matches(name, ServeSettings.model_fields, n=1)
        known = f"did you mean {near[0]}?" if near else f"known are {', '.join(ServeSettings.model_fields)}"
        return f"\n  - {name}: no such setting; {known}"
    return f"\n  - {name}={found['input']}: {found['msg'].removeprefix('Value error, ')}"
