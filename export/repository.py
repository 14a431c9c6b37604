"""Assemble the served repository: templates of `model_repository/` + the graphs of a bundle.

    DIR/export.json                         origin of the export, and the hash of every file below
    DIR/diffsplat/  config.pbtxt  1/        the ensemble; 1/service/ keeps what version 1 needs to be served again
    DIR/encode/     config.pbtxt  1/        model.py export.json text_encoder.* tokenizer.json
    DIR/denoise/    config.pbtxt  1/        model.py export.json denoiser_context.* denoiser.*
    DIR/decode/     config.pbtxt  1/        model.py export.json decoder.*
    DIR/rasterize/  DIR/package/            model.py export.json
    DIR/diffsplat_reconstruct/  DIR/reconstruct/   the same for views, where the bundle has a GSRecon; gsrecon.*

The export is built beside DIR and moved there when complete. Repeating it with the same bundle, code and options does
nothing.
"""

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffsplat_client.contract import CONTRACT_VERSION, ENSEMBLE, ENSEMBLES, MODELS, RECONSTRUCT

from diffsplat.backends import BACKENDS, unavailable
from diffsplat.backends.devices import check_precision, device_type, inspect
from diffsplat.bundle import Bundle, check_replaceable, open_bundle, replace_folder
from diffsplat.export_record import RECORD, ExportRecord, GraphRecord
from diffsplat.integrity import BundleError, check_seal, describe_file, read_json, verify_file, write_sealed
from diffsplat.runtime import available_cores
from diffsplat.serving.repository.versions import CONFIG, keep_service, policy_of, served_version, service_folder
from diffsplat.splats.gsrecon import gsrecon_config
from export.common import (
    VERSION,
    BackendChoice,
    BuildOptions,
    ExportError,
    PrecisionChoice,
    ProgressCallback,
    served_stages,
)
from export.sources import ROOT, running_code_hash

TEMPLATES = ROOT / "model_repository"

# a change of version exports again, as does a change of our own code (see `sources`)
_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxruntime")


@dataclass(frozen=True)
class RepositoryExport:
    """Result of `export_repository`."""

    folder: Path
    changed: bool  # False: it was up to date
    graphs: dict[str, GraphRecord]


def export_repository(
    bundle_root: str | Path,
    out: str | Path,
    backend: BackendChoice = "auto",
    device: str = "cpu",
    precision: PrecisionChoice = "fp32",
    force: bool = False,
    progress: ProgressCallback = lambda text, done, total: None,
    templates: Path = TEMPLATES,
    version: str = VERSION,
) -> RepositoryExport:
    """Export a bundle into a Triton model repository.

    Args:
        bundle_root: folder of the bundle; every file is verified.
        out: folder to write. An older export is replaced, any other content is refused.
        backend: this and the next two are those of `BuildOptions`; the fastest candidate serves a graph.
        device: what the repository is built for.
        precision: what graphs compute in.
        force: export even if `out` is up to date.
        progress: called at every step.
        templates: folder of the templates.
        version: the number of its only version.

    Raises:
        BundleError: the bundle is missing, truncated or edited, or `out` exists and is not an export.
        DeviceError: the device does not exist, or lacks the precision.
        ExportError: a template is missing, or no back end can serve a graph (or not the one that was named).
    """
    options = BuildOptions(backend, device, precision)
    facts = inspect(device)
    if precision != "auto":
        check_precision(facts, precision)
    bundle = open_bundle(bundle_root)
    for path in bundle.tokenizer_paths:
        if path.name not in bundle.files:
            raise BundleError(f"{path}: not in the bundle")
    out = Path(out).absolute()
    check_replaceable(out, RECORD)
    _check_templates(templates)
    made_from = _made_from(bundle, options, templates)
    if not force and _is_up_to_date(out, made_from):
        return RepositoryExport(out, False, _read_graphs(out))
    from export.build import export_graphs  # heavy: see there

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        staging = Path(temporary) / out.name
        _copy_templates(templates, staging, version, served_stages(bundle))
        graphs = export_graphs(bundle, staging, version, options, progress)
        for path in bundle.tokenizer_paths:
            shutil.copyfile(path, staging / "encode" / version / path.name)
        _write_records(bundle, staging, version, options, graphs)
        _describe_service(bundle, staging, version, graphs)
        keep_service(staging, version)
        files = {str(path.relative_to(staging)): describe_file(path) for path in sorted(_files_below(staging))}
        write_sealed(staging / RECORD, {"made_from": made_from, "files": files})
        shutil.copyfile(staging / RECORD, service_folder(staging, version) / RECORD)
        replace_folder(staging, out)
    return RepositoryExport(out, True, _read_graphs(out))


def _write_records(
    bundle: Bundle, staging: Path, version: str, options: BuildOptions, graphs: dict[str, dict[str, GraphRecord]]
) -> None:
    device = device_type(options.device)
    for stage, records in graphs.items():
        folder = staging / stage / version
        of_graphs = {name for graph in records.values() for name in graph.files}
        others = {path.name: describe_file(path) for path in sorted(folder.iterdir()) if path.name not in of_graphs}
        record = ExportRecord(bundle.spec.name, bundle.digest, bundle.spec, CONTRACT_VERSION, device, records, others)
        record.write(folder)


def _describe_service(bundle: Bundle, staging: Path, version: str, graphs: dict[str, dict[str, GraphRecord]]) -> None:
    """Bind every model to this version, and append to the parameters of the ensemble what clients want to know.

    Those are the version, the bundle, and how each graph is run.
    """
    served = [(name, graph) for records in graphs.values() for name, graph in records.items()]
    parameters = {
        "version": version,
        "bundle": bundle.spec.name,
        "bundle_digest": bundle.digest,
        "graphs": ", ".join(f"{name} {graph.backend} {graph.device} {graph.precision}" for name, graph in served),
    }
    if RECONSTRUCT in graphs:
        geometry, maps = bundle.spec.geometry, gsrecon_config(bundle.spec).input_maps
        size = f"{geometry.grid_size} x {geometry.grid_size}"
        parameters["reconstruction"] = f"{geometry.views} views of {size} pixels: {', '.join(maps)}"
    for stage in graphs:
        path = staging / stage / CONFIG
        lines = [path.read_text().replace("model_version: -1", f"model_version: {version}"), "# written by export"]
        if stage not in ENSEMBLES:  # an ensemble has no files: it always serves what its configuration says
            lines.append(policy_of(version))
        if stage == ENSEMBLE:
            lines += [
                f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}'
                for key, value in parameters.items()
            ]
        path.write_text("\n".join(lines) + "\n")


def _check_templates(templates: Path) -> None:
    for stage in MODELS:
        model = () if stage in ENSEMBLES else (f"{VERSION}/model.py",)
        for name in (CONFIG, *model):
            if not (templates / stage / name).is_file():
                raise ExportError(f"{templates / stage / name}: template missing")


def _template_files(templates: Path, stages: Iterable[str] = MODELS) -> list[Path]:
    files = (path for stage in stages for path in _files_below(templates / stage))
    return sorted(path for path in files if path.suffix in (".pbtxt", ".py"))


def _copy_templates(templates: Path, staging: Path, version: str, stages: tuple[str, ...]) -> None:
    for stage in stages:
        (staging / stage / version).mkdir(parents=True)
    for path in _template_files(templates, stages):
        stage, *inner = path.relative_to(templates).parts
        place = [version if part == VERSION else part for part in inner]  # templates stand in folders called VERSION
        shutil.copyfile(path, staging.joinpath(stage, *place))


def _made_from(bundle: Bundle, options: BuildOptions, templates: Path) -> dict[str, Any]:
    """Everything that determines an export."""
    drawn = hashlib.sha256()
    for path in _template_files(templates):
        drawn.update(hashlib.sha256(str(path.relative_to(templates)).encode()).digest())
        drawn.update(hashlib.sha256(path.read_bytes()).digest())
    return {
        "bundle": bundle.spec.name,
        "digest": bundle.digest,
        "code": running_code_hash(),
        "templates": drawn.hexdigest(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "backends": _installed_backends(options),
        "options": asdict(options),
        "cores": available_cores(),  # the choice of back ends depends on them
    }


def _installed_backends(options: BuildOptions) -> dict[str, str]:
    """Back end -> "here", or why it is not: one that was installed since may be faster."""
    device = device_type(options.device)
    return {name: unavailable(name, device) or "here" for name in BACKENDS if device in BACKENDS[name].precisions}


def _is_up_to_date(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether `out` was made from exactly this and is still intact."""
    try:
        record = read_json(out / RECORD)
        check_seal(out / RECORD, record)
        if record["made_from"] != made_from:
            return False
        for name, expected in record["files"].items():
            path = out / name
            verify_file(path.parent, RECORD, path.name, expected)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or damaged: export again
        return False
    return True


def _read_graphs(out: Path) -> dict[str, GraphRecord]:
    version = served_version(out)
    folders = [out / stage / version for stage in MODELS if (out / stage).is_dir()]
    return {name: graph for folder in folders for name, graph in ExportRecord.read(folder).graphs.items()}


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
