"""The server's own view of a run: its /metrics after the run, less those before it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

_ANSWERS = "segpress_requests_total"
_DURATION = "segpress_request_duration_seconds"
_STAGE = "segpress_stage_duration_seconds"
_CPU = "process_cpu_seconds_total"
_MEMORY = "process_resident_memory_bytes"

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class View:
    """Everything that the server has counted since its start."""

    samples: Mapping[tuple[str, Labels], float]

    @classmethod
    def of(cls, base_url: str) -> "View":
        """As /metrics shows it now. Raises OSError when the server does not answer."""
        with urlopen(f"{base_url}/metrics", timeout=30) as response:
            text = response.read().decode()
        return cls(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    @property
    def resident_bytes(self) -> float:
        return sum(self._by(_MEMORY).values())

    def answers_since(self, before: "View") -> dict[str, int]:
        """Requests for a mask that were answered, by HTTP status."""
        then = before._by(_ANSWERS, "code")
        found = {code: int(value - then[code]) for code, value in self._by(_ANSWERS, "code").items()}
        return {code: number for code, number in sorted(found.items()) if number}

    def cpu_seconds_since(self, before: "View") -> float:
        return sum(self._by(_CPU).values()) - sum(before._by(_CPU).values())

    def stages_ms_since(self, before: "View") -> dict[str, float]:
        """Mean milliseconds of each stage, in their order, and of the whole request as `request`."""
        means = {}
        for name, label in ((_STAGE, "stage"), (_DURATION, "")):
            spent, spent_then = self._by(f"{name}_sum", label), before._by(f"{name}_sum", label)
            number, number_then = self._by(f"{name}_count", label), before._by(f"{name}_count", label)
            for stage, seconds in spent.items():
                if done := number[stage] - number_then[stage]:
                    means[stage or "request"] = 1e3 * (seconds - spent_then[stage]) / done
        return means

    def _by(self, name: str, label: str = "") -> Mapping[str, float]:
        """Values of one metric by `label`, summed over all its other labels; 0 for what was not seen."""
        sums: dict[str, float] = defaultdict(float)
        for (found, labels), value in self.samples.items():
            if found == name:
                sums[dict(labels).get(label, "")] += value
        return sums
