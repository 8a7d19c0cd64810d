"""What pruning cut from a network, read from the float bundles of both."""

from collections.abc import Mapping

import onnx

from benchmarks.report.results import GroupWidth
from export.bundle import Bundle
from export.graph import CONVOLUTIONS, attributes, layer_name


def cut_from(reference: Bundle, bundles: Mapping[str, Bundle]) -> tuple[str | None, tuple[GroupWidth, ...]]:
    """The name of the last of `bundles` that was cut from `reference`, and its convolutions beside those of
    `reference`, in the order of the network; a convolution that has gone keeps 0 channels. The network that the first
    cut began with is told of every later one, too.

    None and nothing where there is none, or `reference` is not in float. One that has only lost single weights is none.
    """
    weights = reference.manifest.parents.get("checkpoint")
    if weights is not None and reference.manifest.precision == "fp32":
        for name, bundle in reversed(list(bundles.items())):
            parents = bundle.manifest.parents
            if bundle.manifest.precision == "fp32" and weights in (parents.get("parent"), parents.get("ancestor")):
                before, after = _outputs(reference), _outputs(bundle)
                if before == after:
                    continue
                return name, tuple(
                    GroupWidth(layer=layer, width=width, kept=after.get(layer, 0)) for layer, width in before.items()
                )
    return None, ()


def _outputs(bundle: Bundle) -> dict[str, int]:
    """Output channels of each convolution whose kernel the exporter named after its layer."""
    graph = onnx.load(str(bundle.model_path)).graph
    kernels = {tensor.name: tensor.dims for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        kernel = node.input[1] if node.op_type in CONVOLUTIONS else ""
        if kernel in kernels and kernel.startswith("model.") and kernel.endswith(".weight"):
            made = (
                kernels[kernel][0] if node.op_type == "Conv" else kernels[kernel][1] * attributes(node).get("group", 1)
            )
            found[layer_name(kernel)] = made
    return found
