"""The multi-view SD3 and SD3.5 transformers with the reference's weights, loaded strictly by their official names."""

import pytest

from diffsplat.sd3 import SD3Context, SD3Step, build_sd3, split_views, stack_views, stock_sd3_config

PARTS = ["sd3m", "sd35m"]


@pytest.mark.parametrize("part", PARTS)
def test_transformer(part, golden, assert_close):
    file = golden(part)
    views = file.config["num_views"]
    transformer = build_sd3(stock_sd3_config(file.config["transformer"]), views).eval().requires_grad_(False)
    transformer.load_state_dict(file.weights("transformer"))  # strict
    context_graph, step_graph = SD3Context(transformer), SD3Step(transformer, views)
    for case in file.cases:
        given, expected = file.case_in(case), file.out(case)["sample"]
        text, pooled, times = given["encoder_hidden_states"], given["pooled_projections"], given["timestep"]
        seen = given["hidden_states"].unflatten(0, (-1, views))  # [R, V, C + 6, h, w]
        whole = transformer(stack_views(seen), text, pooled, times).sample
        assert_close(split_views(whole, views).flatten(0, 1), expected, f"{case}: in one piece")
        context, modulations = context_graph(text, pooled, times[:, None])  # every row has a schedule of its own
        prediction = step_graph(seen[:, :, :-6], seen[:, :, -6:], modulations[:, 0], context)
        assert_close(prediction.flatten(0, 1), expected, f"{case}: in two graphs")
