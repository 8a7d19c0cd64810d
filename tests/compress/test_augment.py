"""Augmentation: the mask follows the image exactly, and never holds a value that was not there."""

import colorsys
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.data.augment import Augment
from compress.data.change import FIELDS, WIDEST, Change
from compress.data.warp import warped
from compress.settings.augment import AugmentSettings
from export.scoring import VOID

NOTHING: dict[str, Any] = {
    "flip_horizontal": 0.0,
    "flip_vertical": 0.0,
    "quarter_turn": 0.0,
    "rotate_degrees": 0.0,
    "scale": (1.0, 1.0),
    "brightness": 0.0,
    "contrast": 0.0,
    "gamma": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
}


def augmented(images: Tensor, masks: Tensor, *, seed: int = 0, **settings: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    out: tuple[Tensor, Tensor] = Augment(AugmentSettings(**{**NOTHING, **settings}))(images, masks)
    return out


def blobs(count: int, *, side: int = 64, classes: int = 3, seed: int = 0) -> Tensor:
    """Masks of a few large shapes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, classes, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    return smooth.argmax(1).to(torch.uint8)


def painted(masks: Tensor) -> Tensor:
    """An image that shows its mask as 1, 2, 3 ..., so that the padding value 0 is none of them."""
    return masks[:, None].float() + 1


def seen(images: Tensor) -> Tensor:
    return images[:, 0].round() - 1


def inside(masks: Tensor) -> Tensor:
    """Pixels whose neighbours are all in the frame and of the same class."""
    known = torch.where(masks == VOID, -1, masks.long()).float()[:, None]
    padded = torch.nn.functional.pad(known, (2, 2, 2, 2), value=-1)
    high = torch.nn.functional.max_pool2d(padded, 5, stride=1)
    low = -torch.nn.functional.max_pool2d(-padded, 5, stride=1)
    return ((high == low) & (known >= 0))[:, 0]


@settings(max_examples=15)
@given(
    st.integers(0, 1000),
    st.sampled_from([0.0, 10.0, 45.0, 180.0]),
    st.sampled_from([0.0, 10.0, 30.0]),
    st.sampled_from([(1.0, 1.0), (0.8, 1.25), (0.5, 0.5), (1.7, 1.7)]),
    st.sampled_from([(48, 64), (64, 48), (63, 33)]),
)
@example(218, 0.0, 30.0, (0.5, 0.5), (64, 48))
def test_a_mask_follows_its_image(
    seed: int, rotate_degrees: float, shear_degrees: float, scale: tuple[float, float], size: tuple[int, int]
) -> None:
    masks = blobs(4, seed=seed)[:, : size[0], : size[1]]
    images, moved = augmented(
        painted(masks),
        masks,
        seed=seed,
        flip_horizontal=0.5,
        flip_vertical=0.5,
        rotate_degrees=rotate_degrees,
        shear_degrees=shear_degrees,
        scale=scale,
    )
    assert images.shape == painted(masks).shape
    assert moved.shape == masks.shape
    assert moved.dtype == torch.uint8
    sure = inside(moved)
    assert sure.float().mean() > 0.03
    # At half the size something of the source may lie between pixels that agree.
    assert (seen(images)[sure] == moved[sure].float()).float().mean() > 0.995
    # Bilinear and nearest differ only at edges; a shift of half a pixel between them would make more pixels differ.
    known = moved != VOID
    edges = 0.07 if scale == (0.5, 0.5) else 0.05
    assert (seen(images)[known] == moved[known].float()).float().mean() > 1 - edges


@given(st.integers(0, 100), st.booleans(), st.booleans(), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=20)
def test_flips_are_exact(seed: int, horizontal: bool, vertical: bool, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, height, width, generator=generator)
    masks = torch.randint(0, 256, (3, height, width), generator=generator).to(torch.uint8)
    flipped = augmented(images, masks, flip_horizontal=float(horizontal), flip_vertical=float(vertical))
    axes = [-1] * horizontal + [-2] * vertical
    assert torch.equal(flipped[0], images.flip(axes))
    assert torch.equal(flipped[1], masks.flip(axes))


@given(st.integers(0, 100), st.integers(1, 9))
@settings(max_examples=20)
def test_quarter_turns_are_exact_and_go_either_way(seed: int, side: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(40, 2, side, side, generator=generator)
    masks = torch.randint(0, 256, (40, side, side), generator=generator).to(torch.uint8)
    turned, moved = augmented(images, masks, seed=seed, quarter_turn=1.0)
    ways = set()
    for before, after, mask, label in zip(images, turned, masks, moved, strict=True):
        way = next(k for k in (1, -1) if torch.equal(after, before.rot90(k, (1, 2))))
        assert torch.equal(label, mask.rot90(way, (0, 1)))
        ways.add(way)
    assert side == 1 or ways == {1, -1}


def test_quarter_turns_come_as_often_as_is_asked_and_pad_to_a_square() -> None:
    masks = torch.ones(400, 2, 6, dtype=torch.uint8)
    images, moved = augmented(painted(masks), masks, quarter_turn=0.25)
    assert images.shape == (400, 1, 6, 6)
    known = moved != VOID
    assert torch.equal(images[:, 0] != 0, known)
    assert (known.sum((1, 2)) == 12).all()
    lying = known[:, :2].all(2).all(1)
    assert 60 < int((~lying).sum()) < 140


def test_each_image_of_a_batch_is_drawn_for_itself_and_the_seed_decides() -> None:
    masks = blobs(1).expand(16, -1, -1)
    chosen: dict[str, Any] = {"flip_horizontal": 0.5, "rotate_degrees": 20.0, "brightness": 0.2}
    images, moved = augmented(painted(masks), masks, seed=3, **chosen)
    assert len({tuple(mask.flatten().tolist()) for mask in moved}) > 10
    again = augmented(painted(masks), masks, seed=3, **chosen)
    assert torch.equal(images, again[0])
    assert torch.equal(moved, again[1])
    assert not torch.equal(images, augmented(painted(masks), masks, seed=4, **chosen)[0])


def test_half_the_images_are_flipped_when_half_are_asked_for() -> None:
    masks = torch.zeros(400, 4, 4, dtype=torch.uint8)
    masks[:, :, 0] = 1
    _, moved = augmented(painted(masks), masks, flip_horizontal=0.5)
    flipped = int((moved[:, 0, -1] == 1).sum())
    assert 150 < flipped < 250
    assert int((moved[:, 0, 0] == 1).sum()) == 400 - flipped


def test_what_comes_from_outside_the_frame_is_void_and_padding() -> None:
    masks = blobs(4)
    images, moved = augmented(painted(masks), masks, scale=(0.5, 0.5))
    assert (moved == VOID).float().mean() == pytest.approx(0.75, abs=0.01)
    assert (moved[:, :14] == VOID).all()
    assert (moved[:, 20:44, 20:44] != VOID).all()
    assert (images[:, 0, :14] == 0).all()
    # A zoom by two shows the middle quarter and nothing from outside.
    _, zoomed = augmented(painted(masks), masks, scale=(2.0, 2.0))
    assert (zoomed != VOID).all()
    agreement = zoomed == masks[:, 16:48, 16:48].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert agreement.float().mean() > 0.95


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sets(st.sampled_from([0, 1, 2, 100, 253, 254, VOID]), min_size=1))
def test_no_class_is_invented(seed: int, values: set[int]) -> None:
    held = torch.tensor(sorted(values), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    masks = held[torch.randint(len(held), (2, 24, 24), generator=generator)]
    _, moved = augmented(
        torch.zeros(2, 1, 24, 24), masks, seed=seed, flip_horizontal=0.5, rotate_degrees=30.0, scale=(0.7, 1.4)
    )
    assert set(moved.flatten().tolist()) <= values | {VOID}


def test_light_changes_the_image_and_not_the_mask() -> None:
    masks = blobs(64)
    plain = painted(masks)
    images, moved = augmented(plain, masks, brightness=0.2, contrast=0.3)
    assert torch.equal(moved, masks)
    # Two levels of an image determine its gain and offset.
    for image, mask in zip(images[:, 0], masks, strict=True):
        levels = {int(k): image[mask == k] for k in mask.unique()}
        assert all(torch.allclose(level, level[0].expand_as(level), atol=1e-6) for level in levels.values())
        if {0, 1} <= levels.keys():
            gain = float(levels[1][0] - levels[0][0])
            offset = float(levels[0][0]) - gain
            assert 0.7 <= gain <= 1.3
            assert -0.2 <= offset <= 0.2
    assert images.mean((1, 2, 3)).std() > plain.mean((1, 2, 3)).std()


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_gamma_is_a_power_of_the_pixels_from_0_to_1(level: float) -> None:
    images, _ = augmented(torch.full((64, 1, 2, 2), level * 2 - 1), blobs(64, side=2), gamma=0.4)
    powers = ((images[:, 0, 0, 0] + 1) / 2).log() / torch.tensor(level).log()
    assert powers.min() == pytest.approx(0.6, abs=0.1)
    assert powers.max() == pytest.approx(1.4, abs=0.1)
    assert (images.amax((1, 2, 3)) == images.amin((1, 2, 3))).all()


@pytest.mark.parametrize("colour", [(0.8, 0.4, 0.2), (0.3, 0.35, 0.6), (0.2, 0.7, 0.6)])
def test_hue_and_saturation_move_within_their_range_and_nothing_else_does(colour: tuple[float, float, float]) -> None:
    images = (torch.tensor(colour) * 2 - 1)[:, None, None].expand(64, 3, 2, 2).contiguous()
    changed, _ = augmented(images, blobs(64, side=2), hue=0.05, saturation=0.4)
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    found = [colorsys.rgb_to_hsv(*pixel) for pixel in ((changed[:, :, 0, 0] + 1) / 2).tolist()]
    turns = [(each[0] - hue + 0.5) % 1 - 0.5 for each in found]
    gains = [each[1] / saturation for each in found]
    assert -0.051 < min(turns) < -0.03 < 0.03 < max(turns) < 0.051
    assert 0.59 < min(gains) < 0.75
    assert 1.25 < max(gains) < 1.41 or max(each[1] for each in found) == pytest.approx(1.0, abs=1e-3)
    assert all(each[2] == pytest.approx(value, abs=1e-3) for each in found)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_grey_has_no_colour_to_change(channels: int) -> None:
    grey = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(8, channels, 4, 4) * 2 - 1
    changed, _ = augmented(grey, blobs(8, side=4), hue=0.5, saturation=1.0)
    assert torch.allclose(changed, grey, atol=1e-5)


def test_without_augmentation_nothing_changes() -> None:
    masks = blobs(2)
    images, moved = augmented(painted(masks), masks)
    assert torch.equal(images, painted(masks))
    assert torch.equal(moved, masks)


def test_shear_leans_as_far_as_is_asked_and_no_further() -> None:
    """Measured as how far an upright edge leans between two rows."""
    masks = torch.zeros(200, 96, 96, dtype=torch.uint8)
    masks[:, :, 48:] = 1
    _, moved = augmented(painted(masks), masks, shear_degrees=10.0)
    left = (moved[:, (28, 68)] == 0).sum(2).float() + (moved[:, (28, 68)] == VOID).int().cumprod(2).sum(2)
    slopes = (left[:, 1] - left[:, 0]) / 40
    assert slopes.abs().max() == pytest.approx(math.tan(math.radians(10)), abs=0.03)
    assert slopes.min() < -0.1 < 0.1 < slopes.max()


def test_noise_is_gaussian_and_leaves_the_mask() -> None:
    masks = blobs(64)
    images, moved = augmented(painted(masks), masks, noise=0.2)
    assert torch.equal(moved, masks)
    added = (images - painted(masks)).flatten(1)
    assert added.std(1).max() == pytest.approx(0.2, abs=0.02)
    assert added.std(1).min() < 0.02
    assert added.mean(1).abs().max() < 0.02
    kurtosis = (added / added.std(1, keepdim=True)).pow(4).mean(1)
    assert kurtosis.mean() == pytest.approx(3.0, abs=0.05)


def test_a_hole_is_grey_and_void_and_of_the_size_that_is_asked_for() -> None:
    masks = blobs(400, side=40)
    images, moved = augmented(painted(masks), masks, cutout=0.5, cutout_side=0.5)
    hole = moved == VOID
    assert torch.equal(images[:, 0] == 0, hole)
    assert torch.equal(moved[~hole], masks[~hole])
    sizes = torch.stack([hole.any(2).sum(1), hole.any(1).sum(1)])
    assert torch.equal(sizes.prod(0), hole.sum((1, 2)))  # rectangles
    assert 150 < int(hole.any(2).any(1).sum()) < 250
    assert int(sizes.max()) in (19, 20)
    whole = (hole.any(1)[:, (0, -1)] | hole.any(2)[:, (0, -1)]).any(1).logical_not() & hole.any(2).any(1)
    assert int(sizes[:, whole].min()) >= 9


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_a_policy_moves_image_and_mask_together_and_each_image_by_itself(policy: str) -> None:
    masks = blobs(60)
    plain = (masks[:, None].float() - 1) * 0.6
    images, moved = augmented(plain, masks, policy=policy)
    sure = inside(moved)
    for image, mask, certain in zip(images[:, 0], moved, sure, strict=True):
        levels = [image[(mask == k) & certain] for k in range(3)]
        shown = [level for level in levels if len(level) > 20]
        assert all((level - level.median()).abs().mean() < 0.25 for level in shown)
        medians = [float(level.median()) for level in shown]
        assert medians == sorted(medians)
    changed = (moved != masks).flatten(1).any(1).float().mean()
    assert 0.3 < changed < 0.9  # half of the operations move pixels, the other half change light and colour
    assert len({tuple(mask.flatten().tolist()) for mask in moved}) > 20


@pytest.mark.parametrize(("policy", "settings"), [("trivial", {}), ("rand", {"policy_operations": 3})])
def test_a_policy_draws_as_many_operations_as_is_asked_and_none_is_wild(policy: str, settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    chosen = AugmentSettings.model_validate({**NOTHING, "policy": policy, "policy_strength": 0.5, **settings})
    values = Change.drawn(chosen, 2000, torch.device("cpu")).values_FN
    drawn = (values != 0).sum(0)
    assert int(drawn.max()) == settings.get("policy_operations", 1)
    assert (values != 0).any(1).all()  # every operation is drawn
    for field, row in zip(FIELDS, values, strict=True):
        alone = row[(drawn == 1) | (policy == "trivial")].abs()
        limit = 0.5 * WIDEST[field] * (1 if policy == "trivial" else 3)
        assert alone.max() <= limit + 1e-6
        assert row.min() < 0 < row.max()
    strengths = (values[0][values[0] != 0].abs() / (0.5 * WIDEST["angle"])).unique()  # type: ignore[no-untyped-call]
    assert (len(strengths) > 50) == (policy == "trivial")


def test_operations_that_add_up_neither_end_a_training_nor_turn_light_to_dark() -> None:
    settings: dict[str, Any] = {"policy": "rand", "policy_strength": 2.0, "policy_operations": 4}
    torch.manual_seed(0)
    drawn = Change.drawn(AugmentSettings.model_validate({**NOTHING, **settings}), 4000, torch.device("cpu"))
    for field in ("gamma", "saturation", "contrast"):
        assert (1 + drawn[field]).min() < 0
        assert drawn.factor(field).min() > 0
    masks = torch.zeros(4000, 4, 4, dtype=torch.uint8)
    changed, _ = augmented(torch.full((4000, 3, 4, 4), -0.2), masks, **settings)
    assert changed.isfinite().all()


def test_what_is_shifted_leaves_void_behind() -> None:
    masks = blobs(2, side=40)
    values = torch.zeros(len(FIELDS), 2)
    values[FIELDS.index("shift_x"), 0], values[FIELDS.index("shift_y"), 1] = 0.25, -0.1
    images, moved = warped(Change(values), painted(masks), masks)
    assert (moved[0, :, :10] == VOID).all()
    assert (moved[1, -4:] == VOID).all()
    assert torch.equal(moved[0, :, 10:], masks[0, :, :-10])
    assert torch.equal(moved[1, :-4], masks[1, 4:])
    assert torch.equal(images[:, 0] < 0.5, moved == VOID)
