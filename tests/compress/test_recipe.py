"""Every setting of a run: read, overridden, written, read again."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.recipe import Recipe, builtin_recipes, unusual

SHARES = st.floats(0, 1)
POSITIVE = st.floats(1e-9, 1e9)
COUNTS = st.integers(1, 10**6)
SIZES = st.none() | st.tuples(COUNTS, COUNTS).map(list)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
FIT = {
    "epochs": COUNTS,
    "batch_size": COUNTS,
    "learning_rate": st.floats(1e-9, 1000),
    "warmup": SHARES,
    "ema_decay": st.floats(0, 1, exclude_max=True),
    "seed": st.integers(0, 2**63 - 1),
    "schedule": st.fixed_dictionaries({}, optional={"kind": st.sampled_from(["onecycle", "poly", "restarts"])}),
    "swa": st.fixed_dictionaries({}, optional={"start": st.none() | st.floats(0, 1, exclude_max=True)}),
    "patience": st.none() | COUNTS,
    "loss": st.fixed_dictionaries(
        {},
        optional={
            "pixel": st.sampled_from(["cross-entropy", "focal", "ohem"]),
            "class_weights": st.sampled_from(["equal", "balanced"]) | st.lists(POSITIVE, min_size=1, max_size=4),
            "label_smoothing": st.floats(0, 1, exclude_max=True),
        },
    ),
}


def trees(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, in any order."""
    return st.fixed_dictionaries({}, optional=fields)


RECIPES = trees(
    data=trees(
        path=st.none() | TEXT.filter(lambda text: "\0" not in text),
        channels=st.sampled_from([1, 3, "auto"]),
        size=SIZES,
        crop=SIZES,
    ),
    model=trees(base=COUNTS, depth=st.integers(1, 6), skip=st.sampled_from(["concat", "add", "none"])),
    train=trees(
        **FIT,
        device=TEXT,
        augment=trees(rotate_degrees=st.floats(0, 180), scale=st.tuples(POSITIVE, POSITIVE).map(sorted)),
    ),
    prune=trees(ratio=st.floats(0.01, 0.99), latency_size=SIZES, finetune=trees(**FIT, temperature=POSITIVE)),
    quantize=trees(max_drop=SHARES, force=st.booleans(), calibration_images=COUNTS),
    export=trees(name=st.none() | st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")),
    budget=trees(speedup=st.none() | st.floats(1, 100, exclude_min=True), max_drop=st.none() | SHARES),
    bench=trees(threads=st.none() | COUNTS),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(RECIPES)
def test_a_recipe_that_is_written_and_read_is_the_same(tmp_path: Path, tree: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(tree)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == recipe
    assert Recipe.load(path).to_toml() == recipe.to_toml()
    assert tomllib.loads(recipe.to_toml()) == recipe.as_tree()


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    assert Recipe.load(tmp_path / "empty.toml") == Recipe() == Recipe.load() == Recipe.load(None, [])


@pytest.mark.parametrize(
    ("text", "place", "value"),
    [
        ("train.epochs=20", ("train", "epochs"), 20),
        ("train.learning_rate=2e-4", ("train", "learning_rate"), 2e-4),
        ("train.learning_rate=1", ("train", "learning_rate"), 1.0),
        ("data.path=/data/with space", ("data", "path"), Path("/data/with space")),
        ("data.path='quoted'", ("data", "path"), Path("quoted")),
        ("data.channels=3", ("data", "channels"), 3),
        ("data.channels=auto", ("data", "channels"), "auto"),
        ("data.size=[96, 128]", ("data", "size"), (96, 128)),
        ("quantize.force=true", ("quantize", "force"), True),
        ("prune.finetune.epochs=3", ("prune", "finetune", "epochs"), 3),
        ("train.augment.scale=[0.5, 2]", ("train", "augment", "scale"), (0.5, 2.0)),
        ("train.precision = bfloat16", ("train", "precision"), "bfloat16"),
        ("train.loss.pixel=none", ("train", "loss", "pixel"), "none"),
        ("model.skip=none", ("model", "skip"), "none"),
        ("train.patience=none", ("train", "patience"), None),
    ],
)
def test_an_override_has_the_type_of_its_setting(text: str, place: tuple[str, ...], value: object) -> None:
    found: Any = Recipe.load(None, [text])
    for name in place:
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize("name", ["1.10", "2024", "2024-01-31", "1e3"])
def test_a_name_that_looks_like_something_else_stays_as_it_was_typed(name: str) -> None:
    recipe = Recipe.load(None, [f"export.version={name}", f"export.name= {name}", f"data.path={name}"])
    assert (recipe.export.version, recipe.export.name, recipe.data.path) == (name, name, Path(name))


def test_overrides_win_over_the_file_and_the_last_over_the_first(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepochs = 5\nbatch_size = 2\n[train.augment]\nbrightness = 0.5\n")
    recipe = Recipe.load(path, ["train.epochs=6", "train.epochs=7", "train.augment.contrast=0.25"])
    assert (recipe.train.epochs, recipe.train.batch_size) == (7, 2)
    assert (recipe.train.augment.brightness, recipe.train.augment.contrast) == (0.5, 0.25)


def test_a_whole_section_may_be_given() -> None:
    assert Recipe.load(None, ["train={epochs = 3}"]).train.epochs == 3


def test_built_in_recipes_load_by_name_and_by_path() -> None:
    assert "demo" in builtin_recipes()
    for name, path in builtin_recipes().items():
        recipe = Recipe.load(name)
        assert recipe == Recipe.load(path)
        # `compress run` needs to know how much to prune.
        assert recipe.prune.speedup or recipe.prune.ratio
    assert Recipe.load("demo").export.name == "coastlines"


def test_the_articles_recipe_is_what_the_article_says() -> None:
    recipe = Recipe.load("article")
    train = recipe.train
    assert recipe.data.size == (256, 256)
    assert (train.batch_size, train.learning_rate, train.schedule.kind) == (16, 3e-4, "onecycle")
    assert (train.loss.pixel, train.loss.dice_weight) == ("cross-entropy", 1.0)
    augment = train.augment
    assert (augment.flip_horizontal, augment.flip_vertical) == (0.5, 0.5)
    assert (augment.rotate_degrees, augment.shear_degrees) == (15, 10)
    assert augment.brightness == augment.contrast == augment.saturation == 0.2


def test_a_folder_of_a_built_in_name_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert Recipe.load("demo") == Recipe.load(builtin_recipes()["demo"])


def test_a_file_of_a_built_in_name_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("[train]\nepochs = 2\n")
    assert Recipe.load("demo").train.epochs == 2


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("data.crop=[64, 96]", "train.epochs=3", 'train.loss.class_weights="balanced"', "prune.speedup=4.5"),
        ('model.factory="unetpp"', "model.depth=3", 'quantize.min_iou={"a b" = 0.5}', "data.size=[10, 12]"),
        ('data.path="\U0001f697"', 'quantize.min_iou={"\U0001f697" = 0.5}'),
        ('model.factory="file.py:Net"', 'model.arguments={"width" = 8}'),
    ],
)
def test_what_is_unusual_makes_the_same_recipe(settings: tuple[str, ...]) -> None:
    recipe = Recipe.load(None, list(settings))
    found = unusual(recipe.model_dump(mode="json"))
    assert len(found) == len(settings)
    assert Recipe.load(None, list(found)) == recipe


def test_a_model_of_another_version_is_unusual() -> None:
    assert unusual({"model": {"factory": "vnet", "base": 32}}) == ('model.factory="vnet"',)


def test_a_setting_of_another_version_is_unusual() -> None:
    assert unusual({"train": {"epochs": 60, "warp": True}}) == ("train.warp=true",)
