"""Text embeddings: every family's equal those of serving, and whatever does not belong together is refused by name."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from diffsplat.backbones import BACKBONES, BackboneSpec
from diffsplat.bundle import Bundle
from diffsplat.stages.encode import EncodeStage
from diffsplat.text.features import TextFeatures
from tests.families import write_family_bundle
from tests.official import TAGS, unpublished_tags, write_official
from training.__main__ import main
from training.config.common import Data
from training.config.encode_text import EncodeTextConfig
from training.data.captions_csv import read_captions
from training.data.source import open_source
from training.encode_text import run_encode_text
from training.presets.encode_text import ENCODE_TEXT
from training.text_store import NULL, TextStore, shard_name

CAPTIONS = {
    "a1": "a small red cube",
    "b2": "two blue spheres on a large green cone, " + "and a cube" * 9,  # longer than the encoders read
    "c3": "Two blue Spheres",
    "d4": "a cone",
    "e5": "a small blue cone on two red cubes",
}
FAMILIES = [config.backbone for config in ENCODE_TEXT.values() if config.backbone in BACKBONES]


@dataclasses.dataclass(frozen=True)
class Family:
    """A shrunken backbone in both layouts that `encode-text` reads."""

    spec: BackboneSpec
    bundle: Bundle
    base: Path  # official layout
    captions: Path

    def config(self, out: Path, **options: object) -> EncodeTextConfig:
        config = EncodeTextConfig(
            backbone=self.spec.name, encoders=self.base, captions=self.captions, out=out, batch_size=2,
            shard_objects=2, precision="fp32", threads=1,
        )  # fmt: skip
        return dataclasses.replace(config, **options)  # type: ignore[arg-type]


def make_family(name: str, folder: Path) -> Family:
    bundle = write_family_bundle(folder / "bundle", name)
    base = folder / "base"
    write_official_text(bundle, folder)
    captions = folder / "captions.csv"
    captions.write_text("".join(f'{uid},"{text}"\n' for uid, text in CAPTIONS.items()))
    return Family(bundle.spec, bundle, base, captions)


def write_official_text(bundle: Bundle, folder: Path) -> None:
    write_official(bundle, folder, tags={**TAGS, **unpublished_tags(bundle.spec.name.removeprefix("tiny_"))})


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Family]]:
    made = {name: make_family(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}
    with pytest.MonkeyPatch.context() as patch:
        for family in made.values():
            patch.setitem(BACKBONES, family.spec.name, family.spec)
        yield made


def served(family: Family) -> TextFeatures:
    """Every caption and the omitted negative prompt, by the stage that serves."""
    stage = EncodeStage.from_bundle(family.bundle)
    return stage.prompts.encode([*CAPTIONS.values(), None]).features


def close(stored: TextFeatures, expected: TextFeatures, tolerance: float) -> None:
    """Equal where tokens count, up to `tolerance` of the largest value; the same tokens count."""
    length = stored.mask.shape[1]
    assert torch.equal(stored.mask, expected.mask[:, :length]) and not expected.mask[:, length:].any()

    def compare(ours: Tensor, theirs: Tensor) -> None:
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        if theirs.numel():
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()

    compare(stored.embeddings[stored.mask], expected.embeddings[expected.mask])
    compare(stored.pooled, expected.pooled)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_those_of_serving(name: str, families: dict[str, Family], tmp_path: Path) -> None:
    family = families[name]
    expected = served(family)
    uids, dropped = [*CAPTIONS, "a1"], torch.tensor([False] * len(CAPTIONS) + [True])
    for stored, tolerance in (("fp32", 2e-6), ("bf16", 2**-8)):
        out = run_encode_text(family.config(tmp_path / stored, stored=stored))
        close(TextStore(out, family.spec.text).features(uids, dropped), expected, tolerance)
    from_bundle = run_encode_text(family.config(tmp_path / "bundle", stored="fp32", encoders=family.bundle.root))
    close(TextStore(from_bundle, family.bundle.spec.text).features(uids, dropped), expected, 2e-6)
    bf16 = run_encode_text(family.config(tmp_path / "weights", precision="bf16"))  # weights rounded too: a few layers
    close(TextStore(bf16, family.spec.text).features(uids, dropped), expected, 0.1)


def test_null_text_and_padding(families: dict[str, Family], tmp_path: Path) -> None:
    """SDXL's null text is zeros; PixArt's tokens are cut to their true number."""
    everything = torch.ones(1, dtype=torch.bool)
    sdxl = families["sdxl"]
    null = TextStore(run_encode_text(sdxl.config(tmp_path / "sdxl")), sdxl.spec.text).features(["a1"], everything)
    assert null.mask.all() and not null.embeddings.any() and not null.pooled.any()
    assert null.embeddings.shape[1:] == (sdxl.spec.text.tokens, sdxl.spec.text.width)
    pixart = families["pixart_sigma"]
    store = TextStore(run_encode_text(pixart.config(tmp_path / "pixart")), pixart.spec.text)
    lengths = [store.features([uid], ~everything).embeddings.shape[1] for uid in ("a1", "b2", "d4")]
    assert lengths == [5, 20, 3]  # words and the end token, up to the limit; not the 20 of padded text
    assert store.features(["a1"], everything).embeddings.shape[1] == 1  # the end token
    both = store.features(["a1", "d4"], torch.tensor([False, False]))
    assert both.mask.sum(dim=1).tolist() == [5, 3]


def test_stopped_runs_continue_and_damage_is_repaired(families: dict[str, Family], tmp_path: Path) -> None:
    family, out = families["sd15"], tmp_path / "text"
    out.mkdir()
    begun = out / ".text.json-1"
    begun.write_text("{")  # killed before anything was whole
    run_encode_text(family.config(out))
    begun.unlink()
    whole = {path: load(path.read_bytes()) for path in out.glob("*.safetensors")}
    assert {path.name for path in out.iterdir()} == {"text.json", NULL, *(shard_name(index, 3) for index in range(3))}
    lost, cut = out / shard_name(0, 3), out / shard_name(2, 3)
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"text-00000-of-00003\.safetensors: missing; run encode-text"):
        TextStore(out, family.spec.text)
    kept, half = out / shard_name(1, 3), out / f".{lost.name}-1"
    half.write_bytes(b"what a kill left of a shard")
    written = kept.stat().st_mtime_ns
    run_encode_text(family.config(out))
    assert kept.stat().st_mtime_ns == written and not half.exists()
    for path, tensors in whole.items():
        again = load(path.read_bytes())
        assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_captions_of_a_data_set(families: dict[str, Family], tmp_path: Path) -> None:
    """Every object of it, those held out too, under the ids that training asks for."""
    family = families["sd15"]
    data = Data(objects=3, validation_objects=2)
    out = run_encode_text(family.config(tmp_path / "text", captions=None, data=data))
    sources = [open_source(data, family.spec.geometry, validation) for validation in (False, True)]
    captions = {source.uid(i): source.caption(i, None) for source in sources for i in range(len(source))}
    store = TextStore(out, family.spec.text)
    assert len(store) == len(captions) == 5
    store.check(captions)
    with pytest.raises(ValueError, match="data.source = .?nowhere"):
        run_encode_text(family.config(tmp_path / "other", captions=None, data=Data(source="nowhere")))


def test_several_processes_share_a_store(families: dict[str, Family], tmp_path: Path) -> None:
    family, out = families["sd15"], tmp_path / "text"
    run_encode_text(family.config(out, shard=(2, 2)))
    assert {path.name for path in out.glob("text-0*")} == {shard_name(1, 3)}
    run_encode_text(family.config(out, shard=(1, 2)))
    assert len(TextStore(out, family.spec.text)) == len(CAPTIONS)


def test_what_does_not_belong_together_is_refused(families: dict[str, Family], tmp_path: Path) -> None:
    family, out = families["sd15"], tmp_path / "text"
    run_encode_text(family.config(out))
    store, kept = TextStore(out, family.spec.text), torch.zeros(1, dtype=torch.bool)
    store.check(CAPTIONS)
    with pytest.raises(ValueError, match="no text embedding of the object 'zz', only of 5 others"):
        store.features(["zz"], kept)
    with pytest.raises(ValueError, match="no text embedding of 1 of 2 objects, such as 'zz'"):
        store.check(["a1", "zz"])
    with pytest.raises(
        ValueError, match="1 of 1 objects had another caption when encoded: 'a1' had 'a small red cube'"
    ):
        store.check({"a1": "a large red cube"})
    with pytest.raises(ValueError, match=r"text\.json: embeddings of other text encoders .*: encoders differs"):
        TextStore(out, families["sd21"].spec.text)
    with pytest.raises(ValueError, match=r"stored_in = bf16, this run has fp32; choose another `out`"):
        run_encode_text(family.config(out, stored="fp32"))
    captions = tmp_path / "captions.csv"
    captions.write_text("a1,something else\nb2,x\nc3,x\nd4,x\ne5,x\n")
    with pytest.raises(ValueError, match=r"text-00000-of-00003.safetensors: holds embeddings of other captions"):
        run_encode_text(family.config(out, captions=captions))
    shard = out / shard_name(1, 3)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"text-00001-of-00003\.safetensors: truncated or no shard"):
        TextStore(out, family.spec.text)
    with pytest.raises(ValueError, match=r"text\.json: missing; .* is no folder of text embeddings"):
        TextStore(tmp_path, family.spec.text)


def test_other_weights_are_refused(families: dict[str, Family], tmp_path: Path) -> None:
    """Encoders of the same shape with other weights: their hashes differ."""
    family, out = families["sd15"], tmp_path / "text"
    run_encode_text(family.config(out))
    other = write_family_bundle(tmp_path / "bundle", "sd15", seed=1)
    write_official_text(other, tmp_path)
    with pytest.raises(ValueError, match=r"encoders\['text_encoder/model\.safetensors'\] = \w+, this run has \w+"):
        run_encode_text(family.config(out, encoders=tmp_path / "base"))


def test_sd35l_is_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode-text/sd35l"]) == 1
    assert "nobody published a DiffSplat network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no captions"),
        ("a1\n", "line 1: must be `uid,caption`, is 'a1'"),
        ("uid,caption\na1,a cube\na1,a cone\n", "line 3: the object 'a1' has another caption above"),
    ],
)
def test_captions_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_captions(path)


def test_every_backbone_has_a_preset() -> None:
    assert {config.backbone for config in ENCODE_TEXT.values()} == {
        *(name for name in BACKBONES if family_published(name)), "sd35l",
    }  # fmt: skip


def family_published(name: str) -> bool:
    return not name.endswith("_image") and not name.startswith("tiny") and name not in ("pico", "nano")
