"""The same figures under the names that Triton Inference Server gives them, for dashboards and autoscalers made for it.

Nothing is counted twice: they are sums over what is counted already. Durations are those of all requests, failed ones
included, where Triton leaves those out. The type is "untyped", since a counter's name in Prometheus' rules ends in
`_total` and Triton's do not; queries do not see the difference.

Source: Triton Inference Server, docs/user_guide/metrics.md.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import Counter, Histogram
from prometheus_client.core import UnknownMetricFamily
from prometheus_client.registry import Collector

_LABELS = ("model", "version")

_STAGES = {
    "nv_inference_queue_duration_us": ("Microseconds that requests waited for their turn.", ("queue",)),
    "nv_inference_compute_input_duration_us": (
        "Microseconds of decoding and fitting images.",
        ("decode", "preprocess"),
    ),
    "nv_inference_compute_infer_duration_us": ("Microseconds of running the model.", ("inference",)),
    "nv_inference_compute_output_duration_us": (
        "Microseconds of restoring and encoding masks.",
        ("postprocess", "encode"),
    ),
}


class TritonMetrics(Collector):
    """A view on the counters of requests and the histograms of their durations, by model."""

    def __init__(self, versions: Mapping[str, str], requests: Counter, duration: Histogram, stage: Histogram) -> None:
        """`versions` of the models by name, read anew each time; metrics are labelled model (and code, or stage)."""
        self._versions = versions
        self._requests = requests
        self._duration = duration
        self._stage = stage

    def collect(self) -> Iterator[UnknownMetricFamily]:
        answered = _by_labels(self._requests, "_total", "model", "code")
        seconds = _by_labels(self._duration, "_sum", "model")
        stage_seconds = _by_labels(self._stage, "_sum", "model", "stage")
        stage_counts = _by_labels(self._stage, "_count", "model", "stage")
        inferred = {model: stage_counts.get((model, "inference"), 0) for model in self._versions}

        def total(model: str, *, succeeded: bool) -> float:
            return sum(
                count for (name, code), count in answered.items() if name == model and (code == "200") == succeeded
            )

        yield self._family(
            "nv_inference_request_success",
            "Requests answered.",
            {model: total(model, succeeded=True) for model in self._versions},
        )
        yield self._family(
            "nv_inference_request_failure",
            "Requests refused or failed.",
            {model: total(model, succeeded=False) for model in self._versions},
        )
        yield self._family("nv_inference_count", "Images that the model was run on.", inferred)
        yield self._family("nv_inference_exec_count", "Runs of the model.", inferred)
        yield self._family(
            "nv_inference_request_duration_us",
            "Microseconds from the headers of requests to their answers.",
            {model: 1e6 * seconds.get((model,), 0) for model in self._versions},
        )
        for name, (documentation, stages) in _STAGES.items():
            spent = {
                model: 1e6 * sum(stage_seconds.get((model, stage), 0) for stage in stages) for model in self._versions
            }
            yield self._family(name, documentation, spent)

    def describe(self) -> Iterator[UnknownMetricFamily]:
        return iter(())  # asked at registration, when there is nothing to show yet

    def _family(self, name: str, documentation: str, values: Mapping[str, float]) -> UnknownMetricFamily:
        family = UnknownMetricFamily(name, documentation, labels=_LABELS)
        for model, value in values.items():
            family.add_metric([model, self._versions[model]], value)
        return family


def _by_labels(metric: Counter | Histogram, suffix: str, *labels: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix)
    }
