"""Checkpoints that must not be imported: each refused by one message that names what is wrong, nothing left behind."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffsplat.backbones import BACKBONES
from diffsplat.integrity import BundleError
from export.__main__ import main
from export.importing.importer import ImportOptions, import_bundle
from export.importing.layout import SourceError
from tests.families import family_spec, write_family_bundle
from tests.official import TAGS, iteration_folder, write_official

Change = Callable[[ImportOptions], ImportOptions | None]


def unet(options: ImportOptions) -> Path:
    return iteration_folder(Path(options.source), "denoiser") / "unet_ema"


def gsvae(options: ImportOptions) -> Path:
    return iteration_folder(Path(options.source), "gsvae") / "model.safetensors"


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(state)
    path.unlink()
    save_file(state, path)


def edit_config(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def as_pickle(path: Path) -> None:
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def last_shard(options: ImportOptions) -> Path:
    return max(unet(options).glob("*.safetensors"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


KEY = "vae.encoder.conv_in.bias"
DAMAGES: dict[str, tuple[Change, list[str]]] = {
    "a missing key": (
        lambda o: edit(gsvae(o), lambda state: state.pop(KEY)),
        ["gsvae of tiny_sd15", "missing (1)", KEY],
    ),
    "a key too many": (
        lambda o: edit(gsvae(o), lambda state: state.update(extra=torch.zeros(1))),
        ["gsvae of tiny_sd15", "unexpected (1): extra"],
    ),
    "a wrong shape": (
        lambda o: edit(gsvae(o), lambda state: state.update({KEY: torch.zeros(3)})),
        ["gsvae of tiny_sd15", f"mis-shaped (1): {KEY} is [3], not [8]"],
    ),
    "a wrong type": (
        lambda o: edit(gsvae(o), lambda state: state.update({KEY: torch.zeros(8, dtype=torch.int32)})),
        [KEY, "type I32"],
    ),
    "not a number": (
        lambda o: edit(gsvae(o), lambda state: state[KEY].fill_(float("nan"))),
        [KEY, "infinite or NaN"],
    ),
    "a pickle": (lambda o: as_pickle(gsvae(o)), ["pytorch_model.bin", "arbitrary code", "refused"]),
    "no GSVAE": (
        lambda o: shutil.rmtree(Path(o.source) / TAGS["gsvae"]),
        ["no folder gsvae_gobj265k_sd", "holds the gsvae", TAGS["denoiser"]],
    ),
    "no EMA": (lambda o: unet(o).rename(unet(o).with_name("unet")) and None, ["unet_ema", "beside unet"]),
    "a truncated shard": (lambda o: truncate(last_shard(o)), ["-of-", "truncated"]),
    "an empty shard": (lambda o: last_shard(o).write_bytes(b"") and None, ["-of-", "truncated"]),
    "a missing shard": (lambda o: last_shard(o).unlink(), ["lacks shard"]),
    "a stale file beside shards": (
        lambda o: shutil.copyfile(last_shard(o), unet(o) / "diffusion_pytorch_model.safetensors") and None,
        ["contains both diffusion_pytorch_model.safetensors and", "stale"],
    ),
    "an index that says otherwise": (
        lambda o: edit_config(unet(o) / "diffusion_pytorch_model.safetensors.index.json", weight_map={"a": "b"}),
        ["index.json", "places"],
    ),
    "a key in two shards": (
        lambda o: edit(last_shard(o), lambda state: state.update({"conv_in.bias": torch.zeros(8)})),
        ["conv_in.bias", "so does"],
    ),
    "another family": (
        lambda o: edit_config(unet(o) / "config.json", _class_name="SD3TransformerMV2DModel"),
        ["SD3Transformer", "tiny_sd15 was asked for"],
    ),
    "another UNet": (
        lambda o: edit_config(unet(o) / "config.json", cross_attention_dim=2048),
        ["config.json", "cross_attention_dim is 2048, not 16", "tiny_sd15 was asked for"],
    ),
    "an image model": (
        lambda o: edit_config(unet(o) / "config.json", in_channels=11),
        ["image model (in_channels 11), not text", "tiny_sd15 was asked for"],
    ),
    "another text encoder": (
        lambda o: edit_config(Path(o.base) / "text_encoder" / "config.json", num_attention_heads=1),
        ["num_attention_heads is 1, not 2", "text_encoder of tiny_sd15"],
    ),
    "no tokenizer": (lambda o: shutil.rmtree(Path(o.base) / "tokenizer"), ["no folder tokenizer"]),
    "a damaged tokenizer": (
        lambda o: (Path(o.base) / "tokenizer" / "tokenizer.json").write_text("{") and None,
        ["no tokenizer of tiny_sd15"],
    ),
    "no such iteration": (
        lambda o: dataclasses.replace(o, iterations={"denoiser": 7}),
        ["has no iteration 7, only 1000, 13020"],
    ),
    "no published checkpoint": (
        lambda o: dataclasses.replace(o, tags={**TAGS, "denoiser": ""} | {"denoiser": "no_such_tag"}),
        ["no folder no_such_tag"],
    ),
    "no tag": (
        lambda o: dataclasses.replace(o, tags={name: tag for name, tag in TAGS.items() if name != "denoiser"}),
        ["no checkpoint was published", "--tag denoiser=TAG", TAGS["denoiser"]],
    ),
    "no such source": (lambda o: dataclasses.replace(o, source=o.source + "/no/such"), ["no such folder"]),
    "a file as source": (lambda o: dataclasses.replace(o, source=str(gsvae(o))), ["is a file"]),
    "an unknown precision": (lambda o: dataclasses.replace(o, precision="int8"), ["'int8'", "fp32, fp16, bf16"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, options: ImportOptions) -> None:
    change, words = DAMAGES[damage]
    options = change(options) or options
    with pytest.raises(SourceError) as caught:
        import_bundle(options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not options.out.exists()


def test_an_image_checkpoint_for_a_text_backbone(options: ImportOptions, tmp_path: Path) -> None:
    """Without its config.json too: then the shapes tell."""
    image = write_official(write_family_bundle(tmp_path / "i" / "direct", "sd15_image"), tmp_path / "i")
    wrong = dataclasses.replace(image, spec=family_spec("sd15"))
    with pytest.raises(SourceError, match="image model .*but tiny_sd15 was asked for|asked for: .*image model"):
        import_bundle(wrong)
    (unet(wrong) / "config.json").unlink()
    with pytest.raises(SourceError, match=r"conv_in.weight is \[8, 11, 3, 3\], not \[8, 10, 3, 3\]"):
        import_bundle(wrong)
    with pytest.raises(SourceError, match="text model .*not image"):
        import_bundle(dataclasses.replace(options, spec=image.spec, base=image.base))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--backbone", "sd21"], "a checkpoint of sd15, but tiny_sd21 was asked for: use_linear_projection is"),
        (["--backbone", "sd15", "--image"], "a checkpoint of sd15, but tiny_sd15_image was asked for: it is text"),
        (["--backbone", "sd35"], f"which holds the denoiser. OUT has {TAGS['denoiser']}"),
    ],
)
def test_a_checkpoint_of_another_backbone(
    arguments: list[str],
    says: str,
    options: ImportOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the right base model beside it."""
    asked = f"{arguments[1]}{'_image' * ('--image' in arguments)}"
    base = write_official(write_family_bundle(tmp_path / "right" / "direct", asked), tmp_path / "right").base
    for name, spec in {name: family_spec(name) for name in ("sd15", asked)}.items():
        monkeypatch.setitem(BACKBONES, name, spec)
    tag = ["--tag", f"denoiser={TAGS['denoiser']}"] if arguments[1] != "sd35" else []
    assert main(["import", *arguments, *tag, "--base", base, options.source, str(options.out)]) == 1
    assert says.replace("OUT", options.source) in capsys.readouterr().err
    assert not options.out.exists()


def test_all_problems_come_together(options: ImportOptions) -> None:
    edit(gsvae(options), lambda state: state.pop(KEY))
    edit(last_shard(options), lambda state: state.update(extra=torch.zeros(1)))
    (unet(options) / "diffusion_pytorch_model.safetensors.index.json").unlink()  # which would say so first
    with pytest.raises(SourceError) as caught:
        import_bundle(options)
    assert "denoiser of tiny_sd15" in str(caught.value) and "gsvae of tiny_sd15" in str(caught.value)
    assert not list(options.out.parent.glob(".*"))  # refused before anything was written


def test_numbers_too_large_for_half_precision(options: ImportOptions) -> None:
    edit(last_shard(options), lambda state: next(iter(state.values())).fill_(1e5))
    with pytest.raises(SourceError, match="too large for F16: import with --precision bf16 or fp32"):
        import_bundle(dataclasses.replace(options, precision="fp16"))
    import_bundle(dataclasses.replace(options, precision="bf16"))


def test_twins_that_differ(tmp_path: Path) -> None:
    """T5's embedding stands twice in its files; two different ones would be two models."""
    options = write_official(write_family_bundle(tmp_path / "direct", "pixart_sigma"), tmp_path)
    path = Path(options.base) / "text_encoder" / "model.safetensors"
    edit(path, lambda state: state["shared.weight"].add_(1))
    with pytest.raises(SourceError, match="differs from .*the same tensor"):
        import_bundle(options)


def test_another_image_vae(tmp_path: Path) -> None:
    options = write_official(write_family_bundle(tmp_path / "direct", "sd15", images=True), tmp_path)
    edit_config(Path(options.base) / "vae" / "config.json", scaling_factor=0.5)
    with pytest.raises(SourceError, match="not the image VAE of tiny_sd15: scaling_factor is 0.5"):
        import_bundle(options)


def test_a_folder_that_is_not_ours_is_not_replaced(options: ImportOptions) -> None:
    options.out.mkdir()
    (options.out / "letter.txt").write_text("dear")
    with pytest.raises(BundleError, match="refusing to replace"):
        import_bundle(options)
    assert (options.out / "letter.txt").read_text() == "dear"


def test_two_imports_at_once(options: ImportOptions) -> None:
    def second(text: str, done: int, total: int) -> None:
        if total:
            import_bundle(options)

    with pytest.raises(SourceError, match="another import"):
        import_bundle(options, second)


def test_without_a_network(options: ImportOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of the hub that cannot be reached is an error that says what to do."""
    import huggingface_hub

    def fail(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(SourceError, match=r"owner/name: the hub cannot be reached .*no route.* local folder.* SOURCE"):
        import_bundle(dataclasses.replace(options, source="owner/name"))
