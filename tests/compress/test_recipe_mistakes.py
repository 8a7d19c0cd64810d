"""Invalid recipes and overrides: each message names the place, the reason, and the nearest known name."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.cli.main import app
from compress.recipe import Recipe, builtin_recipes
from export.errors import RecipeError

FILES = {
    "not TOML": ("epochs: 20", ["not TOML"]),
    "cut short": ("[train\nepochs = 20", ["not TOML", "line 1"]),
    "twice": ("[train]\nepochs = 1\nepochs = 2", ["not TOML"]),
    "a section that is none": ("[trian]\nepochs = 1", ["trian: no such setting; did you mean 'train'?"]),
    "a name that is none": ("[train]\nepoch = 1", ["train.epoch: no such setting; did you mean 'epochs'?"]),
    "deeper": (
        "[prune.finetune]\nlearning_rat = 1",
        ["prune.finetune.learning_rat: no such setting; did you mean 'learning_rate'?"],
    ),
    "nothing like it": ("[bench]\nzzz = 1", ["bench.zzz: no such setting; known here: rounds, threads"]),
    "a word for a number": ("[train]\nepochs = 'many'", ["train.epochs = 'many': Input should be a valid integer"]),
    "none at all": ("[train]\nepochs = 0", ["train.epochs = 0: Input should be greater than or equal to 1"]),
    "a share above one": (
        "[quantize]\nmax_drop = 3",
        ["quantize.max_drop = 3: Input should be less than or equal to 1"],
    ),
    "an unknown word": ("[model]\nupsampling = 'cubic'", ["model.upsampling = 'cubic'", "'nearest', 'bilinear' or"]),
    "a size of one number": ("[data]\nsize = [64]", ["data.size"]),
    "a range that is none": ("[train.augment]\nscale = [2.0, 1.0]", ["train.augment", "[2.0, 1.0] is not a range"]),
    "two goals": (
        "[prune]\nspeedup = 2.0\nratio = 0.5",
        ["- prune: speedup, ratio exclude each other"],
    ),
    "no gain": ("[prune]\nspeedup = 1.0", ["prune.speedup = 1.0: Input should be greater than 1"]),
    "a value for a section": ("train = 3", ["train = 3"]),
    "a value for the model": (
        "model = 'unet'",
        ["model = 'unet': a value for a section; write model.factory = 'unet'"],
    ),
    "infinite": ("[train]\nlearning_rate = inf", ["train.learning_rate = inf: Input should be a finite number"]),
    "no number": ("[train.loss]\ndice_weight = nan", ["train.loss.dice_weight = nan: Input should be a finite number"]),
    "a word for weights": (
        "[train.loss]\nclass_weights = 'rare'",
        ["train.loss.class_weights = 'rare': Input should be 'equal' or 'balanced'"],
    ),
    "a weight below nought": (
        "[prune.finetune.loss]\nclass_weights = [1, -2]",
        ["prune.finetune.loss.class_weights = -2: Input should be greater than or equal to 0"],
    ),
    "weights without weight": (
        "[train.loss]\nclass_weights = [0, 0]",
        ["- train.loss: class_weights [0.0, 0.0] leave no class with a weight"],
    ),
    "rare crops of whole images": ("[data]\nrare_crops = 0.5", ["data", "set crop, or leave rare_crops out"]),
    "stages of what never stands still": (
        "[train.freeze]\nstage_epochs = 2",
        ["train.freeze", "set epochs, or leave stage_epochs out"],
    ),
    "a batch of one to mix": (
        "[train]\nbatch_size = 1\n[train.augment]\nmixup = 0.5",
        ["nothing could be mixed for train.augment.mixup", "train.batch_size = 1: set that to 2 or more"],
    ),
    "a batch of one to mix, later": (
        "[train.augment]\ncutmix = 0.5\nmixup = 0.5\n[prune.finetune]\nbatch_size = 1\n"
        "[quantize]\nmode = 'qat'\n[quantize.finetune]\nbatch_size = 1",
        ["for train.augment.cutmix and train.augment.mixup", "prune.finetune.batch_size and quantize.finetune.batch"],
    ),
    "blocks to skip that are not residual": (
        "[model]\nstochastic_depth = 0.2",
        ["model.stochastic_depth = 0.2: no block is residual", "set model.block=residual, or leave it out"],
    ),
    "every block skipped": (
        "[model]\nfactory = 'encoder-unet'\nblock = 'residual'\nstochastic_depth = 1.0",
        ["model.stochastic_depth = 1.0: Input should be less than 1"],
    ),
    "a seed below nought": ("[train]\nseed = -1", ["train.seed = -1: Input should be greater than or equal to 0"]),
    "a name that fits no URL": ("[export]\nname = 'my model'", ["export.name = 'my model'"]),
    "everything": (
        "[train]\nepochs = 0\nwarmup = 2\n[data]\ncolour = 3\n[prune]\nratio = 7",
        ["4 problems", "train.epochs = 0", "train.warmup = 2", "data.colour: no such setting", "prune.ratio = 7"],
    ),
}

LINES = {
    "no value": ("train.epochs", ["'train.epochs': write section.name=value"]),
    "no name": ("=3", ["'=3': write section.name=value"]),
    "an empty part": ("train..epochs=3", ["'train..epochs=3': write section.name=value"]),
    "through a value": ("data.path.name=3", ["data.path = {'name': 3}"]),
    "unknown": ("train.epocs=3", ["train.epocs: no such setting; did you mean 'epochs'?"]),
    "another type": ("train.epochs=many", ["train.epochs = 'many': Input should be a valid integer"]),
    "half a number": ("train.epochs=2.5", ["train.epochs = 2.5"]),
    "a model": ("model=unet", ["model = 'unet': a value for a section; write model.factory = 'unet'"]),
    "a section": ("train=3", ["train = 3"]),
    "not finite": ("budget.speedup=inf", ["budget.speedup = inf: Input should be a finite number"]),
    "beyond 64 bits": (f"train.seed={2**64}", ["train.seed"]),
}


@pytest.mark.parametrize("what", FILES)
def test_a_malformed_recipe_is_refused(what: str, tmp_path: Path) -> None:
    text, expected = FILES[what]
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert str(caught.value).startswith(f"recipe {path}: ")
    assert [part for part in expected if part not in str(caught.value)] == []


@pytest.mark.parametrize("what", LINES)
def test_a_malformed_override_is_refused(what: str) -> None:
    text, expected = LINES[what]
    with pytest.raises(RecipeError) as caught:
        Recipe.load(None, [text])
    assert [part for part in expected if part not in str(caught.value)] == []


def test_all_malformed_overrides_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load("demo", ["epochs", "train.epochs=3", "=1"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["'epochs'", "'=1'"]


@pytest.mark.parametrize(
    ("text", "override", "where"),
    [
        ("[train]\nepochs = 3\n", "train.epochs=0", "on the command line"),
        ("[train]\nepochs = 0\n", "train.seed=1", "{file}"),
        ("[train]\nepochs = 0\n", "train.batch_size=0", "{file} and on the command line"),
        ("[train]\nbatch_size = 1\n", "train.augment.mixup=0.2", "on the command line"),
    ],
    ids=["the line", "the file", "both", "the line, beside a setting of the file"],
)
def test_the_message_names_what_brought_the_mistake(text: str, override: str, where: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, [override])
    assert str(caught.value).startswith(f"recipe {where.format(file=path)}: ")


def test_an_override_mends_a_mistake_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepochs = 0\n")
    assert Recipe.load(path, ["train.epochs=3"]).train.epochs == 3


def test_an_override_cannot_go_through_a_value_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[data]\npath = '/data'\n")
    with pytest.raises(RecipeError, match=r"'data\.path\.name=3': path is a value, not a section"):
        Recipe.load(path, ["data.path.name=3"])


@pytest.mark.parametrize("source", ["dmeo", "nowhere/mine.toml", ""])
def test_a_recipe_that_is_not_there_names_the_built_in_ones(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"no such file; give a TOML file or a built-in recipe \(.*demo"):
        Recipe.load(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file.json/mine.toml", "no such file; give a TOML file"),
        ("file.json/mine", "no such file; give a TOML file"),
        ("n" * 300, "cannot be read: File name too long"),
    ],
    ids=["in a file", "in a file, by name", "too long"],
)
def test_a_recipe_that_cannot_be_there_is_refused(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        Recipe.load(source)


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00[train]")
    with pytest.raises(RecipeError, match="not TOML"):
        Recipe.load(tmp_path / "r.toml")


IDLE = {
    "train.loss.focal_gamma=3": "train.loss.focal_gamma has no effect without train.loss.pixel = 'focal', "
    "which is 'cross-entropy' here",
    "prune.finetune.schedule.power=2.0": "prune.finetune.schedule.power has no effect without "
    "prune.finetune.schedule.kind = 'poly', which is 'cosine' here",
    "train.augment.cutout_side=0.5": "train.augment.cutout_side has no effect without train.augment.cutout, "
    "which is 0.0 here",
    "train.swa.rate=0.5": "train.swa.rate has no effect without train.swa.start, which is none here",
}

IDLE_TOGETHER = {
    ("train.loss.pixel=none", "train.loss.label_smoothing=0.1"): "train.loss.label_smoothing has no effect without "
    "train.loss.pixel, which is 'none' here",
    ("train.loss.pixel=none", "train.loss.class_weights=balanced"): "train.loss.class_weights has no effect without",
    ("prune.speedup=2", "prune.tries=5"): "prune.tries has no effect without prune.max_drop or prune.min_iou",
    ("prune.max_drop=0.01", "prune.rounds=3"): "prune.rounds has no effect without a goal",
    ("prune.max_drop=0.01", "prune.tries=3"): "prune.tries has no effect without a goal",
    ("prune.search=ratio", "prune.whole_parts=false"): "prune.whole_parts has no effect without prune.search = 'table'",
    ("quantize.half_floats=false",): "quantize.half_floats has no effect for quantize.target = 'auto'",
}

IDLE_BESIDE_A_GOAL = {
    "prune.sparsity=0.5": ["prune.rounds=3", "prune.importance=taylor", "prune.tries=5"],
    "prune.levels=2": ["prune.channel_multiple=8", "prune.scope=local"],
    "prune.ratio=0.5": ["prune.whole_parts=false"],
}


@pytest.mark.parametrize(("setting", "told"), IDLE.items())
def test_a_setting_without_effect_is_told(setting: str, told: str, tmp_path: Path) -> None:
    assert list(Recipe.load(overrides=[setting]).without_effect()) == [told]
    done = CliRunner().invoke(app, ["train", "--data", str(tmp_path / "none"), "--out", "out", "--set", setting])
    assert told in done.stderr


@pytest.mark.parametrize(("settings", "told"), IDLE_TOGETHER.items())
def test_settings_that_have_no_effect_together_are_told(settings: tuple[str, ...], told: str) -> None:
    (line,) = Recipe.load(overrides=list(settings)).without_effect()
    assert line.startswith(told)


def test_a_recipe_for_openvino_may_forbid_halves() -> None:
    settings = ["quantize.target=openvino", "quantize.half_floats=false"]
    assert not list(Recipe.load(overrides=settings).without_effect())


@pytest.mark.parametrize(("goal", "settings"), IDLE_BESIDE_A_GOAL.items())
def test_a_setting_that_a_goal_of_pruning_does_not_use_is_told(goal: str, settings: list[str]) -> None:
    told = [f"{name.partition('=')[0]} has no effect beside {goal.partition('=')[0]}" for name in settings]
    assert sorted(Recipe.load(overrides=[goal, *settings]).without_effect()) == sorted(told)
    used = ["prune.speedup=2", "prune.rounds=3", "prune.tries=5", "prune.max_drop=0.01"]
    assert list(Recipe.load(overrides=used).without_effect()) == []


@pytest.mark.parametrize("recipe", [*builtin_recipes(), None])
def test_built_in_recipes_set_nothing_in_vain(recipe: str | None) -> None:
    assert list(Recipe.load(recipe).without_effect()) == []


def test_a_setting_that_its_switch_turns_on_is_not_told() -> None:
    on = ["train.loss.pixel=focal", "train.loss.focal_gamma=3", "train.swa.start=0.5", "train.swa.rate=0.5"]
    assert list(Recipe.load(overrides=on).without_effect()) == []
