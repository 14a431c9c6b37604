"""Memory of an import: peak of the process over the size of the checkpoint on disk.

    python -m benchmarks.import_memory [--precision fp16] [--files fp16] [--folder DIR] [--json PATH]

A synthetic checkpoint of SD1.5's size, random numbers in the official layout, is written to a temporary folder and
imported by the command line in a process of its own. Needs twice the checkpoint's size on disk, 2.5 GB in half
precision; free room is checked first.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine
from diffsplat.backbones import SD15, BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.networks import network_builders
from diffsplat.text.tokenizer import train_tokenizer
from export.importing.layout import default_tags
from export.importing.network import expected_tensors

MAX_RATIO = 1.3
_BLOCK = 1 << 22  # numbers that are made once and written again and again
_DTYPES: Mapping[str, tuple[str, torch.dtype]] = {
    "fp32": ("F32", torch.float32),
    "fp16": ("F16", torch.float16),
    "bf16": ("BF16", torch.bfloat16),
}
_ITERATION = "000001"


def write_checkpoint(root: Path, spec: BackboneSpec, precision: str) -> int:
    """Write `root/out` and `root/base` in the official layout, random numbers; returns the bytes of the weights."""
    tags, total = default_tags(spec.name), 0
    for name in network_builders(spec):
        if name.startswith(TEXT_ENCODER):
            path = root / "base" / name / "model.safetensors"
        else:
            path = root / "out" / tags[name] / "checkpoints" / _ITERATION
            path /= "unet_ema/diffusion_pytorch_model.safetensors" if name == "denoiser" else "model.safetensors"
        path.parent.mkdir(parents=True)
        total += _write_random(path, expected_tensors(spec, name), precision)
    for folder, encoder in zip(spec.text.numbered("tokenizer"), spec.text.encoders, strict=True):
        (root / "base" / folder).mkdir()
        tokenizer = train_tokenizer(["a red cube"], encoder.max_tokens)
        (root / "base" / folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return total


def _write_random(path: Path, tensors: Mapping[str, torch.Tensor], precision: str) -> int:
    dtype, torch_type = _DTYPES[precision]
    header: dict[str, Any] = {}
    at = 0
    for key, tensor in tensors.items():
        size = tensor.numel() * torch_type.itemsize
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in _random_bytes(at, torch_type):
            file.write(piece)
    return path.stat().st_size


def _random_bytes(count: int, dtype: torch.dtype) -> Iterator[memoryview]:
    numbers = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, _BLOCK).astype(np.float32)).to(dtype)
    block = numbers.view(torch.uint8).numpy().data
    for start in range(0, count, len(block)):
        yield block[: count - start]


def _interpreter_kilobytes() -> int:
    """Peak of a process that only loads what an import needs."""
    probe = "import export.importing.importer, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    return int(subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout)


def main() -> int:
    """Write, import, print; the exit code is 1 when the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--files", choices=_DTYPES, default="fp16", help="precision of the checkpoint (default fp16)")
    parser.add_argument("--precision", choices=_DTYPES, default="fp16", help="precision asked for (default fp16)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    parameters = sum(t.numel() for name in network_builders(SD15) for t in expected_tensors(SD15, name).values())
    needed = parameters * sum(_DTYPES[p][1].itemsize for p in (options.files, options.precision)) * 1.2
    with tempfile.TemporaryDirectory(prefix="import-memory-", dir=options.folder) as temporary:
        root = Path(temporary)
        free = shutil.disk_usage(root).free
        if needed > free:
            print(f"{root}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free", file=sys.stderr)
            return 1
        on_disk = write_checkpoint(root, SD15, options.files)
        baseline = _interpreter_kilobytes() * 1024
        command = [sys.executable, "-m", "export", "import", "--backbone", SD15.name, "--precision", options.precision]
        started = time.perf_counter()
        subprocess.run([*command, "--base", f"{root}/base", f"{root}/out", f"{root}/bundle"], check=True)
        seconds = time.perf_counter() - started
        written = sum(path.stat().st_size for path in (root / "bundle").iterdir())
    # of the largest child, which is the import: the probe before it did less
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    ratio = peak / on_disk
    print(f"checkpoint on disk   {on_disk / 1e9:6.2f} GB ({options.files}), bundle {written / 1e9:.2f} GB")
    print(f"peak of the process  {peak / 1e9:6.2f} GB, of which {baseline / 1e9:.2f} GB are libraries")
    print(f"peak / size on disk  {ratio:6.2f}    bar {MAX_RATIO}")
    print(f"time                 {seconds:6.1f} s")
    if options.json:
        figures = {
            "checkpoint_bytes": on_disk,
            "bundle_bytes": written,
            "peak_bytes": peak,
            "libraries_bytes": baseline,
            "ratio": round(ratio, 3),
            "bar": MAX_RATIO,
            "seconds": round(seconds, 1),
            "files": options.files,
            "precision": options.precision,
        }
        options.json.write_text(json.dumps({**describe_machine(), "import_memory": figures}, indent=2) + "\n")
    return int(ratio > MAX_RATIO)


if __name__ == "__main__":
    sys.exit(main())
