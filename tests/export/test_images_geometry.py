"""An image is fitted to a model and its mask back to the image: sizes, padding, and no invented values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.errors import ShapeError
from export.images import PAD_VALUE, U8, Geometry, resize_image, resize_mask
from export.scoring import VOID

SIDES = st.integers(1, 70)
SIZES = st.tuples(SIDES, SIDES)
MULTIPLES = st.sampled_from([1, 2, 4, 8, 16, 32])
CLASS_NUMBERS = st.sampled_from([0, 1, 2, 7, 200, VOID])


def masks(size: tuple[int, int]) -> st.SearchStrategy[U8]:
    return hnp.arrays(np.uint8, size, elements=CLASS_NUMBERS)


def images(size: tuple[int, int]) -> st.SearchStrategy[U8]:
    return st.sampled_from([1, 2, 3, 4, 6]).flatmap(lambda channels: hnp.arrays(np.uint8, (*size, channels)))


def fitted_mask(geometry: Geometry, mask: U8) -> U8:
    """The target that goes with the image that the model is given: void where there is no image."""
    resized = resize_mask(mask, (geometry.resized_height, geometry.resized_width))
    target = np.full(geometry.padded, VOID, dtype=np.uint8)
    target[: resized.shape[0], : resized.shape[1]] = resized
    return target


@given(st.data(), SIZES, MULTIPLES)
def test_without_resizing_the_round_trip_is_exact(data: st.DataObject, size: tuple[int, int], multiple: int) -> None:
    image, mask = data.draw(images(size)), data.draw(masks(size))
    geometry = Geometry.plan(*size, size=None, multiple=multiple)
    fitted = geometry.fit(image)

    height, width = size
    assert fitted.shape == (*geometry.padded, image.shape[2])
    assert all(
        side % multiple == 0 and 0 <= side - own < multiple for side, own in zip(geometry.padded, size, strict=True)
    )
    np.testing.assert_array_equal(fitted[:height, :width], image)
    assert (fitted[height:] == PAD_VALUE).all()
    assert (fitted[:, width:] == PAD_VALUE).all()
    np.testing.assert_array_equal(geometry.restore(fitted_mask(geometry, mask)), mask)


@given(st.data(), SIZES, SIZES, MULTIPLES)
def test_resizing_never_invents_a_value(
    data: st.DataObject, size: tuple[int, int], wanted: tuple[int, int], multiple: int
) -> None:
    mask = data.draw(masks(size))
    geometry = Geometry.plan(*size, size=wanted, multiple=multiple)
    target = fitted_mask(geometry, mask)
    restored = geometry.restore(target)

    assert restored.shape == size
    held = set(np.unique(mask))
    assert set(np.unique(target[: wanted[0], : wanted[1]])) <= held
    # Padding is cropped off again: void does not leak into the answer.
    assert set(np.unique(restored)) <= held


@given(st.data(), SIZES, st.integers(0, 40), st.integers(0, 40), MULTIPLES)
def test_a_mask_that_was_enlarged_comes_back_as_it_was(
    data: st.DataObject, size: tuple[int, int], rows: int, columns: int, multiple: int
) -> None:
    mask = data.draw(masks(size))
    geometry = Geometry.plan(*size, size=(size[0] + rows, size[1] + columns), multiple=multiple)
    np.testing.assert_array_equal(geometry.restore(fitted_mask(geometry, mask)), mask)


@given(SIZES, SIZES, st.integers(0, 255), st.sampled_from([1, 2, 3, 4, 6]))
def test_a_flat_image_stays_flat(size: tuple[int, int], wanted: tuple[int, int], value: int, channels: int) -> None:
    resized = resize_image(np.full((*size, channels), value, dtype=np.uint8), wanted)
    assert resized.shape == (*wanted, channels)
    assert (resized == value).all()


@given(st.data(), SIZES, st.integers(1, 4))
def test_nearest_takes_the_pixel_at_the_same_place(data: st.DataObject, size: tuple[int, int], factor: int) -> None:
    mask = data.draw(masks(size))
    enlarged = resize_mask(mask, (factor * size[0], factor * size[1]))
    np.testing.assert_array_equal(enlarged, mask.repeat(factor, axis=0).repeat(factor, axis=1))


def test_bilinear_blends_neighbours_and_averages_when_it_shrinks() -> None:
    edge = np.array([[[0], [200]]], dtype=np.uint8)
    # Bilinear to twice the width: weights of 1/4 and 3/4 around the middle.
    np.testing.assert_array_equal(resize_image(edge, (1, 4))[0, :, 0], [0, 50, 150, 200])
    stripes = np.tile(np.array([0, 200], dtype=np.uint8), (8, 32))[..., None]
    middle = resize_image(stripes, (1, 8))[:, 2:-2]
    assert abs(int(middle.min()) - 100) <= 1
    assert abs(int(middle.max()) - 100) <= 1


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5)])
def test_an_image_without_pixels_is_refused(height: int, width: int) -> None:
    with pytest.raises(ShapeError, match="nothing to segment"):
        Geometry.plan(height, width, size=None, multiple=16)


def test_an_image_or_mask_of_another_size_is_refused() -> None:
    geometry = Geometry.plan(20, 30, size=None, multiple=16)
    with pytest.raises(ShapeError, match="planned for 20x30"):
        geometry.fit(np.zeros((30, 20, 3), dtype=np.uint8))
    with pytest.raises(ShapeError, match="planned for 32x32"):
        geometry.restore(np.zeros((20, 30), dtype=np.uint8))
