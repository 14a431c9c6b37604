"""The served repository: complete, choice recorded, written once, and never half."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from diffsplat_client.contract import CONTRACT_VERSION, ENSEMBLE, ENSEMBLES, MODELS, RECONSTRUCT, RECONSTRUCTION
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from diffsplat.bundle import Bundle
from diffsplat.export_record import RECORD, Candidate, ExportRecord
from diffsplat.integrity import BundleError, describe_file, write_sealed
from diffsplat.runtime import load_graph
from diffsplat.stages.decode import DecodeStage
from diffsplat.stages.denoise import DenoiseStage
from diffsplat.stages.encode import EncodeStage
from diffsplat.stages.package import PackageStage
from diffsplat.stages.rasterize import RasterizeStage
from diffsplat.stages.reconstruct import ReconstructStage
from export import build, candidates, repository
from export.__main__ import main
from export.common import VERSION, BackendChoice, ExportError
from export.repository import ROOT, TEMPLATES, export_repository
from export.timing import choose

GRAPHS = {
    "encode": ["text_encoder"],
    "denoise": ["denoiser_context", "denoiser"],
    "decode": ["decoder"],
    "reconstruct": ["gsrecon"],
}


def fingerprint(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of everything below: tells whether anything was written."""
    stats = {str(path.relative_to(folder)): path.stat() for path in sorted(folder.rglob("*"))}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


@pytest.fixture
def copied(exported_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_repository, tmp_path / "repository"))


LOADERS = {
    "encode": EncodeStage.load,
    "denoise": DenoiseStage.load,
    "decode": DecodeStage.load,
    "rasterize": RasterizeStage.load,
    "package": PackageStage.load,
    "reconstruct": ReconstructStage.load,
}


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        *((stage, file) for stage in LOADERS for file in ("export.json", "model.py")),
        ("encode", "tokenizer.json"),
        ("encode", "weights"),
        ("denoise", "weights"),
        ("decode", "weights"),
        ("reconstruct", "weights"),
    ],
)
def test_an_edited_file_of_a_served_repository_is_refused_by_name(copied: Path, stage: str, file: str) -> None:
    """Every edit keeps the file valid, so that only a hash can find it."""
    folder = copied / stage / VERSION
    if file == "export.json":
        path = folder / file
        record = json.loads(path.read_text())
        record["spec"]["gsvae"]["scaling_factor"] *= 3
        path.write_text(json.dumps(record, indent=2) + "\n")
    elif file == "tokenizer.json":
        path = folder / file
        path.write_text(path.read_text().replace("red", "der"))
    elif file == "model.py":
        path = folder / file
        path.write_text(path.read_text() + "# a comment\n")
    else:
        path = folder / ExportRecord.read(folder).graphs[GRAPHS[stage][-1]].file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(BundleError, match=f"^{re.escape(str(path))}: "):
        LOADERS[stage](folder)


@pytest.mark.parametrize("stage", LOADERS)
def test_settings_of_the_deployment_may_be_edited(copied: Path, stage: str) -> None:
    config = copied / stage / "config.pbtxt"
    config.write_text(config.read_text() + "# two more instances\n")
    assert LOADERS[stage](copied / stage / VERSION)


def test_an_export_of_older_code_is_named(copied: Path) -> None:
    path = copied / "decode" / VERSION / RECORD
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(record))
    with pytest.raises(BundleError, match=f"^{re.escape(str(path))}: written by an older version .* export again"):
        ExportRecord.read(path.parent)


@pytest.fixture
def damaged_bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    root = Path(shutil.copytree(tiny_bundle.root, tmp_path / "damaged"))
    path = root / "gsvae.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    return root


def test_every_stage_is_there_and_tells_what_it_serves(exported_repository: Path, tiny_bundle: Bundle) -> None:
    for stage in MODELS:
        folder = exported_repository / stage
        template = (TEMPLATES / stage / "config.pbtxt").read_text()
        config = (folder / "config.pbtxt").read_text()
        assert config.startswith(template.replace("model_version: -1", f"model_version: {VERSION}"))
        parsed = text_format.Parse(config, model_config_pb2.ModelConfig())
        if stage not in ENSEMBLES:
            assert list(parsed.version_policy.specific.versions) == [int(VERSION)]
        if stage == ENSEMBLE:  # says in parameters that a client can read what is served
            parameters = {key: value.string_value for key, value in parsed.parameters.items()}
            assert parameters["contract_version"] == str(CONTRACT_VERSION)
            assert (parameters["bundle"], parameters["bundle_digest"]) == ("tiny", tiny_bundle.digest)
            assert [entry.split()[0] for entry in parameters["graphs"].split(", ")] == sum(GRAPHS.values(), [])
            assert all(entry.endswith(" cpu fp32") for entry in parameters["graphs"].split(", "))
            assert parameters["reconstruction"] == "4 views of 32 x 32 pixels: images, normals, coords"
            assert parameters["version"] == VERSION
        record = ExportRecord.read(folder / VERSION)
        assert record.spec == tiny_bundle.spec and record.digest == tiny_bundle.digest
        assert (record.bundle, record.contract_version) == ("tiny", CONTRACT_VERSION)
        assert list(record.graphs) == GRAPHS.get(stage, [])
        if stage not in ENSEMBLES:
            model = f"{stage}/{VERSION}/model.py"
            assert (exported_repository / model).read_bytes() == (TEMPLATES / model).read_bytes()
    tokenizer = exported_repository / "encode" / VERSION / "tokenizer.json"
    assert tokenizer.read_bytes() == tiny_bundle.tokenizer_paths[0].read_bytes()


def test_a_bundle_without_gsrecon_serves_no_reconstructions(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """And says so: the parameter by which clients know is missing."""
    root = Path(shutil.copytree(tiny_bundle.root, tmp_path / "bundle"))
    (root / "gsrecon.safetensors").unlink()
    manifest = json.loads((root / "bundle.json").read_text())
    del manifest["files"]["gsrecon.safetensors"]
    write_sealed(root / "bundle.json", manifest)
    result = export_repository(root, tmp_path / "repository", "torch")
    assert "gsrecon" not in result.graphs and "decoder" in result.graphs
    folders = {path.name for path in result.folder.iterdir() if path.is_dir()}
    assert folders == set(MODELS) - {RECONSTRUCT, RECONSTRUCTION}
    assert "reconstruction" not in (result.folder / ENSEMBLE / "config.pbtxt").read_text().split("# written by")[1]
    assert not export_repository(root, tmp_path / "repository", "torch").changed


def test_the_faster_back_end_is_chosen_and_recorded(exported_repository: Path) -> None:
    for stage, names in GRAPHS.items():
        for name in names:
            graph = ExportRecord.read(exported_repository / stage / VERSION).graphs[name]
            served = [each for each in graph.candidates if not each.refused]
            assert {each.backend for each in served} >= {"onnxruntime", "torch"}
            assert graph.chosen == choose(served)
            for each in served:
                assert each.ms is not None and each.megabytes is not None
                assert each.error is None if each.backend == "torch" else 0 <= each.error <= 1e-4
                assert (each.device, each.precision) == ("cpu", "fp32")
            loaded = load_graph(exported_repository / stage / VERSION, name, threads=1)
            assert (loaded.backend, loaded.device.type, loaded.precision) == (graph.backend, "cpu", "fp32")
            if graph.backend in ("onnxruntime", "torch"):
                assert graph.file.endswith(".onnx" if graph.backend == "onnxruntime" else ".safetensors")
            for file, expected in graph.files.items():
                assert describe_file(exported_repository / stage / VERSION / file) == expected


@pytest.mark.parametrize(
    ("onnx_ms", "torch_ms", "choice"), [(1, 2, "onnxruntime"), (2, 1, "torch"), (1, 0.95, "onnxruntime")]
)
def test_torch_is_chosen_when_clearly_faster(onnx_ms: float, torch_ms: float, choice: str) -> None:
    both = [Candidate("torch", "cpu", "fp32", ms=torch_ms), Candidate("onnxruntime", "cpu", "fp32", ms=onnx_ms)]
    assert choose(both).backend == choice


@pytest.mark.parametrize(("half_ms", "choice"), [(0.95, "fp32"), (0.5, "bf16")])
def test_half_precision_must_be_clearly_faster(half_ms: float, choice: str) -> None:
    both = [Candidate("torch", "cuda", "bf16", ms=half_ms), Candidate("torch", "cuda", "fp32", ms=1.0)]
    assert choose(both).precision == choice


def test_only_what_is_served_is_written(exported_repository: Path) -> None:
    listed = json.loads((exported_repository / RECORD).read_text())["files"]
    files = [path for path in exported_repository.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    found = {str(path.relative_to(exported_repository)) for path in files}
    assert found == {*listed, RECORD, f"{ENSEMBLE}/{VERSION}/service/{RECORD}"}
    for stage, names in GRAPHS.items():
        graphs = ExportRecord.read(exported_repository / stage / VERSION).graphs
        weights = {file for name in names for file in graphs[name].files}
        folder = exported_repository / stage / VERSION
        others = {RECORD, "model.py", "tokenizer.json", "__pycache__"}
        assert {path.name for path in folder.iterdir()} - others == weights


def test_a_second_export_does_nothing(copied: Path, tiny_bundle: Bundle) -> None:
    before = fingerprint(copied)
    result = export_repository(tiny_bundle.root, copied)
    assert not result.changed and list(result.graphs) == [name for names in GRAPHS.values() for name in names]
    assert fingerprint(copied) == before


@pytest.mark.parametrize("damage", ["delete", "change", "record"])
def test_a_damaged_export_is_made_again(copied: Path, tiny_bundle: Bundle, damage: str) -> None:
    victim = copied / "package" / VERSION / "model.py"
    original = victim.read_bytes()
    if damage == "delete":
        victim.unlink()
    elif damage == "change":
        victim.write_bytes(original + b"#")
    else:
        (copied / RECORD).write_text("{")
    assert export_repository(tiny_bundle.root, copied, "torch").changed
    assert victim.read_bytes() == original


def test_other_options_templates_or_weights_export_again(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle.root, tmp_path / "bundle"))
    templates = Path(shutil.copytree(TEMPLATES, tmp_path / "templates"))
    out = tmp_path / "out"

    def changed(backend: BackendChoice = "torch") -> bool:
        return export_repository(bundle, out, backend, templates=templates).changed

    assert changed() and not changed()
    assert changed("onnxruntime") and not changed("onnxruntime")
    assert changed() and not changed()
    config = templates / "encode" / "config.pbtxt"
    config.write_text(config.read_text() + "# a comment\n")
    assert changed() and not changed()
    tokenizer = bundle / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["tokenizer.json"] = describe_file(tokenizer)
    write_sealed(bundle / "bundle.json", manifest)
    assert changed() and not changed()
    monkeypatch.setattr(repository, "_PACKAGES", ("torch",))
    assert changed() and not changed()
    assert export_repository(bundle, out, "torch", force=True, templates=templates).changed


@pytest.mark.parametrize(
    ("module", "moment", "backend"),
    [
        (candidates, "write_onnx", "auto"),
        (candidates, "Reference", "auto"),
        (candidates, "median_ms", "auto"),
        (build, "choose", "auto"),
        (repository, "_write_records", "torch"),
        (repository, "replace_folder", "torch"),
    ],
)
@pytest.mark.parametrize("was_there", [False, True])
def test_an_interrupted_export_leaves_nothing_behind(
    tiny_bundle: Bundle,
    exported_repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    moment: str,
    backend: BackendChoice,
    was_there: bool,
) -> None:
    out = tmp_path / "repository"
    if was_there:
        shutil.copytree(exported_repository, out)
    before = fingerprint(tmp_path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_repository(tiny_bundle.root, out, backend, force=True)
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_to_the_command_leaves_nothing_behind(
    tiny_bundle: Bundle, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out" / "repository"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would its children
    program = (
        "import signal, sys\n"
        "from export import candidates\n"
        "from export.__main__ import main\n"
        "def stand_still(*_):\n"
        "    print('in the middle', flush=True)\n"
        "    signal.pause()\n"
        "candidates.median_ms = stand_still\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, str(tiny_bundle.root), "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert "in the middle\n" in iter(process.stdout.readline, "")
        assert list(tmp_path.glob("out/.repository-*/repository/*"))  # the staging folder is being filled
        process.send_signal(number)
        assert process.wait() == code
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_of_the_user_is_never_replaced(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(BundleError, match="refusing to replace"):
        export_repository(tiny_bundle.root, tmp_path, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_missing_template_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    templates = Path(shutil.copytree(TEMPLATES, tmp_path / "templates"))
    (templates / "decode" / VERSION / "model.py").unlink()
    with pytest.raises(ExportError, match="decode/1/model.py: template missing"):
        export_repository(tiny_bundle.root, tmp_path / "out", templates=templates)
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_is_refused_in_one_line(
    damaged_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, absent = tmp_path / "out", tmp_path / "absent"
    for bundle, named in ((damaged_bundle, damaged_bundle / "gsvae.safetensors"), (absent, absent / "bundle.json")):
        assert main([str(bundle), "--out", str(out)]) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(f"error: {re.escape(str(named))}: .*\n", said)
    assert not out.exists()


def test_the_command_prints_what_it_chose(
    tiny_bundle: Bundle, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "COLUMNS", "140")
    assert main([str(tiny_bundle.root), "--out", str(copied)]) == 0
    printed = capsys.readouterr().out
    for name in (name for names in GRAPHS.values() for name in names):
        assert re.search(rf"{name}\b.*chosen.*cpu.*fp32.*\d\.\d\d.*\d\.\d\d", printed)
    for backend in ("onnxruntime", "torch"):
        assert len(re.findall(rf"\b{backend}\b", printed)) == sum(map(len, GRAPHS.values()))
    assert f"{copied}: up to date" in printed
