"""The bundle format: what is written is read back, and nothing damaged is ever opened."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffsplat import bundle as bundle_module
from diffsplat import integrity, weights
from diffsplat.backbones import BACKBONES, BackboneSpec
from diffsplat.bundle import (
    MANIFEST,
    Bundle,
    open_bundle,
    replace_folder,
    upgrade_bundle,
    write_bundle,
)
from diffsplat.integrity import BundleError, describe_file, write_sealed
from diffsplat.networks import bundle_network, network_builders
from diffsplat.text.encoders import build_encoder


@pytest.fixture
def copied(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.root, tmp_path / "copied"))


def edit_manifest(root: Path, **changes: object) -> None:
    path = root / MANIFEST
    write_sealed(path, {**json.loads(path.read_text()), **changes})


@pytest.mark.parametrize("spec", BACKBONES.values(), ids=BACKBONES)
def test_every_spec_survives_json(spec: BackboneSpec) -> None:
    assert BackboneSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_networks_come_back_in_float32_and_frozen(tiny_bundle: Bundle) -> None:
    for name in network_builders(tiny_bundle.spec):
        stored = load_file(tiny_bundle.root / f"{name}.safetensors")
        network = bundle_network(tiny_bundle, name)
        state = network.state_dict()
        assert state.keys() == stored.keys()
        assert all(torch.equal(state[key], stored[key].float()) for key in stored if stored[key].is_floating_point())
        assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_full_precision_round_trip_is_exact(tiny_bundle: Bundle, tmp_path: Path) -> None:
    spec, tokenizer = tiny_bundle.spec, [path.read_text() for path in tiny_bundle.tokenizer_paths]
    network = build_encoder(spec.text.encoders[0])
    lineage = {"seed": 7}
    written = write_bundle(tmp_path / "full", spec, {"text_encoder": network}, tokenizer, lineage, torch.float32)
    opened = open_bundle(tmp_path / "full")
    assert opened == written and opened.spec == spec and opened.lineage == lineage
    assert [path.read_text() for path in opened.tokenizer_paths] == tokenizer
    for key, value in network.state_dict().items():
        assert torch.equal(bundle_network(opened, "text_encoder").state_dict()[key], value)


@pytest.mark.parametrize("name", ["denoiser.safetensors", "text_encoder.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "tampered"])
def test_a_damaged_file_is_refused_by_name(copied: Path, name: str, damage: str) -> None:
    path = copied / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "tampered":  # same length, one bit of it different
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = {"missing": "missing", "truncated": "bytes", "tampered": "sha256"}[damage]
    with pytest.raises(BundleError, match=f"{re.escape(str(path))}: .*{said}"):
        open_bundle(copied)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "missing"),
        ('{"format": "diffspl', "not readable as JSON"),
        ("[]", "type list instead of an object"),
        ('{"format": "something", "version": 1}', "format 'something'"),
        ('{"format": "diffsplat-bundle", "version": 3}', "version 3"),
        ('{"format": "diffsplat-bundle", "version": 1}', "older version .* `python -m export upgrade"),
        ('{"format": "diffsplat-bundle", "version": 2}', "does not match its own sha256"),
    ],
)
def test_a_damaged_manifest_is_refused_by_name(copied: Path, content: str | None, said: str) -> None:
    (copied / MANIFEST).unlink()
    if content is not None:
        (copied / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=f"{re.escape(str(copied / MANIFEST))}.*{said}"):
        open_bundle(copied)


def test_a_manifest_cannot_point_outside_its_folder(copied: Path) -> None:
    (copied.parent / "secret").write_text("x")
    edit_manifest(copied, files={"../secret": {"sha256": "0", "bytes": 1}})
    with pytest.raises(BundleError, match="must not contain a folder"):
        open_bundle(copied)


def test_an_unknown_field_of_the_spec_is_named(copied: Path, tiny_bundle: Bundle) -> None:
    edit_manifest(copied, spec={**tiny_bundle.spec.to_dict(), "colour": 1})
    with pytest.raises(BundleError, match="has no field colour"):
        open_bundle(copied)


def test_weights_that_do_not_fit_the_spec_are_refused(copied: Path) -> None:
    path = copied / "denoiser.safetensors"
    state = load_file(path)
    state.pop("conv_in.bias")
    save_file(state, path)
    manifest = json.loads((copied / MANIFEST).read_text())
    edit_manifest(copied, files={**manifest["files"], path.name: describe_file(path)})
    with pytest.raises(BundleError, match=f"{re.escape(str(path))}: does not fit the spec(.|\n)*conv_in.bias"):
        bundle_network(open_bundle(copied), "denoiser")


def test_a_network_that_is_not_there_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "empty", tiny_bundle.spec, {}, ["{}"], {})
    with pytest.raises(BundleError, match="has no network 'gsvae'"):
        bundle_network(bundle, "gsvae")


def test_the_digest_follows_content_and_nothing_else(tiny_bundle: Bundle, tmp_path: Path) -> None:
    spec, tokenizer = tiny_bundle.spec, [path.read_text() for path in tiny_bundle.tokenizer_paths]
    networks: dict[str, nn.Module] = {"denoiser": bundle_network(tiny_bundle, "denoiser")}

    def digest(name: str, spec: BackboneSpec = spec, tokenizer: list[str] = tokenizer, lineage: str = "a") -> str:
        return write_bundle(tmp_path / name, spec, networks, tokenizer, {"run": lineage}).digest

    first = digest("first")
    assert digest("moved") == first
    assert digest("lineage", lineage="b") == first
    assert digest("spec", spec=dataclasses.replace(spec, steps=spec.steps + 1)) != first
    assert digest("tokenizer", tokenizer=[tokenizer[0] + "\n"]) != first
    with torch.no_grad():
        next(networks["denoiser"].parameters()).view(-1)[0] += 1
    assert digest("weight") != first


def test_writing_replaces_a_bundle_and_nothing_else(tiny_bundle: Bundle, tmp_path: Path) -> None:
    precious = tmp_path / "documents"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    with pytest.raises(BundleError, match="refusing to replace"):
        write_bundle(precious, tiny_bundle.spec, {}, ["{}"], {})
    assert (precious / "letter.txt").read_text() == "dear"
    write_bundle(tmp_path / "twice", tiny_bundle.spec, {}, ["{}"], {"run": 1})
    assert write_bundle(tmp_path / "twice", tiny_bundle.spec, {}, ["{}"], {"run": 2}).lineage == {"run": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents", "twice"]


def test_interrupted_writing_leaves_the_old_bundle(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bundle"
    write_bundle(root, tiny_bundle.spec, {}, ["{}"], {"run": 1})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(root, tiny_bundle.spec, {"denoiser": nn.Linear(1, 1)}, ["{}"], {"run": 2})
    assert open_bundle(root).lineage == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("interrupted_rename", [1, 2])
def test_an_interrupted_replacement_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_rename: int
) -> None:
    staging, target = tmp_path / "staging", tmp_path / "target"
    for folder in (staging, target):
        folder.mkdir()
        (folder / "content").write_text(folder.name)
    rename, calls = Path.rename, []

    def interrupt(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == interrupted_rename:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(staging, target)
    assert (target / "content").read_text() == "target"


def edit_spec(root: Path) -> None:
    path = root / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["spec"]["gsvae"]["scaling_factor"] *= 3
    path.write_text(json.dumps(manifest, indent=2))


def edit_lineage(root: Path) -> None:
    path = root / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "lineage": {"seed": 1}}))


def remove_hash(root: Path) -> None:
    path = root / MANIFEST
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"})
    )


@pytest.mark.parametrize("edit", [edit_spec, edit_lineage, remove_hash])
def test_an_edited_manifest_is_refused_by_name(copied: Path, edit: Callable[[Path], None]) -> None:
    edit(copied)
    with pytest.raises(
        BundleError, match=f"^{re.escape(str(copied / MANIFEST))}: content does not match its own sha256"
    ):
        open_bundle(copied)


def test_white_space_and_the_order_of_fields_do_not_matter(copied: Path, tiny_bundle: Bundle) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(dict(reversed(manifest.items()))))
    assert open_bundle(copied).files == tiny_bundle.files


def test_a_bundle_of_version_1_is_upgraded_after_its_files_were_verified(copied: Path, tiny_bundle: Bundle) -> None:
    path = copied / MANIFEST
    old = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"} | {"version": 1}
    path.write_text(json.dumps(old))
    with pytest.raises(BundleError, match="older version .*`python -m export upgrade"):
        open_bundle(copied)
    weights_path = copied / "gsvae.safetensors"
    content = weights_path.read_bytes()
    weights_path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match="gsvae.safetensors: content does not match"):
        upgrade_bundle(copied)
    weights_path.write_bytes(content)
    assert upgrade_bundle(copied) and not upgrade_bundle(copied)
    upgraded = open_bundle(copied)
    assert (upgraded.digest, upgraded.lineage) == (tiny_bundle.digest, tiny_bundle.lineage)


def test_writing_hashes_every_file_once(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def count(path: Path) -> dict[str, object]:
        hashed.append(path.name)
        return describe_file(path)

    monkeypatch.setattr(bundle_module, "describe_file", count)
    monkeypatch.setattr(integrity, "describe_file", count)
    networks = {"denoiser": nn.Linear(1, 1), "gsvae": nn.Linear(1, 1)}
    write_bundle(tmp_path / "once", tiny_bundle.spec, networks, ["{}"], {})
    assert sorted(hashed) == ["denoiser.safetensors", "gsvae.safetensors", "tokenizer.json"]
