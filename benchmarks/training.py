"""What a training step costs.

    python -m benchmarks.training [PRESET ...] [--steps N] [--compare FIELD=VALUE [--rounds N]] [--json PATH]

Every preset runs through the real loop in a process of its own, on the networks of `bundles/nano`, with a small set
of objects, cached before the first step. Per preset: CPU time of a step (median), the loader's share of it, wall-clock
time of a step, and the largest memory of the process. CPU time is hardly disturbed by other programs. `--compare` runs
every preset with another value of a field too, such as ``cache_grids=false``, in turns, and prints the ratio of the CPU
times.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

PRESETS = ("nano/recon", "nano/vae", "nano/diffusion", "nano/decoder", "nano/tiny-decoder")
BUNDLE = Path("bundles/nano")
STEPS = 6
_WARM_UP = 2  # steps in which kernels are compiled and buffers allocated
_THREADS = "2"


class TimedStream:
    """A stage's stream; notes the process's CPU and wall-clock time before and after each batch is made."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.batches_per_epoch = stream.batches_per_epoch
        self.begun: list[tuple[float, float]] = []  # CPU, wall clock
        self.data: list[float] = []  # CPU
        self.peak_kib = 0

    def __next__(self) -> Any:
        self.begun.append((time.process_time(), time.perf_counter()))
        batch = next(self._stream)
        self.data.append(time.process_time() - self.begun[-1][0])
        self.peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return batch

    def state_dict(self) -> dict[str, int]:
        """The stream's."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The stream's."""
        self._stream.load_state_dict(state)


def measure(preset: str, steps: int, change: str = "") -> dict[str, Any]:
    """Train a preset for some steps in this process and return its figures; `change` is FIELD=VALUE, VALUE in JSON."""
    from training.loop import train
    from training.presets import STAGES
    from training.stages import build_stage

    with tempfile.TemporaryDirectory() as folder:
        config = STAGES[preset][1]
        count = steps + _WARM_UP + 1  # the last step only ends the one before it
        data = dataclasses.replace(
            config.data,
            objects=2 * config.data.batch_size,
            validation_objects=2,
            first_views=config.data.first_views[:1],  # all is cached after one epoch
            workers=0,
            cache=Path(folder) / "cache",
        )
        parents: dict[str, Any] = {name: BUNDLE for name in config.parents if getattr(config, name) is not None}
        config = dataclasses.replace(
            config,
            data=data,
            optim=dataclasses.replace(config.optim, steps=count, warmup_steps=1),
            run=dataclasses.replace(config.run, out=Path(folder) / "run", threads=int(_THREADS)),
            **parents,
        )
        if change:
            field, _, value = change.partition("=")
            config = dataclasses.replace(config, **{field: json.loads(value)})
        config.check()
        stage: Any = build_stage(config)
        opened, made = stage.stream, []

        def stream(rank: int, world_size: int) -> TimedStream:
            made.append(TimedStream(opened(rank, world_size)))
            return made[-1]

        stage.stream = stream
        stage.export = lambda out, facts: None  # which is no part of a step
        train(stage, config, {})
    timed = made[0]
    cpu, wall = (
        [after[clock] - before[clock] for before, after in zip(timed.begun, timed.begun[1:], strict=False)][_WARM_UP:]
        for clock in (0, 1)
    )
    data_cpu = timed.data[_WARM_UP:-1]
    return {
        "batch_size": config.data.batch_size,
        "precision": config.optim.precision,
        "cpu_s": round(statistics.median(cpu), 3),
        "wall_s": round(statistics.median(wall), 3),
        "data_share": round(sum(data_cpu) / sum(cpu), 4),
        "peak_mib": round(timed.peak_kib / 1024),
    }


def in_own_process(preset: str, steps: int, change: str = "") -> dict[str, Any]:
    """`measure` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.training", preset, "--steps", str(steps), "--compare", change]
        environment = {**os.environ, "OMP_NUM_THREADS": _THREADS}
        subprocess.run([*command, "--here", str(path)], check=True, env=environment, stdout=subprocess.DEVNULL)
        figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def compare(preset: str, steps: int, change: str, rounds: int) -> dict[str, Any]:
    """CPU times of a step with and without a change, measured in turns, and the ratio of their medians."""
    times: dict[str, list[float]] = {"": [], change: []}
    for turn in range(rounds):
        for variant in sorted(times, reverse=turn % 2 == 1):
            times[variant].append(in_own_process(preset, steps, variant)["cpu_s"])
    ratio = statistics.median(times[change]) / statistics.median(times[""])
    print(f"{preset:18} {change}: {ratio:.2f} times the CPU time of a step  {times}", flush=True)
    return {"change": change, "cpu_s": times[""], "cpu_s_changed": times[change], "ratio": round(ratio, 3)}


def main() -> None:
    """Measure each preset in a process of its own; print, and write as JSON when asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("presets", nargs="*", default=list(PRESETS), metavar="PRESET")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--compare", default="", metavar="FIELD=VALUE", help="of the configuration; VALUE in JSON")
    parser.add_argument("--rounds", type=int, default=3, help="of a comparison")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # in a child: where its figures go
    args = parser.parse_args()
    if args.here is not None:
        args.here.write_text(json.dumps(measure(args.presets[0], args.steps, args.compare)))
        return
    figures = {}
    for preset in args.presets:
        if args.compare:
            figures[preset] = compare(preset, args.steps, args.compare, args.rounds)
            continue
        row = figures[preset] = in_own_process(preset, args.steps)
        print(
            f"{preset:18} batch {row['batch_size']:2} {row['precision']:4}  step {row['cpu_s']:.2f} s CPU, "
            f"{row['wall_s']:.2f} s  data {row['data_share']:.1%}  peak {row['peak_mib']} MiB",
            flush=True,
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        written = {**describe_machine(), "steps": args.steps, "presets": figures}
        args.json.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
