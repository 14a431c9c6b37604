"""`python -m benchmarks.loader [--json PATH]`: samples per second of the loader against what training consumes.

Consumption is that of the preset nano/recon (6 objects of 6 views at 64 px per step), forwards, backwards and AdamW, on
all cores, without loading. The loader is measured alone, with one thread per core: rendered procedural objects, shards
that `training data convert` wrote, and full-size records (512 px, PNG) that are shrunk on the way.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from training.config.common import Data
from training.data.convert_command import Convert, convert
from training.data.procedural.synthetic import RICH_CONFIG, synthetic_object
from training.data.record import encode_record
from training.data.stream import BatchStream
from training.data.tar_store import write_tar
from training.loop import step_generator
from training.optim import build_optimizer
from training.presets.nano import RECON
from training.stages.common import dataset
from training.stages.recon import ReconStage

BAR = 2.0  # the loader's samples per second over those of the step
FULL_SIDE = 512  # of published records
_FULL_VIEWS = (0, 6, 12, 18, 1, 7, 13, 19, 25, 26, 3, 9)  # of the larger ring, two picks of it, and others


def consumption(data: Data, steps: int) -> float:
    """Samples per second of training steps on one batch that is at hand."""
    stage = ReconStage(dataclasses.replace(RECON, data=data))
    stage.build().train()
    optimizer = build_optimizer(stage.param_groups(), stage.config.optim)
    batch = next(stage.stream(0, 1))
    started = 0.0
    for step in range(steps + 1):
        if step == 1:  # the first step compiles kernels
            started = time.perf_counter()
        stage.loss(batch, step_generator(0, 0, step))[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return steps * data.batch_size / (time.perf_counter() - started)


def throughput(data: Data, batches: int) -> float:
    """Samples per second of the stream that a stage reads."""
    objects = dataset(data, RECON.backbone, validation=False)
    objects.source.prepare()
    stream = BatchStream(objects, data.batch_size, 0, workers=data.workers, prefetch=data.prefetch)
    next(stream)
    started = time.perf_counter()
    for _ in range(batches):
        next(stream)
    return batches * data.batch_size / (time.perf_counter() - started)


def write_full_size(path: Path, objects: int) -> None:
    """Records as large as the published ones."""
    made = [synthetic_object(0, index, RICH_CONFIG) for index in range(objects)]
    write_tar(
        path,
        (encode_record(o.uid, o.render_packed(_FULL_VIEWS, FULL_SIDE), _FULL_VIEWS, [o.caption]) for o in made),
    )


def main() -> int:
    """Print the figures; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="training steps that are timed (default 6)")
    parser.add_argument("--batches", type=int, default=20, help="batches that are timed (default 20)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = dataclasses.replace(RECON.data, objects=48, workers=cores, prefetch=3, cache=folder / "cache")
        consumed = consumption(data, arguments.steps)
        torch.set_num_threads(1)  # as the threads of the loader share the cores
        write_full_size(folder / "full" / "0.tar", 14)
        convert(Convert(folder / "full", folder / "shards", side=64))
        stored = dataclasses.replace(data, objects=0, validation_objects=2, first_views=(0,))
        sources = {
            "procedural": data,
            "shards": dataclasses.replace(stored, source=str(folder / "shards")),
            "full_size": dataclasses.replace(stored, source=str(folder / "full")),
        }
        loaded = {kind: throughput(source, arguments.batches) for kind, source in sources.items()}
    print(f"nano/recon consumes {consumed:.2f} samples per second")
    for kind, rate in loaded.items():
        print(f"{kind:12} {rate:8.1f} samples per second, {rate / consumed:6.1f} times as many")
    if arguments.json is not None:
        figures = {
            "machine": describe_machine(), "consumed_per_s": round(consumed, 3),
            "loaded_per_s": {kind: round(rate, 2) for kind, rate in loaded.items()},
            "least_ratio": round(min(loaded.values()) / consumed, 2), "bar": BAR,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(min(loaded.values()) < BAR * consumed)


if __name__ == "__main__":
    sys.exit(main())
