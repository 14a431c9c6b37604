"""Networks larger than one file: split in the usual layout, read back exactly, refused when shards disagree."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import load_torch_model
from safetensors.torch import load_file, save_file
from torch import nn

from diffsplat.bundle import MANIFEST, Bundle, open_bundle, write_bundle
from diffsplat.export_record import ExportRecord
from diffsplat.integrity import BundleError, describe_file, write_sealed
from diffsplat.networks import bundle_network, network_builders
from diffsplat.runtime import bundle_graph, load_graph
from diffsplat.weights import load_weights, weight_files, write_weights
from export.common import VERSION
from export.graphs import graph_specs
from export.repository import export_repository

LIMIT = 100_000  # splits the tiny denoiser in three and the tiny autoencoder in two; the others stay whole
INDEX = "denoiser.safetensors.index.json"
SHARDS = [f"denoiser-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def sharded_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny_bundle` in smaller files. Read only."""
    root = tmp_path_factory.mktemp("sharded") / "tiny"
    networks = {name: bundle_network(tiny_bundle, name) for name in network_builders(tiny_bundle.spec)}
    tokenizer = [path.read_text() for path in tiny_bundle.tokenizer_paths]
    return write_bundle(root, tiny_bundle.spec, networks, tokenizer, {}, max_file_bytes=LIMIT)


@pytest.fixture
def copied(sharded_bundle: Bundle, tmp_path: Path) -> Path:
    """A split bundle that a test may damage."""
    return Path(shutil.copytree(sharded_bundle.root, tmp_path / "copied"))


def reseal(root: Path) -> None:
    """List what is there now: damage that no checksum shows."""
    manifest = json.loads((root / MANIFEST).read_text())
    files = {path.name: describe_file(path) for path in sorted(root.iterdir()) if path.name != MANIFEST}
    write_sealed(root / MANIFEST, {**manifest, "files": files})


def edit_shard(path: Path, add: dict[str, torch.Tensor] | None = None, remove: str | None = None) -> None:
    state = {key: tensor.clone() for key, tensor in load_file(path).items() if key != remove}
    path.unlink()
    save_file({**state, **(add or {})}, path)


def edit_index(root: Path, **changes: str | None) -> None:
    index = json.loads((root / INDEX).read_text())
    weight_map = {**index["weight_map"], **{key.replace("__", "."): name for key, name in changes.items()}}
    index["weight_map"] = {key: name for key, name in weight_map.items() if name is not None}
    (root / INDEX).write_text(json.dumps(index))


def test_split_weights_come_back_exactly(sharded_bundle: Bundle, tiny_bundle: Bundle) -> None:
    for name in network_builders(tiny_bundle.spec):
        whole, split = bundle_network(tiny_bundle, name), bundle_network(sharded_bundle, name)
        assert not split.training and not any(parameter.requires_grad for parameter in split.parameters())
        assert {parameter.dtype for parameter in split.parameters()} == {torch.float32}
        expected = whole.state_dict()
        assert split.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in split.state_dict().items())


def test_only_what_is_too_large_is_split_and_every_file_is_listed(sharded_bundle: Bundle, tiny_bundle: Bundle) -> None:
    found = {path.name: describe_file(path) for path in sharded_bundle.root.iterdir() if path.name != MANIFEST}
    assert found == sharded_bundle.files
    assert max(file["bytes"] for file in found.values()) <= LIMIT
    for name in ("text_encoder", "gsrecon"):
        assert found[f"{name}.safetensors"] == tiny_bundle.files[f"{name}.safetensors"]
    assert weight_files(sharded_bundle.root, found, "denoiser") == (INDEX, *SHARDS)
    assert weight_files(sharded_bundle.root, found, "gsrecon") == ("gsrecon.safetensors",)
    assert sum("gsvae" in name for name in found) == 3


def test_the_layout_is_the_usual_one(sharded_bundle: Bundle, tiny_bundle: Bundle) -> None:
    index = json.loads((sharded_bundle.root / INDEX).read_text())
    stored = {name: load_file(sharded_bundle.root / name) for name in SHARDS}
    assert index["weight_map"] == {key: name for name, state in stored.items() for key in state}
    assert index["metadata"] == {"total_size": sum(t.nbytes for state in stored.values() for t in state.values())}
    module = network_builders(tiny_bundle.spec)["denoiser"]()  # and the field's own reader takes it
    load_torch_model(module, sharded_bundle.root, strict=True, filename_pattern="denoiser{suffix}.safetensors")
    expected = bundle_network(tiny_bundle, "denoiser").state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in module.state_dict().items())


def test_what_fits_into_one_file_is_written_as_before(pico_bundle: Bundle, tmp_path: Path) -> None:
    networks = {name: bundle_network(pico_bundle, name) for name in network_builders(pico_bundle.spec)}
    again = write_bundle(
        tmp_path / "pico", pico_bundle.spec, networks, [pico_bundle.tokenizer_paths[0].read_text()], {}
    )
    assert again.files == pico_bundle.files and again.digest == pico_bundle.digest


@pytest.mark.parametrize("limit", [1, 500, 3_000, 12_000, 23_500, 30_000])
def test_no_file_is_larger_than_the_limit_unless_a_tensor_is(tmp_path: Path, limit: int) -> None:
    widths = [10, 100, 30, 200, 5, 40]
    module = nn.Sequential(*(nn.Linear(*sizes) for sizes in zip(widths[:-1], widths[1:], strict=True)))
    write_weights(tmp_path, "net", module, torch.float16, limit)
    listed = [path.name for path in tmp_path.iterdir()]
    for path in tmp_path.glob("*.safetensors"):
        assert path.stat().st_size <= limit or len(load_file(path)) == 1
    assert (len(listed) == 1) == (limit == 30_000)  # 23,150 bytes of tensors and a header
    back = nn.Sequential(*(nn.Linear(*sizes) for sizes in zip(widths[:-1], widths[1:], strict=True)))
    load_weights(back, tmp_path, listed, "net")
    assert all(torch.equal(a.half(), b) for a, b in zip(module.parameters(), back.parameters(), strict=True))


def test_a_limit_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_file_bytes: 0 given, must be at least 1"):
        write_weights(tmp_path, "net", nn.Linear(1, 1), torch.float16, 0)


@pytest.mark.parametrize("name", [SHARDS[1], INDEX])
@pytest.mark.parametrize("damage", ["missing", "truncated", "tampered"])
def test_a_damaged_shard_is_refused_by_name(copied: Path, name: str, damage: str) -> None:
    path = copied / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-10])
    elif damage == "tampered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = {"missing": "missing", "truncated": "bytes", "tampered": "sha256"}[damage]
    with pytest.raises(BundleError, match=f"^{re.escape(str(path))}: .*{said}"):
        open_bundle(copied)


FIRST_KEY = "conv_in.bias"  # lies in the first shard


@pytest.mark.parametrize(
    ("damage", "named", "said"),
    [
        (lambda root: (root / SHARDS[1]).unlink(), SHARDS[1], "named by .*index.json, but not a listed shard"),
        (lambda root: (root / INDEX).unlink(), INDEX, "not listed, but denoiser-00001"),
        (lambda root: (root / INDEX).write_text('{"weight_map": ['), INDEX, "not a valid index"),
        (lambda root: (root / INDEX).write_text('{"weight_map": []}'), INDEX, "not a valid index"),
        (lambda root: edit_index(root, conv_in__bias="../secret"), "../secret", "not a listed shard"),
        (
            lambda root: shutil.copy(root / SHARDS[0], root / "denoiser-00004-of-00003.safetensors"),
            "denoiser-00004-of-00003.safetensors",
            "places nothing in it",
        ),
        (
            lambda root: shutil.copy(root / SHARDS[0], root / "denoiser.safetensors"),
            "denoiser.safetensors",
            "lies beside shards",
        ),
        (
            lambda root: (root / SHARDS[2]).write_bytes((root / SHARDS[2]).read_bytes()[:-100]),
            SHARDS[2],
            "not readable",
        ),
        (
            lambda root: edit_shard(root / SHARDS[2], add={FIRST_KEY: torch.zeros(8)}),
            SHARDS[2],
            f"holds {FIRST_KEY}, and so does {SHARDS[0]}",
        ),
        (lambda root: edit_index(root, conv_in__bias=None), SHARDS[0], f"holds {FIRST_KEY}, which .* does not know"),
        (lambda root: edit_shard(root / SHARDS[0], remove=FIRST_KEY), SHARDS[0], f"does not hold {FIRST_KEY}"),
        (lambda root: edit_index(root, conv_in__bias=SHARDS[1]), SHARDS[1], f"does not hold {FIRST_KEY}"),
    ],
    ids=[
        "shard missing", "index missing", "index not JSON", "index not a map", "index points outside", "stray shard",
        "whole file too", "shard truncated", "key twice", "key not in index", "key not in shard", "key elsewhere",
    ],
)  # fmt: skip
def test_shards_and_index_that_disagree_are_refused_by_name(
    copied: Path, damage: Callable[[Path], object], named: str, said: str
) -> None:
    damage(copied)
    reseal(copied)
    with pytest.raises(BundleError, match=f"^{re.escape(str(copied / named))}: .*{said}"):
        bundle_network(open_bundle(copied), "denoiser")


def test_everything_that_does_not_fit_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    stored = nn.ModuleDict({"a": nn.Linear(4, 100), "b": nn.Linear(4, 3), "c": nn.Linear(2, 2)})
    write_weights(tmp_path, "net", stored, torch.float16, max_file_bytes=700)
    module = nn.ModuleDict({"a": nn.Linear(4, 100), "b": nn.Linear(4, 5), "d": nn.Linear(2, 2)})
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    listed = [path.name for path in tmp_path.iterdir()]
    with pytest.raises(BundleError) as refusal:
        load_weights(module, tmp_path, listed, "net")
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / 'net.safetensors.index.json'}: does not fit the spec: ")
    for said in (r"b\.weight in \S+ is \[3, 4\], not \[5, 4\]", r"b\.bias in \S+ is \[3\], not \[5\]"):
        assert re.search(said, message)
    for said in (r"unexpected c\.weight in \S+", r"unexpected c\.bias in \S+", "missing d.weight", "missing d.bias"):
        assert re.search(said, message)
    assert "a.weight" not in message and "a.bias" not in message
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_a_split_bundle_is_exported_and_served(sharded_bundle: Bundle, tmp_path: Path) -> None:
    exported = export_repository(sharded_bundle.root, tmp_path / "out", "torch").folder
    assert not export_repository(sharded_bundle.root, exported, "torch").changed
    folder = exported / "denoise" / VERSION
    files = ExportRecord.read(folder).graphs["denoiser"].files
    assert files == {name: sharded_bundle.files[name] for name in (INDEX, *SHARDS)}
    for graph in graph_specs(sharded_bundle.spec):
        inputs = graph.sample_inputs(graph.serving_sizes)
        served = load_graph(exported / graph.stage / VERSION, graph.name, threads=1)
        assert torch.equal(served(*inputs), bundle_graph(sharded_bundle, graph.name)(*inputs))
    (folder / SHARDS[0]).unlink()
    with pytest.raises(BundleError, match=f"^{re.escape(str(folder / SHARDS[0]))}: missing"):
        load_graph(folder, "denoiser", threads=1)
