"""One-line mutants of the code, each with the fast test that must fail on it.

Every entry changes a number of what is served or trained without breaking a type or a shape. Add one for a fact whose
loss would go unnoticed; `old` must stand exactly once in its file.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A change of one file that a test must notice."""

    name: str
    file: str  # from the root of the repository
    old: str
    new: str
    test: str  # of pytest, such as tests/x/test_y.py::test_z


_PIPES = "tests/golden/test_golden_pipes.py::test_every_run_alone"
_BATCH = "tests/golden/test_golden_pipes.py::test_all_runs_at_once"
_BLOB = "tests/golden/test_golden_blob_start.py"
_DENOISE, _DENOISE_BATCH = "diffsplat/stages/denoise.py", "diffsplat/stages/denoise_batch.py"
_LOOP = "tests/serving/test_device_loop.py"
_SCHEDULERS, _STEPS = "diffsplat/sampling/schedulers.py", "diffsplat/sampling/steps.py"
_CAMERAS, _GAUSSIANS = "diffsplat/geometry/cameras.py", "diffsplat/geometry/gaussians.py"
_ENGINE = "diffsplat/serving/engine/engine.py"
_PLY = "client/diffsplat_client/formats/ply.py"

DEVICE = [
    Mutant(
        "the host looks at a device's step",
        _DENOISE_BATCH,
        "finite = torch.isfinite(result.x).flatten(1).all(dim=1)",
        "finite = torch.isfinite(result.x).flatten(1).all(dim=1) & bool(result.x.amax().item() < 1e6)",
        f"{_LOOP}::test_nor_does_a_step_with_control_maps",
    ),
    Mutant(
        "a device's guidance left on the host",
        _DENOISE,
        "guidance=to_device(guidance, self.device)",
        "guidance=guidance",
        f"{_LOOP}::test_nor_does_a_step_with_control_maps",
    ),
    Mutant(
        "a device's noise left on the host",
        "diffsplat/stages/denoise_job.py",
        "to_device(torch.stack(drawn), device) if drawn else None",
        "torch.stack(drawn) if drawn else None",
        f"{_LOOP}::test_nor_does_a_step_with_control_maps",
    ),
    Mutant(
        "rows of a device's batch chosen by an index of the host",
        _DENOISE_BATCH,
        "torch.stack([predictions[end - 1] for end in self._ends])",
        "predictions[torch.tensor(self._ends) - 1]",
        f"{_LOOP}::test_nor_does_a_step_with_control_maps",
    ),
    Mutant(
        "a device's grid decoded with cameras of the host",
        "diffsplat/stages/decode.py",
        "Cameras(*(to_device(values, grid.device) for values in cameras))",
        "Cameras(*cameras)",
        "tests/serving/test_device_objects.py::test_decode_looks_at_its_latents_and_its_grid_once",
    ),
    Mutant(
        "what padding holds reaches a request",
        _DENOISE_BATCH,
        "for end in self._ends])  # [J",
        "for end in [*self._ends[:-1], len(predictions)]])  # [J",
        "tests/serving/test_families.py::test_padding_to_buckets_changes_no_request[sd15]",
    ),
]

LOOP = [
    Mutant(
        "prompt and negative rows swapped",
        _DENOISE,
        "rows = [1, 0] if guided else [0]",
        "rows = [0, 1] if guided else [0]",
        f"{_PIPES}[pipe_sd3_text]",
    ),
    Mutant(
        "condition image on the unconditional row",
        "diffsplat/denoisers/graph_inputs.py",
        "rows[-1] = condition_latents",
        "rows[0] = condition_latents",
        f"{_PIPES}[pipe_sd3_image]",
    ),
    Mutant(
        "x0_previous never kept",
        _DENOISE,
        "job.x0_previous, job.finite_steps = latents[i], x0[i], finite[i]",
        "job.x0_previous, job.finite_steps = latents[i], job.x0_previous, finite[i]",
        f"{_PIPES}[pipe_sd3_text]",
    ),
    Mutant(
        "init_sigma dropped",
        _DENOISE,
        "noise.draw(shape) * sampler.init_sigma",
        "noise.draw(shape)",
        f"{_PIPES}[pipe_sd_text]",
    ),
    Mutant(
        "c_in dropped",
        _DENOISE_BATCH,
        '"latents": self._rows(model_input(latents, coeffs))',
        '"latents": self._rows(latents)',
        f"{_PIPES}[pipe_sd_text]",
    ),
    Mutant(
        "guess mode's residuals on the unconditional row",
        "diffsplat/denoisers/control_inputs.py",
        "rows += [(None, count - controlled), (owner, controlled)]",
        "rows += [(owner, controlled), (None, count - controlled)]",
        f"{_PIPES}[pipe_controlnet]",
    ),
    Mutant(
        "guess mode's residuals all of full weight",
        "diffsplat/denoisers/control_inputs.py",
        "torch.logspace(-1, 0, residuals) * scale",
        "torch.logspace(0, 0, residuals) * scale",
        f"{_PIPES}[pipe_controlnet]",
    ),
    Mutant(
        "hints of the other views black",
        "diffsplat/denoisers/controlnet.py",
        "torch.cat([hint, torch.ones_like(hint[:1])])",
        "torch.cat([hint, torch.zeros_like(hint[:1])])",
        f"{_PIPES}[pipe_controlnet]",
    ),
    Mutant(
        "noise of a step drawn anew for its neighbours",
        "diffsplat/stages/denoise_job.py",
        "[source.draw(shape) for is_noisy in noisy if is_noisy]",
        "[torch.randn(shape) for is_noisy in noisy if is_noisy]",
        f"{_BATCH}[pipe_sd3_text]",
    ),
    Mutant(
        "timestep of the first job for the whole batch",
        _DENOISE_BATCH,
        "torch.stack([job.tables.timesteps[job.step] for job in jobs])",
        "torch.stack([job.tables.timesteps[jobs[0].step] for job in jobs])",
        f"{_BATCH}[pipe_sd_text]",
    ),
    Mutant(
        "Instant3D's latents not shifted",
        "diffsplat/stages/images.py",
        "stack([mean - self.spec.scaled_shift, std])",
        "stack([mean, std])",
        f"{_BLOB}::test_first_state_of_every_family[pipe_sd3_text-pipe_sd3_image]",
    ),
    Mutant(
        "condition image's latents shifted",
        "diffsplat/images/vae_encoder.py",
        "return self.scaling_factor * mean, ",
        "return self.scaling_factor * (mean - 0.0609), ",
        f"{_PIPES}[pipe_sd3_image]",
    ),
]

SAMPLERS = [
    Mutant(
        "DPM-Solver's ratio of steps inverted",
        _SCHEDULERS,
        "h[1:] / (2 * h[:-1])",
        "h[:-1] / (2 * h[1:])",
        f"{_PIPES}[pipe_sd3_text]",
    ),
    Mutant(
        "DDIM's previous timestep from the grid",
        _SCHEDULERS,
        "previous = t - schedule.num_train_timesteps // steps",
        "previous = np.append(t[1:], -1)",
        "tests/library/test_samplers.py::test_ddim_previous_timestep_is_by_integer_division",
    ),
    Mutant(
        "PixArt's DDIM without clipping",
        _SCHEDULERS,
        "clipped = alpha_previous if schedule.ddim_clip_x0 else 0.0",
        "clipped = 0.0",
        f"{_PIPES}[pipe_pixart_sigma_text]",
    ),
    Mutant(
        "SD3's grid shifted once",
        _SCHEDULERS,
        "np.linspace(1.0, shift_sigma(np.array(1 / n), schedule.shift), steps)",
        "np.linspace(1.0, np.array(1 / n), steps)",
        f"{_PIPES}[pipe_sd3_text]",
    ),
    Mutant(
        "flow's times of the DPM-Solvers not cut",
        _SCHEDULERS,
        "t = np.floor(sigma[:-1] * n)",
        "t = sigma[:-1] * n",
        f"{_PIPES}[pipe_sd3_text]",
    ),
    Mutant(
        "a late start's first step of second order",
        "diffsplat/sampling/blob_start.py",
        "coeffs[0, c_0] += coeffs[0, c_1]",
        "coeffs[0, c_0] += 0.0",
        f"{_PIPES}[pipe_sd_instant3d_init]",
    ),
    Mutant(
        "linear time grid without its rounding",
        _SCHEDULERS,
        "np.linspace(0, n - 1, steps + 1).round()",
        "np.linspace(0, n - 1, steps + 1)",
        "tests/library/test_samplers.py::test_linspace_is_for_the_dpm_solvers_of_a_vp_process_alone",
    ),
    Mutant(
        "the update forgets the earlier estimate",
        _STEPS,
        "result = result + c[_C_1] * x0_previous",
        "result = result + 0.0 * x0_previous",
        f"{_PIPES}[pipe_sd3_text]",
    ),
]

GUIDANCE_AND_TEXT = [
    Mutant(
        "guidance counted from the prompt",
        "diffsplat/sampling/guidance.py",
        "return uncond + scales",
        "return cond + scales",
        f"{_PIPES}[pipe_sd3_text]",
    ),
    Mutant(
        "triangle falls to its end point",
        "diffsplat/sampling/guidance.py",
        "np.linspace(guidance_scale, min_guidance_scale, views - rising + 2)[1:-1]",
        "np.linspace(guidance_scale, min_guidance_scale, views - rising + 1)[1:]",
        f"{_PIPES}[pipe_sd3_image]",
    ),
    Mutant(
        "padding of a shorter text kept",
        "diffsplat/text/features.py",
        "F.pad(context.new_ones(len(context), dtype=torch.bool), (0, tokens - len(context)))",
        "F.pad(context.new_ones(len(context), dtype=torch.bool), (0, tokens - len(context)), value=True)",
        f"{_PIPES}[pipe_pixart_alpha_text]",
    ),
    Mutant(
        "masked tokens dropped from the wrong end",
        "diffsplat/text/features.py",
        "return Text(text_embeddings[:, used], kept[:, used])",
        "return Text(text_embeddings[:, used.flip(0)], kept[:, used])",
        f"{_PIPES}[pipe_pixart_sigma_text]",
    ),
    Mutant(
        "mask channel one on the condition view",
        "diffsplat/denoisers/view_inputs.py",
        "torch.zeros_like(mask[:, :1])",
        "torch.ones_like(mask[:, :1])",
        f"{_PIPES}[pipe_sd3_image]",
    ),
    Mutant(
        "SDXL told another size",
        "diffsplat/denoisers/graph_inputs.py",
        "[size, size, 0.0, 0.0, size, size]",
        "[size, size, 0.0, 0.0, 2 * size, 2 * size]",
        f"{_PIPES}[pipe_sdxl_text]",
    ),
]

IMAGES = [
    Mutant(
        "canny's thresholds halved",
        "diffsplat/images/prepare.py",
        "CANNY_THRESHOLDS = (100, 200)",
        "CANNY_THRESHOLDS = (50, 100)",
        "tests/library/test_images.py::test_canny_is_opencvs_black_on_white",
    ),
    Mutant(
        "canny at half its working size",
        "diffsplat/images/prepare.py",
        "CANNY_SIZE = 512",
        "CANNY_SIZE = 256",
        "tests/library/test_images.py::test_edges_are_found_at_512_pixels",
    ),
    Mutant(
        "transparent pixels black",
        "diffsplat/images/prepare.py",
        "values * alpha + (1 - alpha)",
        "values * alpha",
        "tests/library/test_images.py::test_transparent_pixels_are_white_whatever_their_colour",
    ),
    Mutant(
        "elevation of the network's sign",
        "diffsplat/images/elevest.py",
        "return -self.network.internal_elevation_deg(",
        "return self.network.internal_elevation_deg(",
        "tests/library/test_elevest.py::test_the_served_sign_is_the_users",
    ),
]

GEOMETRY = [
    Mutant(
        "cameras below the horizon",
        _CAMERAS,
        "elevation, azimuth = torch.deg2rad(elevation), torch.deg2rad(azimuth)",
        "elevation, azimuth = -torch.deg2rad(elevation), torch.deg2rad(azimuth)",
        "tests/golden/test_golden_cameras.py::test_orbits",
    ),
    Mutant(
        "legacy rays not shifted",
        _CAMERAS,
        'shift = 0.5 if pixel_rule == "legacy" else 0.0',
        "shift = 0.0",
        "tests/library/test_cameras.py::test_legacy_rays_start_on_the_optical_axis",
    ),
    Mutant(
        "rays antialiased on their way to the latents",
        _CAMERAS,
        'mode="bilinear", align_corners=False)',
        'mode="bilinear", align_corners=False, antialias=True)',
        f"{_PIPES}[pipe_sd3_text]",
    ),
    Mutant(
        "unprojection at pixel centres",
        _CAMERAS,
        "return torch.linspace(0.0, 1.0, size, dtype=like.dtype, device=like.device)",
        "return (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) / size",
        "tests/golden/test_golden_cameras.py::test_unprojection",
    ),
    Mutant(
        "scales not inverted",
        _GAUSSIANS,
        "geometry.scale_min * t + geometry.scale_max * (1.0 - t)",
        "geometry.scale_max * t + geometry.scale_min * (1.0 - t)",
        "tests/library/test_gaussians.py::test_grid_activation",
    ),
    Mutant(
        "opacity threshold not strict",
        _GAUSSIANS,
        "torch.where(opacity > opacity_threshold,",
        "torch.where(opacity >= opacity_threshold - 1e-6,",
        "tests/library/test_gaussians.py::test_grid_activation",
    ),
    Mutant(
        "a reflection for a rotation",
        "diffsplat/geometry/eigen.py",
        "torch.linalg.cross(vectors[..., 0], vectors[..., 1], dim=-1)",
        "torch.linalg.cross(vectors[..., 1], vectors[..., 0], dim=-1)",
        "tests/library/test_gaussians.py::test_canonical_form_keeps_the_covariance",
    ),
    Mutant(
        "latents decoded without their shift",
        "diffsplat/splats/gsvae.py",
        "unscaled = latents / self.scaling_factor + self.shift_factor",
        "unscaled = latents / self.scaling_factor",
        "tests/golden/test_golden_gsvae.py::test_both_directions[gsvae_sd3]",
    ),
    Mutant(
        "opacity factor without its slope limit",
        "diffsplat/splats/render.py",
        "limit_x, limit_y = 1.3 * 0.5 * width / focal_x,",
        "limit_x, limit_y = 99.0 * 0.5 * width / focal_x,",
        "tests/library/test_render.py::test_opacity_factor_beside_the_image",
    ),
    Mutant(
        "opacity factor without its clamp",
        "diffsplat/splats/render.py",
        "clamped = determinant.clamp_min(MIN_DETERMINANT)",
        "clamped = determinant",
        "tests/library/test_render.py::test_opacity_factor_of_flat_splats_has_a_gradient",
    ),
    Mutant(
        "rasterizer's backward: one sign of the position",
        "diffsplat/rasterize/kernels_project_backward.py",
        "d2 = -rz * (g_xz * xz + g_yz * yz + scale_terms)",
        "d2 = -rz * (g_xz * xz - g_yz * yz + scale_terms)",
        "tests/library/test_rasterize_gradients.py::test_gradients_of_other_modes_match_the_oracle",
    ),
    Mutant(
        "rasterizer's backward: a gradient through a clamped alpha",
        "diffsplat/rasterize/kernels_backward.py",
        "live & (a > F(0)) & (raw <= ALPHA_MAX)",
        "live & (a > F(0))",
        "tests/library/test_rasterize_gradients.py::test_gradients_match_the_oracle",
    ),
]

FILES_AND_SERVICE = [
    Mutant(
        ".ply in our own axes",
        _PLY,
        "stored(to_frame(cloud, frame))",
        "stored(cloud)",
        "tests/client/test_cloud_and_ply.py::test_files_are_in_the_axes_of_3dgs_tools_unless_asked_otherwise",
    ),
    Mutant(
        ".ply's positions turned, its rotations not",
        "client/diffsplat_client/formats/axes.py",
        "np.stack((-x, w, -z, y), axis=1)",
        "np.stack((w, x, y, z), axis=1)",
        "tests/client/test_cloud_and_ply.py::test_files_are_in_the_axes_of_3dgs_tools_unless_asked_otherwise",
    ),
    Mutant(
        ".spz in the axes of 3DGS tools",
        "client/diffsplat_client/formats/__init__.py",
        'SPZ = FileFormat("spz", "splats.spz", _BYTES, OPENGL',
        'SPZ = FileFormat("spz", "splats.spz", _BYTES, THREEDGS',
        "tests/client/test_node_readers.py::test_frames_of_the_registry_are_those_of_the_readers",
    ),
    Mutant(
        "colours of a .glb for viewers without the extension as sRGB",
        "client/diffsplat_client/formats/glb.py",
        "np.rint(65535 * _LINEAR)",
        "np.rint(65535 * _LEVELS)",
        "tests/client/test_glb.py::test_the_colours_of_the_fallback_are_linear",
    ),
    Mutant(
        "a gzip stream is unpacked before its header is believed",
        "client/diffsplat_client/formats/spz_container.py",
        "if sum(sizes) > _DEFLATE_RATIO * len(data):",
        "if False:",
        "tests/client/test_hostile_files.py::test_spz_in_gzip",
    ),
    Mutant(
        ".ply's opacities not as logits",
        _PLY,
        "nearest_log(clamped / (1 - clamped))",
        "nearest_log(clamped)",
        "tests/client/test_cloud_and_ply.py::test_ply_holds_what_viewers_expect",
    ),
    Mutant(
        "the engine never drops a stopped request",
        "diffsplat/serving/engine/early_ends.py",
        "if job.stopped or _asked_to_cancel(job, now_s)",
        "if _asked_to_cancel(job, now_s)",
        "tests/serving/test_engine.py::test_an_ended_request_leaves_within_one_step_and_others_go_on",
    ),
    Mutant(
        "the engine admits one request too many",
        "diffsplat/serving/engine/schedule.py",
        "if len(placed) < self._policy.max_batch:",
        "if len(placed) <= self._policy.max_batch:",
        "tests/serving/test_engine_schedule.py::test_free_places_go_to_the_least_work_left_then_to_the_first",
    ),
    Mutant(
        "nobody who yields ever rises",
        "diffsplat/serving/engine/schedule.py",
        "level = task.priority + math.floor(",
        "level = task.priority + 0 * math.floor(",
        "tests/serving/test_engine_schedule.py::test_nobody_starves",
    ),
    Mutant(
        "a forecast forgets that short requests go first",
        "diffsplat/serving/engine/forecast.py",
        "schedule = Schedule(policy, times.step_s)",
        'schedule = Schedule(dataclasses.replace(policy, order="arrival"), times.step_s)',
        "tests/serving/test_engine_fairness.py::test_the_times_told_are_within_30_percent_of_what_happens",
    ),
    Mutant(
        "a failed step fails the whole batch",
        _ENGINE,
        "return [failure for job in jobs for failure in self._step([job])]",
        "return [(job, error) for job in jobs]",
        "tests/serving/test_engine.py::test_failures_stay_with_their_request",
    ),
    Mutant(
        "a time-out is taken for a missing server",
        "client/diffsplat_client/failures.py",
        "return RequestTimeoutError(",
        "return ServerUnavailableError(",
        "tests/client/test_client.py::test_errors_are_typed",
    ),
    Mutant(
        "the client mistakes a queued request for progress",
        "client/diffsplat_client/events.py",
        'if status.phase == "queued":',
        'if status.phase == "waiting":',
        "tests/client/test_client.py::test_a_generation_from_first_event_to_result",
    ),
]

_RENDERING = "tests/training/test_rendering_loss.py::"

TRAINING = [
    Mutant(
        "SSIM with windows of 5 pixels",
        "training/losses.py",
        "_SSIM_WINDOW = 7",
        "_SSIM_WINDOW = 5",
        "tests/training/test_losses.py::test_ssim_takes_every_window_of_seven_pixels",
    ),
    Mutant(
        "a channel's weight in the grid error",
        "training/stages/vae.py",
        '"depth": 10.0',
        '"depth": 1.0',
        "tests/training/test_stage_losses.py::test_a_grids_error_counts_by_channel_and_opacity",
    ),
    Mutant(
        "no KL",
        "training/stages/vae.py",
        "config.kl_weight * kl",
        "0.0 * kl",
        "tests/training/test_stage_losses.py::test_gsvae_minimises_the_weighted_sum_of_its_terms",
    ),
    Mutant(
        "grid error without its weight",
        "training/stages/vae.py",
        "total = config.grid_weight * grid_error",
        "total = grid_error",
        "tests/training/test_stage_losses.py::test_gsvae_minimises_the_weighted_sum_of_its_terms",
    ),
    Mutant(
        "no position loss",
        "training/stages/recon.py",
        "errors.mean() + config.position_weight * position + ",
        "errors.mean() + ",
        "tests/training/test_stage_losses.py::test_gsrecon_minimises_the_weighted_sum_of_its_terms",
    ),
    Mutant(
        "position loss against coordinates as stored",
        "training/stages/recon.py",
        "2.0 * batch.coords[:, :views] - 1.0",
        "batch.coords[:, :views]",
        "tests/training/test_stage_losses.py::test_gsrecons_terms_on_the_grid_compare_with_the_true_surface",
    ),
    Mutant(
        "no coordinate term",
        "training/rendering_loss.py",
        "(weights.coord, _mse(",
        "(0.0, _mse(",
        _RENDERING + "test_it_is_the_weighted_sum_of_its_terms_for_each_object",
    ),
    Mutant(
        "normals compared as codes",
        "training/rendering_loss.py",
        "F.cosine_similarity(2.0 * shown - 1.0, 2.0 * truth - 1.0, dim=2)",
        "F.cosine_similarity(shown, truth, dim=2)",
        _RENDERING + "test_normals_are_compared_as_vectors_where_the_object_is_solid",
    ),
    Mutant(
        "normals compared over all pixels",
        "training/rendering_loss.py",
        "(alpha == 1.0)[:, :, 0]",
        "(alpha >= 0.0)[:, :, 0]",
        _RENDERING + "test_normals_are_compared_as_vectors_where_the_object_is_solid",
    ),
    Mutant(
        "normals away from the camera",
        "diffsplat/splats/render.py",
        "torch.linalg.cross(down, right, dim=-3)",
        "torch.linalg.cross(right, down, dim=-3)",
        _RENDERING + "test_normals_and_coordinates_of_true_depth_are_those_of_the_object",
    ),
    Mutant(
        "perceptual term without its ramp",
        "training/rendering_loss.py",
        "(share * getattr(weights, weight)",
        "(getattr(weights, weight)",
        _RENDERING + "test_the_perceptual_term_grows_from_its_start_to_its_full_weight",
    ),
    Mutant(
        "another default weight of SSIM",
        "training/config/common.py",
        "ssim: float = 0.2",
        "ssim: float = 0.3",
        _RENDERING + "test_defaults_are_image_mask_and_a_fifth_of_the_dissimilarity",
    ),
    Mutant(
        "another default weight of KL",
        "training/config/vae.py",
        "kl_weight: float = 1e-5",
        "kl_weight: float = 1e-4",
        "tests/training/test_stage_losses.py::test_weights_of_defaults_and_presets",
    ),
    Mutant(
        "LPIPS over the sum of a layer's pixels",
        "training/perceptual/lpips.py",
        "head).mean(dim=(1, 2, 3))",
        "head).sum(dim=(1, 2, 3))",
        "tests/training/test_perceptual.py::test_lpips_weighs_differences_of_unit_features",
    ),
    Mutant(
        "effnet-feature of images in [0, 1]",
        "training/perceptual/effnet.py",
        "(255.0 * images - 127.0) / 128.0",
        "images",
        "tests/training/test_perceptual.py::test_effnet_feature_grows_with_the_change_and_has_a_gradient",
    ),
    Mutant(
        "the tiny decoder fed unscaled latents",
        "training/stages/vae.py",
        "scaled = self.gsvae.scaling_factor * (latents - self.gsvae.shift_factor)",
        "scaled = latents",
        "tests/training/test_vae_start.py::test_the_tiny_decoder_gets_scaled_latents_through_the_post_quant_conv",
    ),
    Mutant(
        "a start with a wide posterior",
        "training/stages/vae_start.py",
        "_FIRST_LOG_VARIANCE = -6.0",
        "_FIRST_LOG_VARIANCE = 0.0",
        "tests/training/test_vae_start.py::test_a_new_posterior_is_almost_deterministic",
    ),
    Mutant(
        "Frechet distance without the overlap",
        "training/evaluation/metrics.py",
        "traces - 2.0 * overlap",
        "traces",
        "tests/training/test_evaluation.py::test_frechet_distance_follows_its_formula",
    ),
    Mutant(
        "evaluation's SSIM of a population",
        "training/evaluation/metrics.py",
        "sample = _SSIM_WINDOW**2 / (_SSIM_WINDOW**2 - 1)",
        "sample = 1.0",
        "tests/golden/test_golden_metrics.py::test_image_figures",
    ),
    Mutant(
        "average without its floor",
        "training/ema.py",
        "return max(min(decay, max_decay), min_decay)",
        "return min(decay, max_decay)",
        "tests/training/test_optim.py::test_ema_decay_has_a_floor_and_a_late_start",
    ),
]

MUTANTS = (*DEVICE, *LOOP, *SAMPLERS, *GUIDANCE_AND_TEXT, *IMAGES, *GEOMETRY, *FILES_AND_SERVICE, *TRAINING)
