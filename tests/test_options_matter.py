"""An option whose implementation does nothing is noticed: with it replaced by a no-op, the tests of it go red."""

from pathlib import Path

import pytest
from support import noop

ROOT = Path(__file__).parents[1]

# option: what is replaced by which nothing, and the tests that must notice
OPTIONS = {
    "model.block=residual": ("compress.models.blocks:Residual.forward=second", "tests/compress/test_blocks.py"),
    "model.squeeze_excite": ("compress.models.blocks:SqueezeExcite.forward=second", "tests/compress/test_blocks.py"),
    "model.dropout": ("compress.models.blocks:nn.Dropout2d.forward=second", "tests/compress/test_blocks.py"),
    "model.deep_supervision": ("compress.train.objective:all_logits=served", "tests/compress/test_objective.py"),
    "initialisation for ReLU": (
        "compress.models.blocks:nn.init.kaiming_normal_=first",
        "tests/compress/test_blocks.py",
    ),
    "initialisation elsewhere": (
        "compress.models.blocks:nn.init.xavier_normal_=first",
        "tests/compress/test_blocks.py",
    ),
    "model.pretrained": (
        "compress.models.encoder_unet:EncoderUNet.load_pretrained=none",
        "tests/compress/test_encoder_unet.py::test_an_encoder_without_weights_is_refused_before_training",
    ),
    "folded normalisation": (
        "compress.models.encoders.efficientnet_lite:fold=first",
        "tests/compress/test_encoders.py::test_mean_and_deviation_are_folded_into_the_stem",
    ),
    "model.factory of one's own": (
        "compress.train.train:rehearse=none",
        "tests/compress/test_own_model.py::test_what_cannot_be_exported_is_not_trained",
    ),
    "train.loss.pixel=focal": ("compress.train.losses:_focused=first", "tests/compress/test_fit_losses.py"),
    "train.loss.label_smoothing": ("compress.train.losses:_smoothed=first", "tests/compress/test_fit_losses.py"),
    "train.loss.dice_weight": ("compress.train.losses:soft_dice=false", "tests/compress/test_fit_losses.py"),
    "train.loss.tversky_weight": ("compress.train.losses:tversky=false", "tests/compress/test_fit_losses.py"),
    "train.loss.lovasz_weight": ("compress.train.losses:lovasz=false", "tests/compress/test_fit_losses.py"),
    "train.loss.pixel=ohem": ("compress.train.losses:hard=none", "tests/compress/test_fit_losses.py"),
    "train.loss.class_weights": ("compress.train.loop:class_weights=none", "tests/compress/test_fit_losses.py"),
    "train.loss.own": ("compress.train.losses:own.loss=none", "tests/compress/test_own_parts.py"),
    "train.augment.own": ("compress.train.feed:own.augmentation=none", "tests/compress/test_own_parts.py"),
    "train.schedule.kind of one's own": (
        "compress.train.schedule:own.schedule=none",
        "tests/compress/test_own_parts.py",
    ),
    "train.ema_decay": ("compress.train.ema:MovingAverage.update=none", "tests/compress/test_ema.py"),
    "train.clip_norm": ("compress.train.step:nn.utils.clip_grad_norm_=small norm", "tests/compress/test_fit.py"),
    "train.warmup": ("compress.train.schedule:Schedule.pace=peak", "tests/compress/test_schedule.py"),
    "train.schedule.kind=onecycle": (
        "compress.train.schedule:Schedule._one_cycle=peak",
        "tests/compress/test_schedule.py",
    ),
    "train.schedule.kind=restarts, poly": (
        "compress.train.schedule:Schedule._fallen=no fall",
        "tests/compress/test_schedule.py",
    ),
    "train.schedule.momentum": ("compress.train.step:set_momentum=none", "tests/compress/test_schedule.py"),
    "train.swa": ("compress.train.loop:Fit._judge=none", "tests/compress/test_fit_averaging.py"),
    "train.swa: statistics": ("compress.train.loop:reestimate=none", "tests/compress/test_fit_averaging.py"),
    "train.patience": ("compress.train.loop:Fit._is_stalled=false", "tests/compress/test_fit_averaging.py"),
    "train.freeze": ("compress.train.freeze:Freezing.apply=none", "tests/compress/test_freeze.py"),
    "train.encoder_rate": ("compress.train.step:set_learning_rate=same rate", "tests/compress/test_fit.py"),
    "train.save_every": ("compress.train.loop:Fit._keep=none", "tests/compress/test_fit_checkpoints.py"),
    "train.precision": ("compress.train.step:autocast=context", "tests/compress/test_fit.py"),
    "train.augment.flip_*": ("compress.data.augment:_some=second", "tests/compress/test_augment.py"),
    "train.augment.rotate_degrees": ("compress.data.augment:warped=last two", "tests/compress/test_augment.py"),
    "train.augment.noise": ("compress.data.augment:Augment._noisy=second", "tests/compress/test_augment.py"),
    "train.augment.cutout": ("compress.data.augment:Augment._cut_out=last two", "tests/compress/test_augment.py"),
    "train.augment.cutmix": ("compress.train.feed:cutmixed=last two", "tests/compress/test_feed.py"),
    "train.augment.mixup": ("compress.train.feed:mixed=unmixed", "tests/compress/test_feed.py"),
    "train.augment.mixup: the loss": ("compress.train.objective:torch.lerp=first", "tests/compress/test_objective.py"),
    "train.augment.policy": ("compress.data.change:_of_policy=no change", "tests/compress/test_augment.py"),
    "train.augment.brightness": ("compress.data.augment:Augment._lit=second", "tests/compress/test_augment.py"),
    "train.augment.hue": ("compress.data.augment:Augment._coloured=second", "tests/compress/test_augment.py"),
    "train.augment.scale": ("compress.data.loader:resample=first two", "tests/compress/test_crop.py"),
    "data.rare_crops": ("compress.data.loader:rare.place=none", "tests/compress/test_rare.py"),
    "data.rare_images": ("compress.data.loader:TrainingImages._repeats_of=none", "tests/compress/test_rare.py"),
    "train --init": ("compress.checkpoint:load_weights=empty", "tests/compress/test_train.py"),
    "train --teacher": ("compress.train.train:_master=none", "tests/compress/test_train.py"),
    "train.sparsity": ("compress.train.train:penalty_of=none", "tests/compress/test_sparsity.py"),
    "prune.importance": ("compress.prune.decide:scores_by=by magnitude", "tests/compress/test_importance.py"),
    "prune.scope": ("compress.prune.scores:Scores._same_share=most important", "tests/compress/test_scores.py"),
    "prune.whole_parts": ("compress.prune.costs:Parts.of=no parts", "tests/compress/test_costs.py"),
    "prune.sparsity": ("compress.prune.weights:hold_at_zero=none", "tests/compress/test_prune_weights.py"),
    "prune.analysis_images": (
        "compress.prune.analyze:drawn_by_name=first",
        "tests/compress/test_analyze.py::test_what_is_at_its_floor_is_named_and_not_cut",
    ),
    "quantize.calibration=auto": (
        "compress.quantize.quantize:Workbench.calibration=minmax",
        "tests/compress/test_quantize.py::test_calibration_is_chosen_once",
    ),
    "quantize.rewrites": (
        "compress.quantize.quantize:Workbench.shipped=second",
        "tests/compress/test_rewrites.py::test_the_faster_form_leaves",
    ),
    "quantize.equalise": (
        "compress.quantize.workbench:Workbench._equalised=none",
        "tests/compress/test_quantize.py::test_equalised_they_need_not",
    ),
    "equalised channels": ("compress.quantize.ptq:equalised=first", "tests/compress/test_equalise.py"),
    "quantize.bias_correction": (
        "compress.quantize.quantize:corrected=first",
        "tests/compress/test_quantize.py::test_biases_are_corrected_where_that_keeps_more",
    ),
    "quantize.target=tensorrt": ("compress.quantize.ptq:with_float_ends=first", "tests/compress/test_targets.py"),
    "quantize.mode=qat": (
        "compress.quantize.quantize:_trained=second",
        "tests/compress/test_quantize.py::test_training_beats_calibration_where_that_loses",
    ),
    "quantize.max_drop": (
        "compress.quantize.quantize:_within=third",
        "tests/compress/test_quantize.py::test_the_layers_that_break_int8_stay_in_float",
    ),
    "prune.finetune.teacher_weight": ("compress.train.objective:distillation=zero", "tests/compress/test_fit.py"),
    "prune.finetune.attention_weight": (
        "compress.train.objective:distance=nothing apart",
        "tests/compress/test_objective.py",
    ),
    "data suspects": ("compress.suspects:doubted=none", "tests/compress/test_suspects.py"),
    "evaluate --auc": ("export.ranking:RankingScore.update=none", "tests/compress/test_refine.py"),
    "--window": ("export.refine:windowed=first", "tests/compress/test_refine.py"),
    "--mirror": ("export.refine:mirrored=first", "tests/compress/test_refine.py"),
    "the guard against what is no number": (
        "compress.train.step:Stepper._skip=none",
        "tests/compress/test_fit_guard.py",
    ),
    "fewer images when memory is short": (
        "compress.train.step:is_out_of_memory=false",
        "tests/compress/test_fit_memory.py",
    ),
    "serve --api-keys": ("serve.app:Access=first", "tests/serve/test_serve_keys.py"),
    "serve --otel": ("serve.tracing:fastapi_options=no options", "tests/serve/test_serve_traces.py"),
    "serve --allow-load": ("serve.access:check_may_administer=none", "tests/serve/test_serve_keys.py"),
    "serve --max-wait": ("serve.queue:WorkQueue.check_room=none", "tests/serve/test_serve_work_queue.py"),
    "serve --max-batch": ("serve.queue:WorkQueue._add_mates=none", "tests/serve/test_serve_work_queue.py"),
    "serve: X-Deadline-Ms": ("serve.routes_image:deadline_of=none", "tests/serve/test_serve_engine.py"),
    "serve: probabilities and window": (
        "serve.looks:Look.asked=as a whole",
        "tests/serve/test_serve_looks.py::test_windows_give_the_masks_of_compress_predict",
    ),
    "serve: overlay": ("serve.answers:overlay=first", "tests/serve/test_serve_answers.py"),
    "serve: header_seconds": (
        "serve.connections:GuardedConnection._watch=none",
        "tests/serve/test_serve_connections.py",
    ),
    "serve: send_seconds": (
        "serve.connections:GuardedConnection._cut_off=none",
        "tests/serve/test_serve_connections.py::test_who_does_not_read_is_cut_off",
    ),
    "serve: max_connections": (
        "serve.app:Crowding=first",
        "tests/serve/test_serve_connections.py::test_on_too_many_connections_health_alone_is_answered",
    ),
    "the diagnosis of a training": ("compress.train.train:diagnosed=empty", "tests/compress/test_diagnosis.py"),
    "resume": ("compress.train.state:StateFile.load=none", "tests/compress/test_fit_resume.py"),
}


TOGETHER = 6
"""Options of one process: enough to import for, few enough to share out among the workers."""
GROUPS = [list(OPTIONS)[first : first + TOGETHER] for first in range(0, len(OPTIONS), TOGETHER)]


@pytest.mark.slow
@pytest.mark.parametrize("options", GROUPS, ids=lambda options: f"from {options[0]}")
def test_an_option_that_does_nothing_is_noticed(options: list[str], tmp_path: Path) -> None:
    logs = [tmp_path / str(index) for index in range(len(options))]
    noop.run([noop.Trial(*OPTIONS[option]) for option in options], root=ROOT, logs=logs)
    said = {option: log.read_text() for option, log in zip(options, logs, strict=True)}
    assert not {option: text for option, text in said.items() if "1 failed" not in text}
