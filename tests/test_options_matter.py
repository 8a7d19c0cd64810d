"""Every option has a test that notices when it does nothing: it fails when a no-op replaces the implementation."""

from pathlib import Path

import pytest
from support import noop

ROOT = Path(__file__).parents[1]

# option: (function=the no-op that replaces it, the test that must fail)
OPTIONS = {
    "model.block=residual": (
        "compress.models.blocks:Residual.forward=second",
        "tests/compress/test_blocks.py::test_a_residual_block_adds_its_input_before_the_last_relu",
    ),
    "model.squeeze_excite": (
        "compress.models.blocks:SqueezeExcite.forward=second",
        "tests/compress/test_blocks.py::test_channel_attention_is_a_gate_that_sees_all_means",
    ),
    "model.upsampling": (
        "compress.models.blocks:_upsample=nearest",
        "tests/compress/test_blocks.py::test_a_step_up_doubles_the_resolution_in_the_way_that_is_asked_for",
    ),
    "model.dropout": (
        "compress.models.blocks:nn.Dropout2d.forward=second",
        "tests/compress/test_blocks.py::test_dropout_takes_whole_channels_and_only_in_training",
    ),
    "model.stochastic_depth": (
        "compress.models.blocks:StochasticDepth.forward=second",
        "tests/compress/test_blocks.py::test_stochastic_depth_skips_what_a_block_adds_image_by_image",
    ),
    "model.bottleneck_attention": (
        "compress.models.self_attention:SelfAttention.forward=second",
        "tests/compress/test_self_attention.py::test_it_is_the_attention_of_torch_added_to_its_input",
    ),
    "model.deep_supervision": (
        "compress.train.objective:all_logits=served",
        "tests/compress/test_objective.py::test_the_loss_is_the_mean_over_the_heads",
    ),
    "initialisation for ReLU": (
        "compress.models.blocks:nn.init.kaiming_normal_=first",
        "tests/compress/test_blocks.py::test_weights_start_as_what_follows_them_wants",
    ),
    "initialisation elsewhere": (
        "compress.models.blocks:nn.init.xavier_normal_=first",
        "tests/compress/test_blocks.py::test_weights_start_as_what_follows_them_wants",
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
    "the loss in float32": (
        "compress.train.pixels:without_void=first",
        "tests/compress/test_losses.py::test_reduced_logits_are_summed_in_float32",
    ),
    "train.loss.pixel=focal": (
        "compress.train.losses:_focused=first",
        "tests/compress/test_fit_losses.py::test_a_step_descends_the_loss_that_is_asked_for",
    ),
    "train.loss.cross_entropy_weight": (
        "compress.train.losses:SegmentationLoss._with_cross_entropy=second",
        "tests/compress/test_fit_losses.py::test_a_step_descends_the_loss_that_is_asked_for",
    ),
    "train.loss.label_smoothing": (
        "compress.train.losses:_smoothed=first",
        "tests/compress/test_fit_losses.py::test_a_step_descends_the_loss_that_is_asked_for",
    ),
    "train.loss.dice_weight": (
        "compress.train.losses:soft_dice=false",
        "tests/compress/test_fit_losses.py::test_a_step_descends_the_loss_that_is_asked_for",
    ),
    "train.loss.tversky_weight": (
        "compress.train.losses:tversky=false",
        "tests/compress/test_fit_losses.py::test_a_step_descends_the_loss_that_is_asked_for",
    ),
    "train.loss.lovasz_weight": (
        "compress.train.losses:lovasz=false",
        "tests/compress/test_fit_losses.py::test_a_step_descends_the_loss_that_is_asked_for",
    ),
    "train.loss.pixel=ohem": (
        "compress.train.losses:hard=none",
        "tests/compress/test_fit_losses.py::test_a_step_descends_the_loss_that_is_asked_for",
    ),
    "train.loss.class_weights": (
        "compress.train.loop:class_weights=none",
        "tests/compress/test_fit_losses.py::test_a_step_descends_the_loss_that_is_asked_for",
    ),
    "train.loss.own": (
        "compress.train.losses:own.loss=none",
        "tests/compress/test_own_parts.py::test_a_loss_of_ones_own_is_added_with_its_weight",
    ),
    "train.augment.own": (
        "compress.train.feed:own.augmentation=none",
        "tests/compress/test_own_parts.py::test_an_augmentation_of_ones_own_is_what_the_network_sees",
    ),
    "train.schedule.kind of one's own": (
        "compress.train.schedule:own.schedule=none",
        "tests/compress/test_own_parts.py::test_a_schedule_of_ones_own_makes_every_rate",
    ),
    "train.ema_decay": (
        "compress.train.ema:MovingAverage.update=none",
        "tests/compress/test_ema.py::test_the_average_follows_the_formula",
    ),
    "train.clip_norm": (
        "compress.train.step:nn.utils.clip_grad_norm_=small norm",
        "tests/compress/test_fit.py::test_gradients_are_clipped",
    ),
    "train.warmup": (
        "compress.train.schedule:Schedule.pace=peak",
        "tests/compress/test_schedule.py::test_the_learning_rate_rises_linearly_and_falls_as_a_cosine",
    ),
    "train.schedule.kind=onecycle": (
        "compress.train.schedule:Schedule._one_cycle=peak",
        "tests/compress/test_schedule.py::test_one_cycle_is_torchs_with_the_momentum",
    ),
    "train.schedule.kind=cosine": (
        "compress.train.schedule:Schedule._fallen=no fall",
        "tests/compress/test_schedule.py::test_the_learning_rate_rises_linearly_and_falls_as_a_cosine",
    ),
    "train.schedule.kind=restarts": (
        "compress.train.schedule:Schedule._in_its_cycle=false",
        "tests/compress/test_schedule.py::test_warm_restarts_are_torchs",
    ),
    "train.schedule.kind=poly": (
        "compress.train.schedule:Schedule._fallen=no fall",
        "tests/compress/test_schedule.py::test_poly_is_torchs",
    ),
    "train.schedule.momentum": (
        "compress.train.step:set_momentum=none",
        "tests/compress/test_schedule.py::test_one_cycle_is_torchs_with_the_momentum",
    ),
    "train.swa": (
        "compress.train.loop:Fit._judge=none",
        "tests/compress/test_fit_averaging.py::test_the_average_of_the_last_epochs_is_judged_with_statistics_of_its_own",
    ),
    "train.swa: statistics": (
        "compress.train.loop:reestimate=none",
        "tests/compress/test_fit_averaging.py::test_the_average_of_the_last_epochs_is_judged_with_statistics_of_its_own",
    ),
    "train.swa.rate": (
        "compress.train.schedule:Schedule.pace=peak",
        "tests/compress/test_schedule.py::test_while_weights_are_averaged_the_rate_stays",
    ),
    "train.patience": (
        "compress.train.loop:Fit._is_stalled=false",
        "tests/compress/test_fit_averaging.py::test_patience_counts_validations_without_a_better_epoch",
    ),
    "train.freeze": (
        "compress.train.freeze:Freezing.apply=none",
        "tests/compress/test_freeze.py::test_stages_wake_when_they_are_asked_to",
    ),
    "train.freeze.stage_epochs": (
        "compress.train.freeze:Freezing.learning=all at once",
        "tests/compress/test_freeze.py::test_stages_wake_when_they_are_asked_to",
    ),
    "train.keep_from": (
        "compress.train.loop:Fit._may_be_kept=true",
        "tests/compress/test_fit.py::test_the_best_is_looked_for_among_the_later_epochs",
    ),
    "train.weight_decay": (
        "compress.train.step:adamw=without decay",
        "tests/compress/test_fit.py::test_weight_decay_is_for_kernels_alone",
    ),
    "train.encoder_rate": (
        "compress.train.step:set_learning_rate=same rate",
        "tests/compress/test_fit.py::test_a_pretrained_encoder_learns_at_its_own_rate",
    ),
    "train.layer_decay": (
        "compress.train.step:set_learning_rate=same rate",
        "tests/compress/test_freeze.py::test_stages_of_an_encoder_learn_the_slower_the_nearer_they_are_to_the_image",
    ),
    "train.micro_batch": (
        "compress.train.objective:Objective.parts=whole",
        "tests/compress/test_fit_memory.py::test_a_batch_may_be_taken_in_parts_from_the_start",
    ),
    "train.save_every": (
        "compress.train.loop:Fit._keep=none",
        "tests/compress/test_fit_checkpoints.py::test_the_last_epoch_and_every_other_one_are_kept",
    ),
    "train.precision": (
        "compress.train.step:autocast=context",
        "tests/compress/test_fit.py::test_convolutions_run_in_the_precision_that_is_asked_for",
    ),
    "train.augment.flip_*": (
        "compress.data.augment:_some=second",
        "tests/compress/test_augment.py::test_flips_are_exact",
    ),
    "train.augment.rotate_degrees": (
        "compress.data.augment:warped=last two",
        "tests/compress/test_augment.py::test_each_image_of_a_batch_is_drawn_for_itself_and_the_seed_decides",
    ),
    "train.augment.shear_degrees": (
        "compress.data.augment:warped=last two",
        "tests/compress/test_augment.py::test_shear_leans_as_far_as_is_asked_and_no_further",
    ),
    "train.augment.quarter_turn": (
        "compress.data.augment:_rotated=first two",
        "tests/compress/test_augment.py::test_quarter_turns_are_exact_and_go_either_way",
    ),
    "train.augment.noise": (
        "compress.data.augment:Augment._noisy=second",
        "tests/compress/test_augment.py::test_noise_is_gaussian_and_leaves_the_mask",
    ),
    "train.augment.cutout": (
        "compress.data.augment:Augment._cut_out=last two",
        "tests/compress/test_augment.py::test_a_hole_is_grey_and_void_and_of_the_size_that_is_asked_for",
    ),
    "train.augment.cutmix": (
        "compress.train.feed:cutmixed=last two",
        "tests/compress/test_feed.py::test_cutmix_takes_a_rectangle_of_the_image_before_with_its_mask",
    ),
    "train.augment.cutmix_alpha": (
        "compress.data.mixing:_beta=any share",
        "tests/compress/test_feed.py::test_boxes_are_as_large_as_the_beta_distribution_says",
    ),
    "train.augment.mixup": (
        "compress.train.feed:mixed=unmixed",
        "tests/compress/test_feed.py::test_mixup_blends_each_image_with_the_one_before_it_and_hands_its_mask_on",
    ),
    "train.augment.mixup: the loss": (
        "compress.train.objective:torch.lerp=first",
        "tests/compress/test_objective.py::test_of_a_blend_each_mask_counts_with_its_share",
    ),
    "train.augment.policy": (
        "compress.data.change:_of_policy=no change",
        "tests/compress/test_augment.py::test_a_policy_moves_image_and_mask_together_and_each_image_by_itself",
    ),
    "train.augment.brightness": (
        "compress.data.augment:Augment._lit=second",
        "tests/compress/test_augment.py::test_light_changes_the_image_and_not_the_mask",
    ),
    "train.augment.gamma": (
        "kornia.enhance:adjust_gamma=first",
        "tests/compress/test_augment.py::test_gamma_is_a_power_of_the_pixels_from_0_to_1",
    ),
    "train.augment.hue": (
        "kornia.enhance:adjust_hue=first",
        "tests/compress/test_augment.py::test_hue_and_saturation_move_within_their_range_and_nothing_else_does",
    ),
    "train.augment.saturation": (
        "kornia.enhance:adjust_saturation=first",
        "tests/compress/test_augment.py::test_hue_and_saturation_move_within_their_range_and_nothing_else_does",
    ),
    "train.augment.scale": (
        "compress.data.loader:resample=first two",
        "tests/compress/test_crop.py::test_a_zoomed_crop_shows_what_is_there_at_that_scale",
    ),
    "data.size": (
        "compress.data.cache:resize_image=first",
        "tests/compress/test_loader.py::test_images_are_resized_once_and_masks_nearest",
    ),
    "data.crop": (
        "compress.data.loader:Window.draw=whole image",
        "tests/compress/test_loader.py::test_image_and_mask_are_cropped_and_padded_alike",
    ),
    "data.rare_crops": (
        "compress.data.loader:rare.place=none",
        "tests/compress/test_rare.py::test_crops_are_taken_around_each_class_of_an_image_alike",
    ),
    "data.rare_images": (
        "compress.data.loader:TrainingImages._repeats_of=none",
        "tests/compress/test_rare.py::test_images_of_rare_classes_come_more_often",
    ),
    "train --init": (
        "compress.checkpoint:load_weights=empty",
        "tests/compress/test_train.py::test_training_starts_from_weights_that_are_given",
    ),
    "train --find-lr": (
        "compress.train.step:Stepper._step=none",
        "tests/compress/test_find_rate.py::test_it_trains_at_the_rates_that_it_names_until_the_loss_explodes",
    ),
    "train --teacher": (
        "compress.train.train:_master=none",
        "tests/compress/test_train.py::test_a_teacher_is_followed_as_far_as_its_weight_says",
    ),
    "train.sparsity": (
        "compress.train.train:penalty_of=none",
        "tests/compress/test_sparsity.py::test_the_recipe_asks_for_it",
    ),
    "train.sparsity.kind=l1": (
        "compress.train.sparsity:Penalty.__call__=no penalty",
        "tests/compress/test_sparsity.py::test_single_weights_come_to_nothing",
    ),
    "prune.importance": (
        "compress.prune.decide:scores_by=by magnitude",
        "tests/compress/test_importance.py::test_the_command_cuts_by_what_the_recipe_says",
    ),
    "prune.scope": (
        "compress.prune.scores:Scores._same_share=most important",
        "tests/compress/test_scores.py::test_local_scope_cuts_the_same_share_of_every_group",
    ),
    "prune.whole_parts": (
        "compress.prune.costs:Parts.of=no parts",
        "tests/compress/test_costs.py::test_levels_go_where_no_width_is_narrow_enough",
    ),
    "prune.sparsity": (
        "compress.train.sparsity:hold_at_zero=none",
        "tests/compress/test_prune_weights.py::test_held_weights_do_not_move_and_the_others_do",
    ),
    "prune.analysis_images": (
        "compress.prune.analyze:drawn_by_name=first",
        "tests/compress/test_analyze.py::test_what_is_at_its_floor_is_named_and_not_cut",
    ),
    "quantize.calibration=auto": (
        "compress.quantize.quantize:Workbench.calibration=minmax",
        "tests/compress/test_quantize_choices.py::test_calibration_is_chosen_once",
    ),
    "quantize.rewrites": (
        "compress.quantize.quantize:Workbench.shipped=second",
        "tests/compress/test_rewrites.py::test_the_faster_form_leaves",
    ),
    "quantize.equalise": (
        "compress.quantize.workbench:Workbench._equalised=none",
        "tests/compress/test_quantize_choices.py::test_equalised_channels_leave_no_layer_in_float",
    ),
    "equalised channels": (
        "compress.quantize.ptq:equalised=first",
        "tests/compress/test_equalise.py::test_channels_a_thousand_times_apart_are_lost_in_int8_and_equalised_they_are_not",
    ),
    "quantize.bias_correction": (
        "compress.quantize.choice:corrected=first",
        "tests/compress/test_quantize_choices.py::test_biases_are_corrected_where_that_keeps_more",
    ),
    "quantize.target=tensorrt": (
        "compress.quantize.ptq:with_float_ends=first",
        "tests/compress/test_targets.py::test_tensorrt_has_biases_in_float_and_uint8_at_its_ends_alone",
    ),
    "quantize.half_floats": (
        "export.runtime:has_bfloat16=false",
        "tests/serve/test_serve_providers.py::"
        "test_openvino_is_asked_for_bfloat16_only_where_the_processor_multiplies_it",
    ),
    "quantize.mode=qat": (
        "compress.quantize.choice:_trained=second",
        "tests/compress/test_quantize_qat.py::test_training_beats_calibration_where_that_loses",
    ),
    "quantize.max_drop": (
        "compress.quantize.choice:_within=third",
        "tests/compress/test_quantize_budget.py::test_the_layers_that_break_int8_stay_in_float",
    ),
    "prune.finetune.teacher_weight": (
        "compress.train.objective:distillation=zero",
        "tests/compress/test_fit.py::test_a_student_follows_its_teacher_as_much_as_is_asked",
    ),
    "prune.finetune.attention_weight": (
        "compress.train.objective:distance=nothing apart",
        "tests/compress/test_objective.py::test_attention_is_where_convolutions_answer_whatever_their_width",
    ),
    "data suspects": (
        "compress.suspects:doubted=none",
        "tests/compress/test_suspects.py::test_what_was_spoiled_is_named_first",
    ),
    "evaluate: boundary F1": (
        "export.boundaries:near=first",
        "tests/export/test_boundaries.py::test_edges_may_be_apart_by_the_tolerance_and_no_more",
    ),
    "evaluate --auc": (
        "export.ranking:RankingScore.update=none",
        "tests/compress/test_refine.py::test_the_command_ranks_by_probabilities",
    ),
    "--window": ("export.refine:windowed=first", "tests/compress/test_refine.py"),
    "--mirror": (
        "export.refine:mirrored=first",
        "tests/compress/test_refine.py::test_checkpoint_and_bundle_look_alike",
    ),
    "the guard against what is no number": (
        "compress.train.step:Stepper._skip=none",
        "tests/compress/test_fit_guard.py::test_a_loss_that_stays_undefined_ends_the_run_and_names_the_files",
    ),
    "fewer images when memory is short": (
        "compress.train.step:is_out_of_memory=false",
        "tests/compress/test_fit_memory.py::test_the_gradients_of_the_parts_add_up_to_that_of_the_batch",
    ),
    "serve --api-keys": (
        "serve.app:Access=first",
        "tests/serve/test_serve_keys.py::test_who_has_none_is_told_how_to_send_one",
    ),
    "serve --otel": (
        "serve.tracing:fastapi_options=no options",
        "tests/serve/test_serve_traces.py::test_a_request_is_a_span_of_its_clients_trace_with_its_stages_in_it",
    ),
    "serve --allow-load": (
        "serve.access:check_may_administer=none",
        "tests/serve/test_serve_keys.py::test_only_an_admin_key_administers",
    ),
    "serve --max-wait": (
        "serve.queue:WorkQueue.check_room=none",
        "tests/serve/test_serve_work_queue.py::test_workers_and_limit_bound_what_is_accepted",
    ),
    "serve --max-batch": (
        "serve.queue:WorkQueue._add_mates=none",
        "tests/serve/test_serve_work_queue.py::test_what_waits_is_taken_together_up_to_the_largest_batch",
    ),
    "serve: X-Deadline-Ms": (
        "serve.routes_image:deadline_of=no deadline",
        "tests/serve/test_serve_engine.py::test_a_request_may_bring_its_own_deadline",
    ),
    "serve: probabilities and window": (
        "serve.looks:Look.asked=as a whole",
        "tests/serve/test_serve_looks.py::test_windows_give_the_masks_of_compress_predict",
    ),
    "serve: overlay": (
        "serve.answers:overlay=first",
        "tests/serve/test_serve_answers.py::test_an_overlay_is_the_image_under_the_colours_of_its_classes",
    ),
    "serve: header_seconds": (
        "serve.connections:GuardedConnection._watch=none",
        "tests/serve/test_serve_connections.py::test_headers_that_never_end_are_answered_408",
    ),
    "serve: send_seconds": (
        "serve.connections:GuardedConnection._cut_off=none",
        "tests/serve/test_serve_connections.py::test_who_does_not_read_is_cut_off",
    ),
    "serve: max_connections": (
        "serve.app:Crowding=first",
        "tests/serve/test_serve_connections.py::test_on_too_many_connections_health_alone_is_answered",
    ),
    "the diagnosis of a training": (
        "compress.train.train:diagnosed=empty",
        "tests/compress/test_diagnosis.py::test_a_training_that_learns_nothing_is_told_so",
    ),
    "resume": (
        "compress.train.state:StateFile.load=none",
        "tests/compress/test_fit_resume.py::test_a_run_that_goes_on_takes_only_the_steps_that_were_left",
    ),
}


TOGETHER = 6
"""Options per process: enough to be worth the imports, few enough to spread over the workers."""
GROUPS = [list(OPTIONS)[first : first + TOGETHER] for first in range(0, len(OPTIONS), TOGETHER)]


@pytest.mark.slow
@pytest.mark.parametrize("options", GROUPS, ids=lambda options: f"from {options[0]}")
def test_an_option_that_does_nothing_is_noticed(options: list[str], tmp_path: Path) -> None:
    logs = [tmp_path / str(index) for index in range(len(options))]
    noop.run([noop.Trial(*OPTIONS[option]) for option in options], root=ROOT, logs=logs)
    said = {option: log.read_text() for option, log in zip(options, logs, strict=True)}
    assert not {option: text for option, text in said.items() if "1 failed" not in text}
