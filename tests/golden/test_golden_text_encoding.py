"""Text encoding of SD1.5 with the reference's tiny CLIP-L; the other encoders of the file are not built yet."""

from dataclasses import replace

import torch

from diffsplat.backbones import SD15
from diffsplat.text import build_text_encoder


def test_sd15(golden, assert_close):
    file = golden("text_encoding")
    out = file.out("sd15")
    max_tokens = out["prompt_embeds"].shape[1]
    encoder = build_text_encoder(replace(SD15, text_encoder=replace(SD15.text_encoder, config=file.config["clip_l"])))
    weights = file.weights("clip_l")
    encoder.load_state_dict({name: t for name, t in weights.items() if name != "text_projection.weight"})  # strict
    encoder = encoder.eval().requires_grad_(False)
    for prompt, name in ((file.config["prompt"], "prompt_embeds"), (file.config["negative"], "negative_prompt_embeds")):
        ids = file.config["table_clip"][prompt.replace("_", " ")]  # as the tokenizer sees it
        ids = torch.tensor([ids + [file.config["pad"]["clip_l"]] * (max_tokens - len(ids))])
        assert any(torch.equal(ids, fed) for key, fed in out.items() if key.startswith("ids_")), prompt
        assert_close(encoder(ids), out[name], name)
