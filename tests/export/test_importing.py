"""Official checkpoints, tiny ones in the official layout, become bundles that generate the same splats."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffsplat_client.request import GenerationRequest
from safetensors.torch import load_file

from diffsplat.backbones import BACKBONES
from diffsplat.bundle import Bundle, open_bundle, write_bundle
from diffsplat.integrity import describe_file
from diffsplat.networks import bundle_network, network_builders
from diffsplat.pipeline import Pipeline
from diffsplat.weights import weight_files
from export.__main__ import main
from export.importing import copy as importing_copy
from export.importing.importer import ImportOptions, import_bundle
from export.importing.layout import default_tags
from tests.families import write_family_bundle
from tests.official import NEWEST, OLDER, TAGS, iteration_folder, write_official

REQUEST = GenerationRequest("a small red cube", negative_prompt="large", seed=1)
TINY_DECODER = {"num_blocks": [1, 1, 1], "block_out_channels": [8, 8, 8]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SD1.5 with everything beside it: ControlNets, image encoder, elevation estimator, the GSVAE's tiny decoder."""
    folder = tmp_path_factory.mktemp("images")
    bundle = write_family_bundle(folder / "plain", "sd15", ("depth", "canny"), images=True)
    spec = dataclasses.replace(bundle.spec, gsvae={**bundle.spec.gsvae, "tiny_decoder": TINY_DECODER})
    networks = {name: bundle_network(bundle, name) for name in network_builders(spec) if name != "gsvae"}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        networks["gsvae"] = network_builders(spec)["gsvae"]()
    texts = [path.read_text() for path in bundle.tokenizer_paths]
    return write_bundle(folder / "bundle", spec, networks, texts, {}, dtype=torch.float32)


@pytest.fixture
def options(images: Bundle, tmp_path: Path) -> ImportOptions:
    return write_official(images, tmp_path)


def stored(bundle: Bundle, network: str) -> dict[str, torch.Tensor]:
    files = weight_files(bundle.root, bundle.files, network)
    return {k: v for name in files if name.endswith(".safetensors") for k, v in load_file(bundle.root / name).items()}


def assert_same_weights(imported: Bundle, direct: Bundle) -> None:
    for name in network_builders(direct.spec):
        ours, theirs = bundle_network(imported, name).state_dict(), bundle_network(direct, name).state_dict()
        assert ours.keys() == theirs.keys(), name
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


@pytest.mark.parametrize(
    ("family", "sharded"), [("sd15", False), ("sd21", False), ("sdxl", True), ("pixart_sigma", True), ("sd35", True)]
)
def test_an_imported_bundle_generates_the_same_splats(family: str, sharded: bool, tmp_path: Path) -> None:
    direct = write_family_bundle(tmp_path / "direct", family)
    imported = import_bundle(write_official(direct, tmp_path, sharded))
    assert imported.spec == direct.spec
    assert_same_weights(imported, direct)
    ours, theirs = (Pipeline.from_bundle(bundle).generate(REQUEST).splats for bundle in (imported, direct))
    assert (ours == theirs).all() and len(ours) > 0


def test_image_models_and_everything_beside_a_text_model(images: Bundle, options: ImportOptions, tmp_path: Path):
    assert_same_weights(import_bundle(options), images)
    image = write_family_bundle(tmp_path / "image" / "direct", "sd15_image")
    assert_same_weights(import_bundle(write_official(image, tmp_path / "image")), image)


def test_the_bundle_tells_where_everything_came_from(options: ImportOptions) -> None:
    bundle = import_bundle(options)
    assert bundle.lineage["imported_from"] == {"checkpoint": {"folder": "out"}, "base": {"folder": "base"}}
    assert str(options.out.parent) not in json.dumps(bundle.lineage)
    for name in network_builders(bundle.spec):
        entry = bundle.lineage["networks"][name]
        root = Path(options.base if name.startswith(("text_encoder", "image_encoder")) else options.source)
        assert entry["precision"] == "fp32"
        for source in entry["made_from"]:
            assert {key: source[key] for key in ("sha256", "bytes")} == describe_file(root / source["file"])
    assert not list(options.out.parent.glob(".*"))  # nothing left over


def test_an_older_iteration_on_demand(options: ImportOptions) -> None:
    bundle = import_bundle(dataclasses.replace(options, iterations={"denoiser": int(OLDER)}))
    assert not any(tensor.any() for tensor in bundle_network(bundle, "denoiser").state_dict().values())
    newest = import_bundle(options)
    assert newest.lineage["networks"]["denoiser"]["made_from"][0]["file"].split("/")[2] == NEWEST


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_precision_is_chosen_and_recorded(
    precision: str, dtype: torch.dtype, options: ImportOptions, images: Bundle
) -> None:
    """What turns latents into splats keeps every bit; the others are rounded as torch rounds."""
    bundle = import_bundle(dataclasses.replace(options, precision=precision))
    for name in network_builders(bundle.spec):
        narrow = name.startswith(("text_encoder", "denoiser", "controlnet"))
        assert bundle.lineage["networks"][name]["precision"] == (precision if narrow else "fp32")
        expected = bundle_network(images, name).state_dict()
        for key, tensor in stored(bundle, name).items():
            wanted = expected[key].to(dtype) if narrow and expected[key].is_floating_point() else expected[key]
            assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted), (name, key)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_half_precision_variant_is_taken_and_kept(sharded: bool, tmp_path: Path) -> None:
    """As the reference takes it; storing it wider would hold the same numbers."""
    direct = write_family_bundle(tmp_path / "direct", "sdxl")
    bundle = import_bundle(write_official(direct, tmp_path, sharded, base_variant="fp16"))
    for name in ("text_encoder", "text_encoder_2"):
        assert bundle.lineage["networks"][name]["precision"] == "fp16"
        expected = bundle_network(direct, name).state_dict()
        for key, tensor in stored(bundle, name).items():
            assert torch.equal(tensor, expected[key].half())
    assert bundle.lineage["networks"]["denoiser"]["precision"] == "fp32"


def test_large_networks_are_split(options: ImportOptions, images: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a bundle need not end where those of the source do, and neither need the pieces that are copied."""
    monkeypatch.setattr(importing_copy, "PIECE_BYTES", 1000)
    limit = 50_000
    bundle = import_bundle(dataclasses.replace(options, max_file_bytes=limit))
    shards = [name for name in bundle.files if name.startswith("denoiser-")]
    assert len(shards) > 2 and "denoiser.safetensors.index.json" in bundle.files
    assert all(bundle.files[name]["bytes"] <= limit for name in shards)
    assert_same_weights(bundle, images)


class Interrupted(BaseException):
    """Ctrl-C, at a place of the test's choice."""


def test_an_interrupted_import_continues(options: ImportOptions, images: Bundle) -> None:
    reads: list[str] = []

    def interrupt(text: str, done: int, total: int) -> None:
        reads.append(text)
        if text == "gsvae":
            raise Interrupted

    with pytest.raises(Interrupted):
        import_bundle(options, interrupt)
    assert not options.out.exists()
    (working,) = options.out.parent.glob(".bundle-import")
    finished = {path: path.stat().st_mtime_ns for path in (working / "bundle").iterdir()}
    assert {path.stem for path in finished} == {"text_encoder", "denoiser"}

    # one of the finished files is damaged meanwhile: it is copied again, the other is not
    damaged = working / "bundle" / "text_encoder.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    (working / "bundle" / "stray.safetensors").write_text("")
    again: list[str] = []
    bundle = import_bundle(options, lambda text, done, total: again.append(text))
    assert "denoiser" not in again and "text_encoder" in again and "gsvae" in again
    assert "stray.safetensors" not in bundle.files
    assert (bundle.root / "denoiser.safetensors").stat().st_mtime_ns in finished.values()
    assert_same_weights(bundle, images)
    assert not working.exists()


def test_a_source_that_changed_is_not_continued(options: ImportOptions) -> None:
    """What an earlier import copied of another checkpoint, or at another precision, is copied anew."""

    def interrupt(text: str, done: int, total: int) -> None:
        if text == "gsvae":
            raise Interrupted

    with pytest.raises(Interrupted):
        import_bundle(options, interrupt)
    again: list[str] = []
    import_bundle(dataclasses.replace(options, precision="fp16"), lambda text, done, total: again.append(text))
    assert {"text_encoder", "denoiser"} <= set(again)


def test_progress_ends_at_its_total(options: ImportOptions) -> None:
    seen: list[tuple[int, int]] = []
    import_bundle(options, lambda text, done, total: seen.append((done, total)) if total else None)
    done = [entry[0] for entry in seen]
    assert done == sorted(done) and seen[-1][0] == seen[-1][1]


def test_the_command_line(
    options: ImportOptions, images: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = dataclasses.replace(images.spec, controls=(), image_encoder=False, elevest=None)
    monkeypatch.setitem(BACKBONES, "sd15", spec)
    command = ["import", "--backbone", "sd15", "--control", "depth", "canny", options.source, str(options.out)]
    assert main([*command, "--base", options.base, "--precision", "bf16"]) == 0
    assert "tiny_sd15" in capsys.readouterr().out
    bundle = open_bundle(options.out)
    assert bundle.spec.controls == ("depth", "canny")
    assert "elevest" not in bundle.lineage["networks"]

    assert main(["models", str(options.out.parent)]) == 0
    listed = capsys.readouterr().out
    assert "tiny_sd15" in listed and "bf16" in listed and "depth" in listed

    assert main([*command, "--base", str(options.out)]) == 1  # no base model there
    assert "has no model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tag", "gsvea=mine"], "'gsvea': must be one of denoiser"),
        (["--tag", "gsvae"], "must be NETWORK=VALUE"),
        (["--iteration", "gsvae=new"], "must be NETWORK=NUMBER"),
        (["--control", "pose"], "invalid choice: 'pose'"),
    ],
)
def test_options_that_do_not_parse(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["import", "--backbone", "sd15", "source", "out", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "sd15", "--image", "--control", "depth"], "ControlNets are for UNets without a condition view"),
        (["--backbone", "sd15", "--no-t5"], "--no-t5: must be given for one of sd3, sd35, not for sd15"),
        (["--backbone", "sdxl"], "no checkpoint was published; name the folder that holds one with --tag denoiser=TAG"),
    ],
)
def test_conditions_that_exclude_each_other(
    arguments: list[str], message: str, options: ImportOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", *arguments, "--base", options.base, options.source, str(options.out)]) == 1
    assert message in capsys.readouterr().err


def test_default_tags_are_those_of_the_layout(images: Bundle) -> None:
    assert default_tags("sd15") == TAGS
    assert default_tags("sd35_image")["denoiser"] == "gsdiff_gobj83k_sd35m_image__render"
    assert default_tags("pixart_sigma")["gsvae"] == "gsvae_gobj265k_sdxl_fp16"
    assert "denoiser" not in default_tags("sdxl")
    assert iteration_folder(Path(), "gsvae").as_posix() == "gsvae_gobj265k_sd/checkpoints/013020"
