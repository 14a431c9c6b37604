"""The multi-view PixArt transformers with the reference's weights, loaded strictly by their official names."""

import pytest
import torch

from diffsplat.backbones.spec import PLUCKER_CHANNELS
from diffsplat.denoisers.pixart import PixArtStep, build_network, pixart_condition_views
from diffsplat.denoisers.pixart_text import PixArtTextContext
from diffsplat.denoisers.view_inputs import split_views, stack_views, stock_config
from diffsplat.text.features import drop_masked_tokens

PARTS = ["pixart_alpha", "pixart_sigma"]


@pytest.mark.parametrize("part", PARTS)
def test_transformer(golden, assert_close, part):
    file = golden(part)
    config = stock_config(file.config["transformer"])
    attended = file.config["num_views"]  # a condition view among them
    condition = int(file.config["transformer"]["view_concat_condition"])
    views = attended - condition
    transformer = build_network(config, views).eval().requires_grad_(False)
    transformer.load_state_dict(file.weights("transformer"))  # strict
    assert pixart_condition_views(transformer) == condition
    context_graph, step_graph = PixArtTextContext(transformer), PixArtStep(transformer, views)
    channels = step_graph.latent_channels
    for case in file.cases:
        given, out = file.case_in(case), file.out(case)
        seen = given["hidden_states"].unflatten(0, (-1, attended))  # [R, W, C', h, w]
        expected = out["sample"].unflatten(0, (-1, attended))
        rows = {name: per_object(tensor, *seen.shape[:2]) for name, tensor in given.items() if name != "hidden_states"}
        times, text, mask = (rows.get(n) for n in ("timestep", "encoder_hidden_states", "encoder_attention_mask"))
        sizes = None
        if config["use_additional_conditions"]:
            sizes = {name: rows[name] for name in ("resolution", "aspect_ratio")}
        if "pos_embed" in out:
            tokens = (size // config["patch_size"] for size in seen.shape[-2:])
            assert_close(transformer.pos_embed.positions(*tokens), out["pos_embed"], f"{case}: position table")
        variants = {"padded text": (text, mask)}
        if mask is not None:
            variants["without the padding"] = drop_masked_tokens(text, mask)
        for variant, (tokens, kept) in variants.items():
            context = context_graph(tokens)
            whole = transformer(
                stack_views(seen),
                encoder_hidden_states=context,
                timestep=times,
                encoder_attention_mask=kept,
                added_cond_kwargs=sizes,
            ).sample  # all channels, the learned variance too
            assert_close(split_views(whole, attended), expected, f"{case}, {variant}: transformer")
            # a step is for the 512 px bases, which have no size embeddings; an image model's makes rays and mask of the
            # condition view itself, and this file's are random
            if sizes is None and not condition:
                latents, plucker = seen.split([channels, PLUCKER_CHANNELS], dim=2)
                prediction = step_graph(latents, plucker, times.float(), context, kept)
                assert_close(prediction, expected[:, :, :channels], f"{case}, {variant}: step")


def per_object(tensor: torch.Tensor, objects: int, attended: int) -> torch.Tensor:
    """What the reference repeats for the views of an object, or gives once for all, once per object."""
    if tensor.numel() == 1:
        return tensor.reshape(1).expand(objects)
    rows = tensor[::attended]
    assert torch.equal(rows.repeat_interleave(attended, dim=0), tensor), "the views of an object differ"
    assert len(rows) == objects
    return rows
