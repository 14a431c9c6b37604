"""The multi-view SD3 and SD3.5 transformers with the reference's weights, loaded strictly by their official names."""

import pytest
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

from diffsplat.backbones.spec import PLUCKER_CHANNELS
from diffsplat.denoisers.sd3 import SD3Context, SD3Modulations, SD3Step, sd3_condition_views, set_multiview_patches
from diffsplat.denoisers.view_inputs import split_views, stack_views, stock_config

PARTS = ["sd3m", "sd35m"]


@pytest.mark.parametrize("part", PARTS)
def test_transformer(part, golden, assert_close):
    file = golden(part)
    transformer = SD3Transformer2DModel(**stock_config(file.config["transformer"])).eval().requires_grad_(False)
    attended = file.config["num_views"]  # a condition view among them
    condition = sd3_condition_views(transformer)
    views = attended - condition
    set_multiview_patches(transformer, views)
    transformer.load_state_dict(file.weights("transformer"))  # strict
    step_graph = SD3Step(transformer, views)
    channels = transformer.config.out_channels
    for case in file.cases:
        given = file.case_in(case)
        text, pooled = given["encoder_hidden_states"], given["pooled_projections"]
        times = given["timestep"].float().expand(len(text))  # one number, or one per object
        expected = file.out(case)["sample"].unflatten(0, (-1, attended))
        seen = given["hidden_states"].unflatten(0, (-1, attended))  # [R, V', C', h, w]
        whole = transformer(stack_views(seen), text, pooled, times).sample
        assert_close(split_views(whole, attended), expected, f"{case}: in one piece")
        if condition:  # a step makes rays and mask of the condition view itself, and this file's are random
            continue

        context = SD3Context(transformer)(text)
        modulations = SD3Modulations(transformer)(pooled, times[:, None])  # every row has a schedule of its own
        latents, plucker = seen.split([channels, PLUCKER_CHANNELS], dim=2)
        prediction = step_graph(latents, plucker, modulations[:, 0], context)
        assert_close(prediction, expected, f"{case}: in three graphs")
