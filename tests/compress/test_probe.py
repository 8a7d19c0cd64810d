"""How fast a plan would be is asked of the parent's graph with weights of other shapes: those of the real export."""

from typing import Any

import numpy as np
import onnx
import pytest
from support.networks import exported, random_unet

from compress.models.plan import PruningPlan
from compress.prune import probe
from compress.prune.decide import Scores
from compress.prune.probe import LatencyProbe, with_shapes_of
from export.runtime import OnnxModel
from export.timing import Samples
from export.to_onnx import with_outputs

SLOW = pytest.mark.slow


def shapes(graph: onnx.ModelProto) -> list[tuple[str, list[list[int]]]]:
    """Of the constants that go into each operator, in the order of the graph."""
    dims = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
    return [(node.op_type, [dims[name] for name in node.input if name in dims]) for node in graph.graph.node]


@pytest.mark.parametrize(
    "architecture",
    [
        {"upsampling": "nearest", "skip": "concat"},
        pytest.param({"upsampling": "transposed", "skip": "concat"}, marks=SLOW),
        pytest.param({"upsampling": "bilinear", "skip": "add"}, marks=SLOW),
        pytest.param({"upsampling": "nearest", "skip": "none"}, marks=SLOW),
    ],
    ids=lambda architecture: "-".join(architecture.values()),
)
def test_the_probes_graph_has_the_shapes_of_the_real_export(architecture: dict[str, Any]) -> None:
    network = random_unet(**architecture)
    parent = exported(network)
    plan = Scores.magnitude(network, channels=1).plan(0.5, 4)
    assert len({after for _, after in plan.widths().values()}) > 1
    pruned = plan.apply(network, channels=1)
    guessed, real = with_shapes_of(parent, pruned), exported(pruned)
    assert shapes(guessed) == shapes(real) != shapes(parent)

    image = np.zeros((2, 12, 20, 1), np.uint8)
    model = OnnxModel(guessed.SerializeToString(), threads=1)
    assert model.masks(image).shape == (2, 12, 20)
    assert np.isfinite(model.logits(image)).all()


def test_a_plan_that_cuts_nothing_changes_no_shape() -> None:
    network = random_unet()
    parent = exported(network)
    assert shapes(with_shapes_of(parent, PruningPlan(cuts=()).apply(network, channels=1))) == shapes(parent)


def test_a_speedup_is_the_ratio_of_medians_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(models: dict[str, Any], *, rounds: int) -> dict[str, Samples]:
        for run in models.values():
            run()
        return {"parent": Samples((9.0, 12.0, 100.0)), "child": Samples((3.0, 4.0, 0.1))}

    monkeypatch.setattr(probe, "interleaved", fake)
    network = random_unet()
    asked = LatencyProbe(with_outputs(exported(network), "mask"), size=(16, 24), channels=1)
    assert asked.speedup(network) == pytest.approx(4.0)
    assert asked.measure(with_outputs(exported(network), "mask")) == pytest.approx(4.0)
