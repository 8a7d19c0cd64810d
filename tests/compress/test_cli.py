"""The command line: what goes to which stream, exit statuses, and one message for a user's mistake."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.bundles import expected_mask, tiny_bundle
from support.datasets import write_dataset
from support.recipes import TINY_SETTINGS

from compress.checkpoint import Checkpoint
from compress.cli.main import main
from compress.data.folder import open_dataset
from compress.steps import read_record
from export.bundle import Bundle
from export.errors import WorkFailedError
from export.images import decode_indices, encode_image, encode_mask
from export.latency.table import LatencyTable
from export.machine import Machine
from export.manifest import Precision


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Call the program as a shell would; returns standard output and standard error separately."""

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["compress", *map(str, arguments)])
        try:
            main()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 0
        else:
            status = 0
        captured = capfd.readouterr()
        return Done(status, captured.out, captured.err)

    return call


def test_evaluate_scores_a_checkpoint_and_its_bundle_alike(
    cli: Cli, trained: Checkpoint, float_bundle: Bundle, discs: Path
) -> None:
    scores = []
    for model in (trained.path, float_bundle.path):
        done = cli("evaluate", model, "--data", discs, "--split", "test", "--json")
        assert done.status == 0
        result = json.loads(done.out)
        for figure in ("iou", "dice", "precision", "recall"):
            assert set(result[f"{figure}_per_class"]) == {"background", "disc"}
        assert sum(map(sum, result["confusion"])) == 6 * 48 * 64
        assert 0.9 < result["accuracy"] <= 1
        assert set(result["boundary_f1_per_class"]) == {"background", "disc"}
        assert 0.5 < result["boundary_f1"] <= 1
        scores.append(result["miou"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_progress_goes_to_standard_error_and_the_result_alone_to_standard_output(
    cli: Cli, int8_bundle: Bundle, discs: Path
) -> None:
    done = cli("evaluate", int8_bundle.path, "--data", discs)
    assert done.status == 0
    assert done.out.startswith("mIoU ")
    assert [line.split()[0] for line in done.out.splitlines()[1:] if line[0].isalpha()] == [
        *("class", "background", "disc", "mean")
    ]
    assert "score test" in done.err
    assert "score test" not in done.out


def test_evaluate_names_a_class_that_does_not_occur(cli: Cli, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny", channels=1)
    data = write_dataset(tmp_path / "plain", classes=bundle.manifest.classes)
    for sample in open_dataset(data).test:
        sample.image.write_bytes(encode_image(np.zeros((20, 30, 1), np.uint8)))
        sample.mask.write_bytes(encode_mask(np.zeros((20, 30), np.uint8)))
    predicted = set(np.unique(expected_mask(np.zeros((20, 30, 1), np.uint8), 3)).tolist())
    absent = {f"class-{k}" for k in {0, 1, 2} - {0} - predicted}
    assert absent
    figures = json.loads(cli("evaluate", bundle.path, "--data", data, "--json").out)
    for figure in ("iou", "dice", "precision", "recall"):
        assert {name for name, value in figures[f"{figure}_per_class"].items() if value is None} == absent
    shown = cli("evaluate", bundle.path, "--data", data).out
    assert {line.split()[0] for line in shown.splitlines() if "(does not occur)" in line} == absent


def test_an_up_to_date_step_prints_its_result_again(cli: Cli, trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    settings = ["--set", "train.epochs=1", "--set", "model.base=16", "--set", "model.depth=1", "--seed", "3"]
    first = cli("train", "--data", discs, "--out", tmp_path / "dense", *settings, "--json")
    again = cli("train", "--data", discs, "--out", tmp_path / "dense", *settings, "--json")
    assert first.status == again.status == 0
    assert json.loads(first.out) == json.loads(again.out)
    assert {"miou", "best_epoch"} <= json.loads(first.out).keys()
    assert "is up to date" in again.err


def test_prune_and_quantize_say_what_was_gained_and_lost(
    cli: Cli, trained: Checkpoint, discs: Path, tmp_path: Path
) -> None:
    pruned = cli(
        *("prune", trained.path, "--data", discs, "--out", tmp_path / "pruned", "--ratio", "0.5"),
        *("--set", "prune.finetune.epochs=1", "--json"),
    )
    assert pruned.status == 0, pruned.err
    assert {"speedup", "miou_parent", "miou"} <= json.loads(pruned.out).keys()
    quantized = cli(
        *("quantize", tmp_path / "pruned", "--data", discs, "--mode", "ptq", "--max-drop", "1.0"),
        *("--out", tmp_path / "int8", "--force", "--json"),
    )
    assert quantized.status == 0, quantized.err
    assert {"speedup", "miou_parent", "miou"} <= json.loads(quantized.out).keys()


def test_prune_prints_the_milliseconds_that_were_measured(
    cli: Cli, trained: Checkpoint, pruned: Checkpoint, discs: Path
) -> None:
    settings = [word for one in TINY_SETTINGS for word in ("--set", one)]
    done = cli("prune", trained.path, "--data", discs, "--out", pruned.path, *settings)
    result = (read_record(pruned.path) or {})["result"]
    assert f"x faster in FP32, {result['milliseconds']:.3g} ms at 48x64, mIoU " in done.out


def test_a_missed_speed_up_prints_the_figures_and_fails(
    cli: Cli, trained: Checkpoint, discs: Path, tmp_path: Path
) -> None:
    arguments = ("prune", trained.path, "--data", discs, "--out", tmp_path / "pruned", "--speedup", "1000")
    for _ in range(2):  # the second time the step is up to date, and still misses
        done = cli(*arguments, "--set", "prune.finetune.epochs=1", "--json")
        assert done.status == 1
        assert json.loads(done.out)["speedup"] < 1000
        assert "out of reach" in done.err
    assert (tmp_path / "pruned" / "weights.safetensors").exists()


def test_predict_writes_masks_of_the_size_of_their_images(
    cli: Cli, int8_bundle: Bundle, discs: Path, tmp_path: Path
) -> None:
    done = cli("predict", int8_bundle.path, "--images", discs / "test" / "images", "--out", tmp_path, "--json")
    assert done.status == 0
    masks = [Path(name) for name in json.loads(done.out)["masks"]]
    assert len(masks) == 6
    assert all(decode_indices(mask).shape == (48, 64) for mask in masks)
    assert all((tmp_path / "overlays" / mask.name).exists() for mask in masks)


def test_predict_names_every_file_that_is_no_image_and_writes_nothing(
    cli: Cli, int8_bundle: Bundle, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.jpg"):
        (images / name).write_text("no image")
    done = cli("predict", int8_bundle.path, "--images", images, "--out", tmp_path / "out")
    assert done.status == 2
    assert "a.png" in done.err
    assert "b.jpg" in done.err
    assert not (tmp_path / "out").exists()


def test_verify_names_all_that_is_wrong(cli: Cli, int8_bundle: Bundle, tmp_path: Path) -> None:
    assert cli("verify", int8_bundle.path).status == 0
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in int8_bundle.path.rglob("*"):
        target = damaged / path.relative_to(int8_bundle.path)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    (damaged / "parity.json").unlink()
    (damaged / "step.json").write_bytes(b"{}")
    done = cli("verify", damaged)
    assert done.status == 2
    assert "parity.json is missing" in done.err
    assert "step.json does not match its hash" in done.err


def test_a_dataset_with_problems_is_reported_and_refused(cli: Cli, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    assert cli("data", "check", data).status == 0
    next((data / "val" / "masks").iterdir()).unlink()
    done = cli("data", "check", data, "--json")
    assert done.status == 2
    assert len(json.loads(done.out)["problems"]) == 1


# Words of a wrong command line ({data} is a sound dataset, {ckpt} a sound checkpoint) and what the message must say.
MISTAKES = [
    (["train", "--data", "nowhere", "--out", "x"], "nowhere"),
    (["train", "--data", "{data}", "--out", "x", "--set", "train.epoch=3"], "did you mean 'epochs'"),
    (["train", "--data", "{data}", "--out", "x", "--set", "train.epochs=many"], "train.epochs"),
    (["train", "--data", "{data}", "--out", "x", "--set", "nonsense"], "section.name=value"),
    (["train", "--data", "{data}", "--out", "x", "--recipe", "missing.toml"], "missing.toml"),
    (["train", "--data", "{data}", "--out", "x", "--init", "nowhere"], "nowhere"),
    (["train", "--data", "{data}", "--out", "x", "--set", "train.device=tpu9"], "tpu9"),
    (["train", "--data", "{data}", "--out", "{data}"], "is not the result of a step"),
    (["train", "--data", "{data}"], "--out"),
    (["prune", "nowhere", "--data", "{data}", "--out", "x", "--speedup", "2"], "nowhere"),
    (["prune", "{ckpt}", "--data", "{data}", "--out", "x"], "--speedup"),
    (["prune", "{ckpt}", "--data", "{data}", "--out", "x", "--speedup", "2", "--ratio", "0.5"], "exclude"),
    (["prune", "{ckpt}", "--data", "{data}", "--out", "x", "--ratio", "1.5"], "prune.ratio"),
    (["quantize", "{ckpt}", "--data", "{data}", "--out", "x", "--mode", "magic"], "quantize.mode"),
    (["quantize", "{ckpt}", "--data", "{data}", "--out", "x", "--max-drop", "-1"], "'--max-drop': -1 is not from"),
    (["quantize", "{ckpt}", "--data", "{data}", "--out", "x", "--max-drop", "nan"], "'--max-drop': nan is not from"),
    (["quantize", "{ckpt}", "--data", "{data}", "--out", "x", "--for", "abacus"], "quantize.target"),
    (["quantize", "{ckpt}", "--data", "{data}", "--out", "x", "--min-iou", "disc:0.9"], "is not CLASS=IOU"),
    (["prune", "{ckpt}", "--data", "{data}", "--out", "x", "--min-iou", "0.8"], "'0.8' is not CLASS=IOU"),
    (
        ["prune", "{ckpt}", "--data", "{data}", "--out", "x", "--speedup", "4", "--ratio", "0.5"],
        "--speedup and --ratio exclude",
    ),
    (["quantize", "{ckpt}", "--data", "{data}", "--out", "x", "--min-iou", "disc=90"], "'disc=90' is not CLASS=IOU"),
    (["quantize", "{ckpt}", "--data", "{data}", "--out", "x", "--min-iou", "disc=nan"], "'disc=nan' is not CLASS=IOU"),
    (["export", "nowhere", "--out", "x"], "nowhere"),
    (["export", "{ckpt}", "--out", "x", "--outputs", "smell"], "export.outputs"),
    (["verify", "nowhere"], "nowhere"),
    (["evaluate", "{data}", "--data", "{data}"], "neither a bundle"),
    (["evaluate", "{ckpt}", "--data", "{data}", "--split", "holiday"], "holiday"),
    (["predict", "{ckpt}", "--images", "nowhere", "--out", "x"], "nowhere"),
    (["bench", "latency", "nowhere"], "nowhere"),
    (["bench", "latency", "{ckpt}", "--size", "big"], "HEIGHTxWIDTH"),
    (["bench", "latency", "{ckpt}", "--size", "2²x64"], "HEIGHTxWIDTH"),
    (["train", "--data", "{data}", "--out", "x", "--set", "train.device=meta"], "train.device = 'meta'"),
    (["serve", "nowhere"], "nowhere"),
    (["serve", "nowhere", "--api-keys", "no-keys"], "API keys no-keys: No such file or directory"),
    (["serve", "nowhere", "--tls-cert", "cert.pem"], "give --tls-key, too"),
    (["serve", "nowhere", "--set", "max_pixel=9"], "max_pixel: no such setting; did you mean max_pixels?"),
    (["serve", "nowhere", "--set", "max_pixels=many"], "max_pixels=many: Input should be a valid integer"),
    (["serve", "nowhere", "--port", "8001", "--grpc-port", "8001"], "grpc_port=8001: that is the port of HTTP"),
    (["serve", "nowhere", "--set", "host"], "host: write NAME=VALUE, such as max_pixels=4000000"),
    (["serve", "nowhere", "--set", "providers=cpu,gpu"], "providers=gpu: Input should be 'cpu', 'openvino'"),
    (["serve", "{ckpt}/model.json"], "a file; a bundle is the folder"),
    (["serve-key", "keys", "two words"], "cannot name a key"),
    (["run", "--out", "x", "--set", "prune.speedup=0.5", "--set", "data.path={data}"], "prune.speedup"),
    (["data", "check", "nowhere"], "nowhere"),
    (["data", "check", "{data}", "--channels", "4"], "1 kinds of problem"),
    (["data", "check", "{data}", "--channels", "65"], "a number from 1 to 64"),
    (["data", "check", "{data}", "--channels", "RGB"], "a number from 1 to 64"),
    (["dance"], "dance"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[" ".join(words)[:60] for words, _ in MISTAKES])
def test_a_mistake_is_one_message_and_status_2(
    words: list[str],
    says: str,
    cli: Cli,
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*(word.format(data=discs, ckpt=trained.path) for word in words))
    assert done.status == 2
    assert says in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == [], "something was left behind"


def test_a_run_leaves_a_recipe_of_the_users_own_as_it_is(
    cli: Cli, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object) -> None:
        raise WorkFailedError("training began")

    monkeypatch.setattr("compress.pipeline.train", begin)
    own = tmp_path / "recipe.toml"
    own.write_text(f"# mine\n[prune]\nspeedup = 2.0\n[data]\npath = {json.dumps(str(discs))}\n")
    before = own.read_text()
    done = cli("run", own, "--out", tmp_path)
    assert done.status == 2
    assert f"{own} was not written by a run" in done.err
    assert own.read_text() == before
    # A recipe that a run wrote is used again, and follows the settings.
    for speedup in ("2.0", "3.0"):
        assert "training began" in cli("run", own, "--out", tmp_path / "r", "--set", f"prune.speedup={speedup}").err
        assert f"speedup = {speedup}" in (tmp_path / "r" / "recipe.toml").read_text()


TOO_LATE = {
    "prune.finetune.loss.own=nofile.py:f": "no such file",
    "prune.finetune.schedule.kind=nofile.py:f": "no such file",
    "prune.finetune.loss.class_weights=[1.0]": "prune.finetune.loss.class_weights: 1 problem",
    "prune.finetune.freeze.epochs=2": "no pretrained encoder",
    "prune.finetune.layer_decay=0.5": "no pretrained encoder",
    "prune.speedup=none prune.levels=2": "no smaller network inside",
    "quantize.mode=qat quantize.finetune.loss.own=nofile.py:f": "no such file",
    "quantize.mode=qat quantize.finetune.loss.class_weights=[1.0]": "quantize.finetune.loss.class_weights: 1 problem",
    "quantize.mode=qat quantize.target=tensorrt": "takes signed ones",
    "quantize.finetune.freeze.epochs=2": "quantization-aware training trains a graph",
    "quantize.finetune.layer_decay=0.5": "quantization-aware training trains a graph",
    "quantize.finetune.attention_weight=1.0": "quantization-aware training trains a graph",
}


@pytest.mark.parametrize("settings", TOO_LATE)
def test_a_run_is_refused_at_once_what_a_later_step_would_refuse(
    cli: Cli, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    def begin(*_: object) -> None:
        raise WorkFailedError("training began")

    monkeypatch.setattr("compress.pipeline.train", begin)
    words = [word for one in (f"data.path={discs}", *settings.split()) for word in ("--set", one)]
    done = cli("run", "--out", tmp_path / "run", *words)
    assert done.status == 2
    assert TOO_LATE[settings] in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "size", "says"),
    [
        ("fp32", (48, 64), "training began"),
        ("int8", (48, 64), "was measured in int8 and fp32 is asked for"),
        ("fp32", (48, 48), "was measured at 48x48, not at 48x64"),
    ],
)
def test_a_run_is_refused_at_once_a_latency_table_of_something_else(
    cli: Cli,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    size: tuple[int, int],
    says: str,
) -> None:
    def begin(*_: object) -> None:
        raise WorkFailedError("training began")

    monkeypatch.setattr("compress.pipeline.train", begin)
    table = LatencyTable(machine=Machine.here(), onnxruntime="1.0", precision=precision, threads=1, sizes=(size,))
    (tmp_path / "table.json").write_text(table.model_dump_json())
    settings = (f"data.path={discs}", "prune.speedup=2", f"prune.latency_table={tmp_path / 'table.json'}")
    done = cli("run", "--out", tmp_path / "run", *(word for one in settings for word in ("--set", one)))
    assert says in done.err
    assert done.status == (1 if says == "training began" else 2)


@pytest.mark.parametrize(
    ("folder", "setting", "refused"),
    [
        ("dense", "train.save_every=10", True),
        ("dense", "prune.speedup=3.0", False),
        ("dense", "data.cache_gb=1.0", False),
        ("pruned", "prune.speedup=3.0", True),
        ("pruned", "train.epochs=7", True),
        ("pruned", "quantize.max_drop=0.5", False),
        ("int8", "quantize.max_drop=0.5", True),
        ("dense-int8", "prune.speedup=3.0", False),
        ("report", "train.epochs=7", False),
    ],
)
def test_a_run_with_another_recipe_loses_no_interrupted_training(
    cli: Cli, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, setting: str, refused: bool
) -> None:
    def begin(*_: object) -> None:
        raise WorkFailedError("training began")

    monkeypatch.setattr("compress.pipeline.train", begin)
    out = tmp_path / "run"
    words = ["run", "--out", out, "--set", f"data.path={discs}"]
    cli(*words)
    before = (out / "recipe.toml").read_text()
    state = out / f".{folder}.partial" / ".scratch" / "training_state.pt"
    state.parent.mkdir(parents=True)
    state.touch()
    done = cli(*words, "--set", setting)
    if refused:
        assert done.status == 2
        assert f"{setting.partition('=')[0]} was " in done.err
        assert f"compress run {out / 'recipe.toml'} --out {out} continues it" in done.err
        assert (out / "recipe.toml").read_text() == before
    else:
        assert "training began" in done.err
    assert state.exists()


def test_a_run_on_unsound_data_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    next((data / "val" / "masks").iterdir()).write_text("no mask")
    done = cli("run", "default", "--set", f"data.path={data}", "--set", "prune.speedup=2", "--out", tmp_path / "run")
    assert done.status == 2
    assert "cannot be read" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("where", ["torch", "numpy"])
def test_what_does_not_fit_into_memory_is_one_message(
    cli: Cli, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def too_large(*_: object) -> None:
        np.empty((10**8, 10**8))

    if where == "numpy":
        monkeypatch.setattr("compress.models.build", too_large)
    done = cli("train", "--data", discs, "--out", tmp_path / "out", "--set", "model.base=1000000")
    assert done.status == 1
    assert done.err.endswith("compress: out of memory; try smaller images, a smaller batch or a smaller model\n")
    assert "Traceback" not in done.err


def test_a_model_for_other_classes_is_refused(cli: Cli, int8_bundle: Bundle, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", classes=("sea", "ship"))
    done = cli("evaluate", int8_bundle.path, "--data", other)
    assert done.status == 2
    assert "['sea', 'ship']" in done.err


def test_a_key_is_printed_once_and_only_its_hash_is_kept(cli: Cli, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    done = cli("serve-key", keys, "alice")
    assert done.status == 0
    secret = done.out.strip()
    assert secret.startswith("segpress_")
    assert done.out == f"{secret}\n"
    other = json.loads(cli("serve-key", keys, "root", "--admin", "--json").out)
    assert (other["name"], other["role"]) == ("root", "admin")
    kept = keys.read_text()
    assert [line.split()[:2] for line in kept.splitlines()] == [["alice", "use"], ["root", "admin"]]
    assert secret not in kept
    assert other["key"] not in kept


def test_every_command_has_help(cli: Cli) -> None:
    commands = ["run", "data check", "data sample", "train", "prune", "quantize", "export", "verify", "evaluate"]
    for command in [*commands, "predict", "serve", "serve-key", "bench latency"]:
        done = cli(*command.split(), "--help")
        assert done.status == 0
        assert "Usage" in done.out
