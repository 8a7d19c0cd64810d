"""How the requests for each model ended, read from the metrics: for Triton's statistics and Triton's metric names.

Nothing is counted here: these are sums over what the metrics count already.
"""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram


@dataclass(frozen=True)
class Spent:
    """How often something was done, and how long it took in all."""

    count: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        """Stages that follow each other in the same requests: the time of both, the count of the later one."""
        return Spent(other.count, self.seconds + other.seconds)


@dataclass(frozen=True)
class ModelStatistics:
    """Statistics of one model since the start, over all its versions."""

    success: Spent
    fail: Spent
    """Requests that were refused, that failed, or whose clients left."""
    queue: Spent
    compute_input: Spent
    """Decoding and fitting images."""
    compute_infer: Spent
    """Running the model."""
    compute_output: Spent
    """Restoring and encoding masks."""
    images: int
    executions: int
    """Runs of the model; one may have many images, of several requests."""
    last_inference: float
    """Unix time in seconds; 0 when there was none."""


@dataclass(frozen=True)
class Statistics:
    """A view of the metrics that are labelled `model` (and `code`, or `stage`)."""

    requests: Counter
    duration: Histogram
    unanswered_seconds: Counter
    stage: Histogram
    run_images: Histogram
    last_inference: Gauge

    def of(self, model: str) -> ModelStatistics:
        """The statistics of `model`; zeros if there were no requests for it."""
        answered = {labels[1]: count for labels, count in _samples(self.requests, "_total", model, "code").items()}
        good = int(answered.pop("200", 0))
        seconds = sum(_samples(self.duration, "_sum", model).values())
        lost = sum(_samples(self.unanswered_seconds, "_total", model).values())

        def spent(stage: str) -> Spent:
            at = (model, stage)
            count = _samples(self.stage, "_count", model, "stage").get(at, 0)
            return Spent(int(count), _samples(self.stage, "_sum", model, "stage").get(at, 0.0))

        return ModelStatistics(
            success=Spent(good, max(0.0, seconds - lost)),
            fail=Spent(int(sum(answered.values())), lost),
            queue=spent("queue"),
            compute_input=spent("decode") + spent("preprocess"),
            compute_infer=spent("inference"),
            compute_output=spent("postprocess") + spent("encode"),
            images=int(sum(_samples(self.run_images, "_sum", model).values())),
            executions=int(sum(_samples(self.run_images, "_count", model).values())),
            last_inference=sum(_samples(self.last_inference, "_seconds", model).values()),
        )


def _samples(
    metric: Counter | Gauge | Histogram, suffix: str, model: str, *labels: str
) -> dict[tuple[str, ...], float]:
    return {
        (model, *(sample.labels[label] for label in labels)): sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix) and sample.labels["model"] == model
    }
