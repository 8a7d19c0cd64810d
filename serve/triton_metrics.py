"""The same metrics under Triton Inference Server's names, for dashboards and autoscalers that are made for it.

The type is "untyped", since Prometheus wants the names of counters to end in `_total` and Triton's do not; queries do
not see the difference.

Source: Triton Inference Server, docs/user_guide/metrics.md.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import UnknownMetricFamily
from prometheus_client.registry import Collector

from serve.statistics import ModelStatistics, Statistics

_LABELS = ("model", "version")

_FAMILIES: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
    ("nv_inference_request_success", "Requests answered.", lambda of: of.success.count),
    ("nv_inference_request_failure", "Requests refused or failed.", lambda of: of.fail.count),
    ("nv_inference_count", "Images that the model was run on.", lambda of: of.images),
    ("nv_inference_exec_count", "Runs of the model.", lambda of: of.executions),
    (
        "nv_inference_request_duration_us",
        "Microseconds from the headers of requests to their answers.",
        lambda of: 1e6 * (of.success.seconds + of.fail.seconds),
    ),
    (
        "nv_inference_queue_duration_us",
        "Microseconds that requests waited for their turn.",
        lambda of: 1e6 * of.queue.seconds,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Microseconds of decoding and fitting images.",
        lambda of: 1e6 * of.compute_input.seconds,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Microseconds of running the model.",
        lambda of: 1e6 * of.compute_infer.seconds,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Microseconds of restoring and encoding masks.",
        lambda of: 1e6 * of.compute_output.seconds,
    ),
)


class TritonMetrics(Collector):
    """A view of the statistics of all models that are, or were, served."""

    def __init__(self, versions: Mapping[str, str], statistics: Statistics) -> None:
        """`versions` has the version of each model by name; it is read anew each time."""
        self._versions = versions
        self._statistics = statistics

    def collect(self) -> Iterator[UnknownMetricFamily]:
        of = {model: self._statistics.of(model) for model in self._versions}
        for name, documentation, read in _FAMILIES:
            family = UnknownMetricFamily(name, documentation, labels=_LABELS)
            for model, version in self._versions.items():
                family.add_metric([model, version], read(of[model]))
            yield family

    def describe(self) -> Iterator[UnknownMetricFamily]:
        return iter(())  # called at registration, when there is nothing to show yet
