"""Without VNNI, products of U8 and S8 are added in pairs in 16 bits: 8-bit weights saturate, 7-bit weights do not."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.networks import exported
from torch import Tensor, nn

from compress.quantize.ptq import Quantizer
from compress.settings.quantize import Target
from export.images import U8
from export.runtime import OnnxModel
from export.to_onnx import with_outputs

QEMU = "qemu-x86_64-static"

RUN = """
import sys
import numpy as np
from pathlib import Path
from export.runtime import OnnxModel

model, images, masks = map(Path, sys.argv[1:])
np.save(masks, OnnxModel(model, threads=1).masks(np.load(images)))
"""


class Bright(nn.Module):
    """Equal weights within a filter and bright pictures make every sum of two products as large as it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.size_multiple = 1
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 3, 3, padding=1)
        with torch.no_grad():
            self.stem.weight.fill_(1.0)
            self.stem.bias.zero_()  # type: ignore[union-attr]
            self.head.weight.copy_(torch.tensor([1.0, 0.8, 0.6]).view(3, 1, 1, 1).expand_as(self.head.weight))
            self.head.bias.copy_(torch.tensor([-20.0, 10.0, 0.0]))  # type: ignore[union-attr]

    def forward(self, image_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.stem(image_NCHW)))
        return logits


def pictures() -> Iterator[U8]:
    rng = np.random.default_rng(0)
    for _ in range(4):
        coarse = rng.integers(0, 256, (5, 7), dtype=np.uint8)
        yield np.repeat(np.kron(coarse, np.ones((8, 8), np.uint8))[..., None], 3, axis=2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"needs {QEMU} (Debian: qemu-user-static)")
def test_eight_bit_weights_saturate_on_a_processor_without_vnni_and_seven_do_not(tmp_path: Path) -> None:
    graph = with_outputs(exported(Bright(), channels=3), "mask")
    images = np.stack(list(pictures()))
    expected = OnnxModel(graph.SerializeToString(), threads=1).masks(images)
    np.save(tmp_path / "images.npy", images)

    def differing(target: Target) -> float:
        """Share of the pixels in which INT8 on a Haswell differs from float."""
        model, masks = tmp_path / f"{target}.onnx", tmp_path / f"{target}.npy"
        onnx.save(Quantizer(graph, pictures(), target=target).quantized("minmax").graph, model)
        emulated = [QEMU, "-cpu", "Haswell", sys.executable, "-c", RUN, str(model), str(tmp_path / "images.npy")]
        subprocess.run([*emulated, str(masks)], check=True, capture_output=True)
        return float(np.mean(np.load(masks) != expected))

    assert differing("vnni") > 0.2
    assert differing("avx2") < 0.02
