"""Official checkpoints -> a bundle: find, check, copy, assemble.

Copying starts only after every network was found and its keys and shapes were checked. Copies wait beside the bundle's
place until all are complete, so that an interrupted import continues with the first unfinished network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import MANIFEST, Bundle, assemble_bundle, check_replaceable, tokenizer_files
from diffsplat.networks import network_builders
from diffsplat.text.official_tokenizers import official_tokenizer_json
from diffsplat.text.tokenizer import Tokenizer
from export.common import ProgressCallback
from export.importing.copy import MAX_WEIGHTS_FILE_BYTES
from export.importing.hub import Origin, open_origin
from export.importing.layout import (
    SourceError,
    WeightFiles,
    locate_base_parts,
    locate_checkpoints,
    locate_tokenizers,
)
from export.importing.network import PRECISIONS, FoundNetwork, check_config, find_network
from export.importing.resume import STAGING, NetworkRecord, check_space, copy_networks, kept_networks, working_folder


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import."""

    spec: BackboneSpec
    source: str  # folder in the hub's layout or cache, or repository of the hub
    base: str  # the same for the base model
    out: Path
    precision: str = "fp32"
    tags: Mapping[str, str] = field(default_factory=dict)  # network -> tag
    iterations: Mapping[str, int] = field(default_factory=dict)  # network -> iteration; default: the newest
    max_file_bytes: int = MAX_WEIGHTS_FILE_BYTES


def import_bundle(options: ImportOptions, progress: ProgressCallback = lambda text, done, total: None) -> Bundle:
    """Import official checkpoints.

    Args:
        options: sources, target and precision.
        progress: called with the present step, bytes read and total bytes.

    Raises:
        SourceError: a part is missing, damaged, of another backbone, or does not fit; one message lists all problems of
            keys and shapes.
        BundleError: `out` exists and is not a bundle.
    """
    out = Path(options.out).absolute()
    check_replaceable(out, MANIFEST)
    if options.precision not in PRECISIONS:
        raise SourceError(f"precision = {options.precision!r}: must be one of {', '.join(PRECISIONS)}")
    progress("looking for the parts", 0, 0)
    origins = {"checkpoint": open_origin(options.source), "base": open_origin(options.base, "--base")}
    located, tokenizer_names = _locate(options, origins)
    roots = _fetch(origins, located, tokenizer_names, progress)
    progress("checking keys and shapes", 0, 0)
    networks = _check(options, located, roots)
    tokenizers = _tokenizers(options.spec, roots["base"])
    with working_folder(out) as working:
        staging = working / STAGING
        records = kept_networks(working, networks, options.max_file_bytes)
        check_space(out, {name: network for name, network in networks.items() if name not in records})
        copy_networks(working, networks, records, options.max_file_bytes, progress)
        for file, text in zip(tokenizer_files(options.spec), tokenizers, strict=True):
            (staging / file).write_text(text, encoding="utf-8")
        known = {file: entry for record in records.values() for file, entry in record["files"].items()}
        return assemble_bundle(staging, out, options.spec, _lineage(networks, records, origins), known)


def _locate(
    options: ImportOptions, origins: Mapping[str, Origin]
) -> tuple[dict[str, WeightFiles], dict[str, tuple[str, ...]]]:
    wanted = tuple(network_builders(options.spec))
    checkpoint, base = origins["checkpoint"], origins["base"]
    found = locate_checkpoints(
        options.spec, wanted, checkpoint.names(), checkpoint.label, options.tags, options.iterations
    )
    base_names = base.names()
    found |= locate_base_parts(wanted, base_names, base.label)
    return {name: found[name] for name in wanted}, locate_tokenizers(options.spec, base_names, base.label)


def _fetch(
    origins: Mapping[str, Origin],
    located: Mapping[str, WeightFiles],
    tokenizer_names: Mapping[str, Sequence[str]],
    progress: ProgressCallback,
) -> dict[str, Path]:
    roots = {}
    for name, origin in origins.items():
        needed = [file for files in located.values() if files.origin == name for file in files.names]
        if name == "base":
            needed += [file for files in tokenizer_names.values() for file in files]
        progress(f"fetching {origin.label}", 0, 0)
        roots[name] = origin.fetch(needed)
    return roots


def _check(
    options: ImportOptions, located: Mapping[str, WeightFiles], roots: Mapping[str, Path]
) -> dict[str, FoundNetwork]:
    """Check configs first, since their errors are clearer, then the keys of all networks."""
    for name, files in located.items():
        if files.config is not None:
            check_config(options.spec, name, roots[files.origin] / files.config)
    networks, reports = {}, []
    for name, files in located.items():
        root = roots[files.origin]
        networks[name] = network = find_network(options.spec, name, files, root, options.precision)
        if network.report:
            folder = root / Path(files.files[0]).parent
            reports.append("\n  ".join([f"{name} of {options.spec.name} in {folder}:", *network.report.lines()]))
    if reports:
        raise SourceError("the checkpoint does not fit:\n" + "\n".join(reports))
    return networks


def _tokenizers(spec: BackboneSpec, root: Path) -> list[str]:
    texts = []
    for file, encoder in zip(tokenizer_files(spec), spec.text.encoders, strict=True):
        folder = root / file.removesuffix(".json")
        try:
            text = official_tokenizer_json(folder, encoder.kind)
            size = Tokenizer.for_encoder(text, encoder).vocab_size
        except Exception as error:  # the library raises plain Exception for unreadable files
            raise SourceError(f"{folder}: no tokenizer of {spec.name}: {error}") from error
        if size > encoder.config["vocab_size"]:
            raise SourceError(
                f"{folder}: has {size} tokens, the text encoder of {spec.name} only {encoder.config['vocab_size']}"
            )
        texts.append(text)
    return texts


def _lineage(
    networks: Mapping[str, FoundNetwork], records: Mapping[str, NetworkRecord], origins: Mapping[str, Origin]
) -> dict[str, Any]:
    return {
        "imported_from": {name: origin.describe() for name, origin in origins.items()},
        "networks": {
            name: {"precision": network.precision, "made_from": records[name]["sources"]}
            for name, network in networks.items()
        },
    }
