"""From training to serving with images that are neither grey nor RGB: RGBA files, and TIFFs of five pages."""

from pathlib import Path

import httpx
import numpy as np
import pytest
from support.bundles import tiny_bundle
from support.datasets import write_dataset
from support.recipes import TINY_SETTINGS
from support.servers import serving

from compress.anymodel import evaluate
from compress.export_fp32 import export
from compress.predict import predict
from compress.quantize import quantize
from compress.recipe import Recipe
from compress.train import train
from export.bundle import verify
from export.errors import UsageError
from export.images import U8, decode, decode_indices, encode_image
from export.overlay import overlay


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "kind"), [(4, "png"), (5, "tiff")])
def test_the_whole_way(channels: int, kind: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", counts={"train": 4, "val": 2, "test": 2}, size=(32, 40), channels=channels)
    settings = [*TINY_SETTINGS, f"data.channels={channels}", "model.depth=1", "train.epochs=1", "quantize.max_drop=1"]
    recipe = Recipe.load(None, settings)

    dense = train(data, tmp_path / "dense", recipe)
    in_float = export(dense.path, tmp_path / "dense-fp32", recipe, data=data)
    int8 = quantize(dense.path, data, tmp_path / "int8", recipe)
    assert (dense.card.channels, in_float.manifest.channels, int8.manifest.channels) == (channels,) * 3
    assert {path.suffix for path in (int8.path / "golden").glob("*.image.*")} == {f".{kind}"}
    for made in (in_float, int8):
        assert set(verify(made.path).golden_differing.values()) == {0.0}
    scores = [evaluate(made.path, data, threads=1).miou for made in (dense, in_float)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)

    predictions = predict(int8.path, data / "test" / "images", tmp_path / "out", threads=1)
    with serving([int8.path]) as url:
        for written in predictions:
            mask = decode_indices(written.mask)
            image = decode(written.image, channels)
            np.testing.assert_array_equal(decode(written.overlay, 3), overlay(image, mask, int8.manifest.colours))
            response = httpx.post(
                f"{url}/v1/models/{int8.manifest.name}/segment",
                content=written.image.read_bytes(),
                headers={"Content-Type": f"image/{kind}"},
            )
            assert response.status_code == 200, response.text
            np.testing.assert_array_equal(decode_indices(response.content), mask)


def test_predict_names_every_file_of_other_bands_and_writes_nothing(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "four", channels=4)
    images = tmp_path / "images"
    images.mkdir()
    for name, channels in (("a.png", 4), ("b.png", 3), ("c.tiff", 5)):
        (images / name).write_bytes(encode_image(np.zeros((20, 20, channels), np.uint8)))
    with pytest.raises(UsageError) as caught:
        predict(made.path, images, tmp_path / "out")
    assert f"{images / 'b.png'}: 3 channels, but 4 channels are asked for" in str(caught.value)
    assert f"{images / 'c.tiff'}: more than 4 pages, but 4 channels are asked for" in str(caught.value)
    assert "a.png" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("bands", "shown"), [([100, 9], [100] * 3), ([10, 20, 30, 9, 9], [10, 20, 30])])
def test_an_overlay_shows_the_first_bands(bands: list[int], shown: list[int]) -> None:
    image: U8 = np.array([[bands]], dtype=np.uint8)
    painted = overlay(image, np.zeros((1, 1), np.uint8), ((0, 0, 0),))
    assert painted.tolist() == [[[value // 2 for value in shown]]]
