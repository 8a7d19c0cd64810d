"""An option whose implementation does nothing is noticed: with it replaced by a no-op, the tests of it go red."""

from pathlib import Path

import pytest
from support import noop

ROOT = Path(__file__).parents[1]

# option: what is replaced by which nothing, and the tests that must notice, in tests/compress or the folder they name
OPTIONS = {
    "model.block=residual": ("compress.models.blocks:Residual.forward=second", "test_blocks.py"),
    "model.squeeze_excite": ("compress.models.blocks:SqueezeExcite.forward=second", "test_blocks.py"),
    "model.dropout": ("compress.models.blocks:nn.Dropout2d.forward=second", "test_blocks.py"),
    "model.deep_supervision": ("compress.train.objective:all_logits=served", "test_objective.py"),
    "initialisation for ReLU": ("compress.models.blocks:nn.init.kaiming_normal_=first", "test_blocks.py"),
    "initialisation elsewhere": ("compress.models.blocks:nn.init.xavier_normal_=first", "test_blocks.py"),
    "model.pretrained": (
        "compress.models.encoder_unet:EncoderUNet.load_pretrained=none",
        "test_encoder_unet.py::test_an_encoder_without_weights_is_refused_before_training",
    ),
    "folded normalisation": (
        "compress.models.encoders.efficientnet_lite:fold=first",
        "test_encoders.py::test_mean_and_deviation_are_folded_into_the_stem",
    ),
    "model.factory of one's own": (
        "compress.train.train:rehearse=none",
        "test_own_model.py::test_what_cannot_be_exported_is_not_trained",
    ),
    "train.loss.pixel=focal": ("compress.train.losses:_focused=first", "test_fit_losses.py"),
    "train.loss.label_smoothing": ("compress.train.losses:_smoothed=first", "test_fit_losses.py"),
    "train.loss.dice_weight": ("compress.train.losses:soft_dice=false", "test_fit_losses.py"),
    "train.loss.tversky_weight": ("compress.train.losses:tversky=false", "test_fit_losses.py"),
    "train.loss.lovasz_weight": ("compress.train.losses:lovasz=false", "test_fit_losses.py"),
    "train.loss.pixel=ohem": ("compress.train.losses:hard=none", "test_fit_losses.py"),
    "train.loss.class_weights": ("compress.train.loop:class_weights=none", "test_fit_losses.py"),
    "train.loss.own": ("compress.train.losses:own.loss=none", "test_own_parts.py"),
    "train.augment.own": ("compress.train.feed:own.augmentation=none", "test_own_parts.py"),
    "train.schedule.kind of one's own": ("compress.train.schedule:own.schedule=none", "test_own_parts.py"),
    "train.ema_decay": ("compress.train.ema:MovingAverage.update=none", "test_ema.py"),
    "train.clip_norm": ("compress.train.step:nn.utils.clip_grad_norm_=small norm", "test_fit.py"),
    "train.warmup": ("compress.train.schedule:Schedule.pace=peak", "test_schedule.py"),
    "train.schedule.kind=onecycle": ("compress.train.schedule:Schedule._one_cycle=peak", "test_schedule.py"),
    "train.schedule.kind=restarts, poly": ("compress.train.schedule:Schedule._fallen=no fall", "test_schedule.py"),
    "train.schedule.momentum": ("compress.train.step:set_momentum=none", "test_schedule.py"),
    "train.swa": ("compress.train.loop:Fit._judge=none", "test_fit_averaging.py"),
    "train.swa: statistics": ("compress.train.loop:reestimate=none", "test_fit_averaging.py"),
    "train.patience": ("compress.train.loop:Fit._is_stalled=false", "test_fit_averaging.py"),
    "train.freeze": ("compress.train.freeze:Freezing.apply=none", "test_freeze.py"),
    "train.encoder_rate": ("compress.train.step:set_learning_rate=same rate", "test_fit.py"),
    "train.save_every": ("compress.train.loop:Fit._keep=none", "test_fit_checkpoints.py"),
    "train.precision": ("compress.train.step:autocast=context", "test_fit.py"),
    "train.augment.flip_*": ("compress.data.augment:_some=second", "test_augment.py"),
    "train.augment.rotate_degrees": ("compress.data.augment:warped=last two", "test_augment.py"),
    "train.augment.noise": ("compress.data.augment:Augment._noisy=second", "test_augment.py"),
    "train.augment.cutout": ("compress.data.augment:Augment._cut_out=last two", "test_augment.py"),
    "train.augment.cutmix": ("compress.train.feed:cutmixed=last two", "test_feed.py"),
    "train.augment.mixup": ("compress.train.feed:mixed=unmixed", "test_feed.py"),
    "train.augment.mixup: the loss": ("compress.train.objective:torch.lerp=first", "test_objective.py"),
    "train.augment.policy": ("compress.data.change:_of_policy=no change", "test_augment.py"),
    "train.augment.brightness": ("compress.data.augment:Augment._lit=second", "test_augment.py"),
    "train.augment.hue": ("compress.data.augment:Augment._coloured=second", "test_augment.py"),
    "train.augment.scale": ("compress.data.loader:resample=first two", "test_crop.py"),
    "data.rare_crops": ("compress.data.loader:rare.place=none", "test_rare.py"),
    "data.rare_images": ("compress.data.loader:TrainingImages._repeats_of=none", "test_rare.py"),
    "train --init": ("compress.checkpoint:load_weights=empty", "test_train.py"),
    "train --teacher": ("compress.train.train:_master=none", "test_train.py"),
    "train.sparsity": ("compress.train.train:penalty_of=none", "test_sparsity.py"),
    "prune.importance": ("compress.prune.decide:scores_by=by magnitude", "test_importance.py"),
    "prune.scope": ("compress.prune.scores:Scores._same_share=most important", "test_scores.py"),
    "prune.whole_parts": ("compress.prune.costs:Parts.of=no parts", "test_costs.py"),
    "prune.sparsity": ("compress.prune.weights:hold_at_zero=none", "test_prune_weights.py"),
    "prune.analysis_images": (
        "compress.prune.analyze:drawn_by_name=first",
        "test_analyze.py::test_what_is_at_its_floor_is_named_and_not_cut",
    ),
    "quantize.calibration=auto": (
        "compress.quantize.quantize:Workbench.calibration=minmax",
        "test_quantize.py::test_calibration_is_chosen_once",
    ),
    "quantize.rewrites": (
        "compress.quantize.quantize:Workbench.shipped=second",
        "test_rewrites.py::test_the_faster_form_leaves",
    ),
    "quantize.equalise": (
        "compress.quantize.workbench:Workbench._equalised=none",
        "test_quantize.py::test_equalised_they_need_not",
    ),
    "equalised channels": ("compress.quantize.ptq:equalised=first", "test_equalise.py"),
    "quantize.bias_correction": (
        "compress.quantize.quantize:corrected=first",
        "test_quantize.py::test_biases_are_corrected_where_that_keeps_more",
    ),
    "quantize.target=tensorrt": ("compress.quantize.ptq:with_float_ends=first", "test_targets.py"),
    "quantize.mode=qat": (
        "compress.quantize.quantize:_trained=second",
        "test_quantize.py::test_training_beats_calibration_where_that_loses",
    ),
    "quantize.max_drop": (
        "compress.quantize.quantize:_within=third",
        "test_quantize.py::test_the_layers_that_break_int8_stay_in_float",
    ),
    "prune.finetune.teacher_weight": ("compress.train.objective:distillation=zero", "test_fit.py"),
    "prune.finetune.attention_weight": ("compress.train.objective:distance=nothing apart", "test_objective.py"),
    "data suspects": ("compress.suspects:doubted=none", "test_suspects.py"),
    "evaluate --auc": ("export.ranking:RankingScore.update=none", "test_refine.py"),
    "--window": ("export.refine:windowed=first", "test_refine.py"),
    "--mirror": ("export.refine:mirrored=first", "test_refine.py"),
    "the guard against what is no number": ("compress.train.step:Stepper._skip=none", "test_fit_guard.py"),
    "fewer images when memory is short": ("compress.train.step:is_out_of_memory=false", "test_fit_memory.py"),
    "serve --api-keys": ("serve.app:Access=first", "serve/test_serve_keys.py"),
    "serve --otel": ("serve.tracing:fastapi_options=no options", "serve/test_serve_traces.py"),
    "serve --allow-load": ("serve.access:check_may_administer=none", "serve/test_serve_keys.py"),
    "serve --max-wait": ("serve.queue:WorkQueue.check_room=none", "serve/test_serve_work_queue.py"),
    "serve --max-batch": ("serve.queue:WorkQueue._add_mates=none", "serve/test_serve_work_queue.py"),
    "serve: X-Deadline-Ms": ("serve.routes_image:deadline_of=none", "serve/test_serve_engine.py"),
    "serve: probabilities and window": (
        "serve.looks:Look.asked=as a whole",
        "serve/test_serve_looks.py::test_windows_give_the_masks_of_compress_predict",
    ),
    "serve: overlay": ("serve.answers:overlay=first", "serve/test_serve_answers.py"),
    "serve: header_seconds": ("serve.connections:GuardedConnection._watch=none", "serve/test_serve_connections.py"),
    "serve: send_seconds": (
        "serve.connections:GuardedConnection._cut_off=none",
        "serve/test_serve_connections.py::test_who_does_not_read_is_cut_off",
    ),
    "serve: max_connections": (
        "serve.app:Crowding=first",
        "serve/test_serve_connections.py::test_on_too_many_connections_health_alone_is_answered",
    ),
    "the diagnosis of a training": ("compress.train.train:diagnosed=empty", "test_diagnosis.py"),
    "resume": ("compress.train.state:StateFile.load=none", "test_fit_resume.py"),
}


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_does_nothing_is_noticed(option: str, tmp_path: Path) -> None:
    replaced, tests = OPTIONS[option]
    place = f"tests/{tests}" if "/" in tests else f"tests/compress/{tests}"
    log = tmp_path / "log"
    status = noop.run(replaced, place, root=ROOT, log=log)
    # A process that dies of itself ends with the same status.
    assert (status, "1 failed" in log.read_text()) == (pytest.ExitCode.TESTS_FAILED, True), log.read_text()
