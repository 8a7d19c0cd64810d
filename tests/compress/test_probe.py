"""The probe times the parent's graph with weights of the pruned shapes, which are those of the real export."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.networks import Mobile, exported, random_network, random_unet, seeded
from torch import Tensor, nn

from compress.models.plan import PruningPlan
from compress.prune import probe
from compress.prune.importance import scores_of
from compress.prune.probe import LatencyProbe, Measured, with_shapes_of
from export.errors import BundleError, ShapeError
from export.runtime import OnnxModel
from export.timing import Samples
from export.to_onnx import with_outputs

SLOW = pytest.mark.slow


def shapes(graph: onnx.ModelProto) -> list[tuple[str, list[list[int]], list[int]]]:
    """For each operator, in the order of the graph: its type, the shapes of its constants, and its number of groups."""
    dims = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
    return [
        (
            node.op_type,
            [dims[name] for name in node.input if name in dims],
            [attribute.i for attribute in node.attribute if attribute.name == "group"],
        )
        for node in graph.graph.node
    ]


@pytest.mark.parametrize(
    "made",
    [
        random_unet,
        pytest.param(lambda: random_unet(upsampling="transposed", block="residual", squeeze_excite=True), marks=SLOW),
        pytest.param(lambda: random_unet(upsampling="bilinear", skip="add", block="residual"), marks=SLOW),
        pytest.param(lambda: random_unet(skip="none", squeeze_excite=True), marks=SLOW),
        pytest.param(lambda: random_network("unetpp", block="residual", squeeze_excite=True), marks=SLOW),
        lambda: seeded(Mobile),
    ],
    ids=["plain", "residual-se-transposed", "residual-add-bilinear", "se-none", "unetpp-residual-se", "depthwise"],
)
def test_the_probes_graph_has_the_shapes_of_the_real_export(made: Callable[[], nn.Module]) -> None:
    network = made()
    parent = exported(network)
    plan = scores_of(network, channels=1).plan(0.5, 8)
    assert len({after for _, after in plan.widths().values()}) > 1
    pruned = plan.apply(network, channels=1)
    guessed, real = with_shapes_of(parent, pruned), exported(pruned)
    assert shapes(guessed) == shapes(real) != shapes(parent)
    # Each BatchNorm directly follows a convolution, and is folded into it.
    assert "BatchNormalization" not in {node.op_type for node in real.graph.node}

    image = np.zeros((2, 12, 20, 1), np.uint8)
    model = OnnxModel(guessed.SerializeToString(), threads=1)
    assert model.masks(image).shape == (2, 12, 20)
    assert np.isfinite(model.logits(image)).all()


class Gated(nn.Module):
    """Channel attention as it is often written: a Python number carries the width into a constant of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.size_multiple = 4
        self.stem, self.gate, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 16), nn.Conv2d(16, 3, 1)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        x = self.stem(image_NCHW)
        gate = self.gate(x.mean((2, 3))).sigmoid().view(*x.shape[:2], 1, 1)
        out: Tensor = self.head(x * gate)
        return out


def test_a_graph_in_which_a_width_stands_elsewhere_too_is_never_timed() -> None:
    network = Gated()
    plan = scores_of(network, channels=1).plan(0.5, 4)
    asked = LatencyProbe(with_outputs(exported(network), "mask"), size=(16, 24), channels=1)
    with pytest.raises((BundleError, ShapeError)):
        asked.speedup(plan.apply(network, channels=1))


def test_a_plan_that_cuts_nothing_changes_no_shape() -> None:
    network = random_unet()
    parent = exported(network)
    assert shapes(with_shapes_of(parent, PruningPlan(cuts=()).apply(network, channels=1))) == shapes(parent)


def test_a_speedup_is_the_ratio_of_medians_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(models: dict[str, Any], *, rounds: int) -> dict[str, Samples]:
        for run in models.values():
            run()
        return {"parent": Samples((11.9, 12.0, 100.0)), "child": Samples((2.9, 3.0, 4.0))}

    monkeypatch.setattr(probe, "interleaved", fake)
    network = random_unet()
    asked = LatencyProbe(with_outputs(exported(network), "mask"), size=(16, 24), channels=1)
    assert asked.speedup(network) == pytest.approx(4.0)
    measured = asked.measure(with_outputs(exported(network), "mask"))
    assert (measured.speedup, measured.milliseconds) == (4.0, 3.0)
    assert measured.disturbed == pytest.approx(0.1 / 2.9)


class SharedMachine:
    """Stands in for the runtime and its clock. The parent takes 30 ms and the child 3. While other work shares the
    machine, both take half as long again, and most of the child's short runs also wait 4 ms for a core."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, busy_rounds: int) -> None:
        self.now_ns = 0
        self.busy_rounds = busy_rounds
        monkeypatch.setattr("time.perf_counter_ns", lambda: self.now_ns)
        monkeypatch.setattr(probe, "OnnxModel", self._model)

    def measured(self) -> Measured:
        parent, child = (helper.make_model(helper.make_graph([], name, [], [])) for name in ("parent", "child"))
        return LatencyProbe(parent, size=(16, 24), channels=1).measure(child)

    def _model(self, model: bytes, **_: Any) -> Any:
        usual, wait = {"parent": (30.0, 0.0), "child": (3.0, 4.0)}[onnx.load_from_string(model).graph.name]
        rounds = iter(range(1000))

        def masks(_: Any) -> None:
            index = next(rounds)
            busy = index < self.busy_rounds
            self.now_ns += int(1e6 * (usual * 1.5 + (wait if index % 5 else 0.0) if busy else usual))

        return SimpleNamespace(masks=masks)


ONE_RUN = 3 + probe.ROUNDS
"""Rounds of one measurement, its warm-up of 3 included."""


def test_a_quiet_machine_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SharedMachine(monkeypatch, busy_rounds=0)
    assert machine.measured() == Measured(10.0, 3.0, disturbed=0.0)
    assert machine.now_ns == ONE_RUN * 33e6


def test_what_other_work_disturbs_is_measured_again_until_it_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """One measurement alone would find this network 5.3 times as fast as its parent, and its goal out of reach."""
    machine = SharedMachine(monkeypatch, busy_rounds=2 * ONE_RUN)
    assert machine.measured() == Measured(10.0, 3.0, disturbed=0.0)


def test_where_other_work_never_pauses_that_is_told_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SharedMachine(monkeypatch, busy_rounds=1000)
    measured = machine.measured()
    assert measured.speedup == pytest.approx(45 / 8.5)
    assert measured.disturbed == pytest.approx(8.5 / 4.5 - 1)
