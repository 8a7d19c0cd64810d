"""A sound bundle is loaded, verified, copied and sealed again; golden answers may differ slightly elsewhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.bundles import expected_mask, tiny_bundle

from export.bundle import Bundle, is_bundle, load, seal, verify, write_golden
from export.errors import BundleError
from export.images import U8, decode_indices, encode_mask
from export.machine import InstructionSet, instruction_set
from export.manifest import Golden
from export.runtime import CPU, OPENVINO, OnnxModel

ELSEWHERE: InstructionSet = "arm_i8mm" if instruction_set() != "arm_i8mm" else "avx2"


def change_pixels(made: Bundle, name: str, count: int, **manifest: object) -> Bundle:
    """Seal `made` again with `count` pixels of a golden mask changed."""
    path = made.path / "golden" / f"{name}.mask.png"
    mask = decode_indices(path).copy()
    mask.ravel()[:count] = (mask.ravel()[:count] + 1) % 3
    path.write_bytes(encode_mask(mask))
    fields = made.manifest.model_dump(exclude={"files", "digest"}) | manifest
    return seal(made.path, **fields)


def test_a_sound_bundle_loads_and_verifies(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", classes=4)
    assert is_bundle(made.path)
    assert not is_bundle(tmp_path)
    assert load(made.path) == made
    found = verify(made.path, threads=1)
    assert found.bundle == made
    assert found.golden_differing == {"ramp-0": 0.0, "ramp-1": 0.0}
    assert found.warnings == ()
    assert made.size_bytes == (made.path / "model.onnx").stat().st_size


def test_golden_examples_are_read_back(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", channels=1)
    examples = list(made.golden())
    assert [name for name, _, _ in examples] == ["ramp-0", "ramp-1"]
    for _, image, mask in examples:
        assert image.shape == (*mask.shape, 1)
        np.testing.assert_array_equal(mask, expected_mask(image, 3))


def test_a_bundle_can_be_copied_and_its_hidden_files_do_not_count(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b")
    copy = shutil.copytree(made.path, tmp_path / "elsewhere" / "another name")
    (copy / ".DS_Store").write_bytes(b"scratch")
    assert verify(copy, threads=1).bundle.manifest == made.manifest


def test_sealing_twice_gives_the_same_manifest(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b")
    again = seal(made.path, **made.manifest.model_dump(exclude={"files", "digest"}))
    assert again.manifest == made.manifest


@pytest.mark.parametrize(
    ("measured_on", "pixels", "passes"),
    [
        # 96x200 golden pixels: 0.1 % are 19, 1 % are 192.
        (instruction_set(), 19, True),
        (instruction_set(), 20, False),
        (ELSEWHERE, 20, True),
        (ELSEWHERE, 192, True),
        (ELSEWHERE, 193, False),
    ],
)
def test_how_many_golden_pixels_may_differ(
    tmp_path: Path, measured_on: InstructionSet, pixels: int, passes: bool
) -> None:
    made = tiny_bundle(tmp_path / "b")
    image: U8 = np.random.default_rng(0).integers(0, 256, (96, 200, 3), dtype=np.uint8)
    golden = write_golden(made.path, made.segmenter(threads=1), [("large", image)])
    made = change_pixels(made, "large", pixels, golden=golden, instruction_set=measured_on)
    if passes:
        found = verify(made.path, threads=1)
        assert found.golden_differing == {"large": pixels / image[..., 0].size}
        assert [measured_on in warning for warning in found.warnings] == [True] * (measured_on == ELSEWHERE)
    else:
        with pytest.raises(BundleError, match="golden example large"):
            verify(made.path, threads=1)


def test_a_bundle_may_carry_no_golden_example(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", golden=Golden(names=()))
    assert verify(made.path, threads=1).golden_differing == {}


@pytest.mark.parametrize(("half_floats", "provider"), [(True, OPENVINO), (False, OPENVINO), (True, CPU)])
def test_a_refusal_names_the_16_bits_where_there_are_some(tmp_path: Path, half_floats: bool, provider: str) -> None:
    def opened(bundle: Bundle) -> OnnxModel:
        model = bundle.model(threads=1)
        model.providers = (provider,)
        return model

    made = change_pixels(tiny_bundle(tmp_path / "b"), "ramp-0", 99, precision="int8", half_floats=half_floats)
    with pytest.raises(BundleError, match="answers that were proven") as refused:
        verify(made.path, open_model=opened)
    assert ("quantize.half_floats=false" in str(refused.value)) == (half_floats and provider == OPENVINO)
