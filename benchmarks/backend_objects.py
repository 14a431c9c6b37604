"""`python -m benchmarks.backend_objects BUNDLE [--json PATH]`: objects by every CPU back end against torch in fp32.

Exports the bundle once for each back end that is installed, generates the same objects with the graphs of each, all
stages in one process, and compares latents and splats. How often the objects are still what was asked for is measured
by `python -m benchmarks.quality BUNDLE --repository DIR`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from diffsplat_client.contract import GAUSSIAN_COLUMNS
from diffsplat_client.request import GenerationRequest
from torch import Tensor

from benchmarks.machine import describe_machine
from diffsplat.backends import unavailable
from diffsplat.bundle import open_bundle
from diffsplat.graph import Backend
from diffsplat.pipeline import Pipeline
from export.common import ExportError
from export.repository import export_repository

BACKENDS: tuple[Backend, ...] = ("torch", "onnxruntime", "openvino")  # aotinductor would compile for minutes
PROMPTS = ("a red cube", "a blue sphere", "a green cone", "a yellow cube")
VISIBLE = 1 / 255  # opacity below which a splat is not drawn


class Objects(NamedTuple):
    """What was generated for all prompts."""

    latents: list[Tensor]
    splats: list[np.ndarray]  # [N, 14]


def generate(pipeline: Pipeline) -> Objects:
    """One object for each prompt."""
    latents, splats = [], []
    for seed, prompt in enumerate(PROMPTS):
        work = pipeline.encode.run(GenerationRequest(prompt, seed=seed))
        job = pipeline.denoise.start(work)
        while job.step < job.steps:
            pipeline.denoise.step([job])
        latents.append(job.latents)
        splats.append(pipeline.decode.run(job.latents, job.envelope).splats.cpu().numpy())
    return Objects(latents, splats)


def difference(mine: Objects, right: Objects) -> dict[str, float]:
    """Largest differences: of latents relative to the largest value, of visible splats in their own units."""
    opacity = GAUSSIAN_COLUMNS["opacity"]
    pairs = list(zip(mine.splats, right.splats, strict=True))
    visible = [b[:, opacity].ravel() >= VISIBLE for _, b in pairs]
    seen = [(a[rows], b[rows]) for (a, b), rows in zip(pairs, visible, strict=True)]
    latents = zip(mine.latents, right.latents, strict=True)
    return {
        "latents": max(float((a - b).abs().max() / b.abs().max()) for a, b in latents),
        "splats": max(float(np.abs(a - b).max()) for a, b in seen),
        "positions": max(float(np.abs(a[:, :3] - b[:, :3]).max()) for a, b in seen),
    }


def main() -> int:
    """Print a row for each back end; 1 if one that is installed could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backend_objects", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    expected = generate(Pipeline.from_bundle(bundle))
    rows: dict[str, dict[str, Any]] = {}
    failed = False
    for backend in BACKENDS:
        if reason := unavailable(backend, "cpu"):
            print(f"{backend}: left out: {reason}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                repository = export_repository(arguments.bundle, Path(folder) / "repository", backend).folder
            except ExportError as error:
                print(f"{backend}: {error}")
                failed = True
                continue
            rows[backend] = difference(generate(Pipeline.load(repository)), expected)
        shown = ", ".join(f"{name} {value:.1e}" for name, value in rows[backend].items())
        print(f"{bundle.spec.name} by {backend}, largest difference to torch in fp32: {shown}", flush=True)
    if arguments.json:
        report = {**describe_machine(), "bundle": bundle.spec.name, "prompts": len(PROMPTS), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
