"""Whether a run that was stopped in the middle ends with the same weights: every stage, every signal, a fresh clone.

    python -m benchmarks.resume [STAGE ...] [--json PATH]

Every stage runs as a user starts it, in a process of its own on pico's networks: once undisturbed, then once for each
signal, which arrives in the middle and after which the same command resumes. The last column does so with SIGKILL in a
fresh clone of HEAD whose kernels are compiled by the run that is killed and loaded by the one that resumes it. Every
tensor of what the stage leaves must be equal, bit by bit. Exits with 1 if one is not.
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fresh_clone import ROOT, fresh_clone
from benchmarks.machine import describe_machine

SIGNALS = ("SIGTERM", "SIGINT", "SIGKILL")
CLONE_SIGNAL = "SIGKILL"
STEPS = 10
STOPPED_AFTER = 4  # steps or shards; there is a checkpoint of step 3 by then
_INTERRUPTED = 130
_TIMEOUT_S = 600.0
_POLL_S = 0.002
_BUNDLE = "bundles/pico"
_TRAINED = (
    f"--optim.steps {STEPS} --optim.warmup-steps 2 --cadence.log-every 1 --cadence.save-every 3 --run.threads 1 "
    "--data.objects 12 --data.validation-objects 2 --data.batch-size 2"
).split()


@dataclass(frozen=True)
class Case:
    """A stage, as it is started and resumed."""

    preset: str
    options: str
    base: str = ""  # the case whose undisturbed run is `--base`
    is_text: bool = False  # `encode-text`, which writes shards and is resumed by the same command


CASES = {
    "recon": Case("pico/recon", ""),
    "vae": Case("pico/vae", f"--recon {_BUNDLE}"),
    "decoder": Case("pico/decoder", f"--recon {_BUNDLE} --vae {_BUNDLE}"),
    "tiny-decoder": Case("pico/tiny-decoder", f"--recon {_BUNDLE} --vae {_BUNDLE}"),
    "diffusion": Case("pico/diffusion", f"--recon {_BUNDLE} --vae {_BUNDLE}"),
    "diffusion-render": Case(
        "nano/diffusion-render",
        f"--backbone pico --recon {_BUNDLE} --vae {_BUNDLE} --start {_BUNDLE} --rendering.decoder full",
    ),
    "image-vae": Case("nano/image-vae", f"--backbone pico --vae {_BUNDLE}"),
    "diffusion-image": Case(
        "nano/diffusion-image",
        f"--backbone pico_image --recon {_BUNDLE} --vae {_BUNDLE} --start {_BUNDLE}",
        base="image-vae",
    ),
    "controlnet": Case(
        "nano/controlnet-normal", f"--backbone pico --recon {_BUNDLE} --vae {_BUNDLE} --start {_BUNDLE}"
    ),
    "elevest": Case("nano/elevest", "--backbone pico"),
    "encode-text": Case(
        "encode-text/sd15",
        f"--backbone pico --encoders {_BUNDLE} --data.source procedural --data.objects 3000 --batch-size 1 "
        "--shard-objects 15 --threads 1",
        is_text=True,
    ),
}


class Workshop:
    """Runs of the stages by the code of this tree; what several trees leave in a folder has names of its own."""

    def __init__(self, folder: Path, tree: str) -> None:
        import training.__main__
        import training.run  # noqa: F401 - once, before the processes are forked: it takes longer than their training

        self.folder, self._tree, self._train = folder, tree, training.__main__.main

    def whole(self, name: str) -> Path:
        """The folder of an undisturbed run.

        Raises:
            RuntimeError: it failed.
        """
        out = self.folder / f"{name}-whole"
        if not out.exists() and (status := _status(self.start(name, out))) != 0:
            raise RuntimeError(f"{name}: the undisturbed run ended with {status}: {_log(out).read_text()}")
        return out

    def start(self, name: str, out: Path, *options: str) -> multiprocessing.Process:
        """A process that trains `name` into `out`, as its command line does."""
        case = CASES[name]
        given = [case.preset, *case.options.split(), "--data.cache", str(self.folder / "cache")]
        given += ["--out", str(out)] if case.is_text else [*_TRAINED, "--run.out", str(out)]
        if case.base:
            given += ["--base", str(self.whole(case.base))]
        process = multiprocessing.get_context("fork").Process(
            target=_run, args=(self._train, [*given, *options], _log(out))
        )
        process.start()
        return process  # type: ignore[return-value]

    def stop_and_resume(self, name: str, number: str) -> dict[str, Any]:
        """Stop a run in the middle, resume it, and compare what it leaves.

        Raises:
            RuntimeError: it was not stopped in the middle, or did not finish afterwards.
        """
        out = self.folder / f"{name}-{number}-{self._tree}"
        process = self.start(name, out)
        give_up_s = time.monotonic() + _TIMEOUT_S
        while progress(out) < STOPPED_AFTER and process.is_alive() and time.monotonic() < give_up_s:
            time.sleep(_POLL_S)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.Signals[number])
        status = _status(process)
        if status != (-signal.SIGKILL if number == "SIGKILL" else _INTERRUPTED) or (out / "finished").exists():
            raise RuntimeError(f"{name}: ended with {status}, not by {number}: {_log(out).read_text()}")
        kept, kernels = continues_at(out), len(list(ROOT.rglob("*.nbc")))
        options = () if CASES[name].is_text else ("--run.resume",)
        if (status := _status(self.start(name, out, *options))) != 0:
            raise RuntimeError(f"{name}: resumed after {number}, it ended with {status}: {_log(out).read_text()}")
        return {"kept": kept, "kernels": kernels, "different": different_tensors(self.whole(name), out)}


def _run(train: Callable[[list[str]], int], arguments: list[str], log: Path) -> None:
    """In a child: train, and end with the command's exit code."""
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what it runs in the background
    sys.exit(train(arguments))


def _status(process: multiprocessing.Process) -> int | None:
    """Exit code of a process, minus the signal that ended it; None if it does not end."""
    process.join(_TIMEOUT_S)
    return process.exitcode


def _log(out: Path) -> Path:
    return out.with_suffix(".log")


def progress(out: Path) -> int:
    """Steps that a run has logged, or shards that it has written."""
    log = out / "log.jsonl"
    return log.read_text().count('"loss"') if log.is_file() else len(list(out.glob("text-0*")))


def continues_at(out: Path) -> int:
    """Step of a stopped run's newest checkpoint, or its number of whole shards."""
    steps = [int(path.stem) for path in (out / "checkpoints").glob("[0-9]*.pt")]
    return max(steps) if steps else len(list(out.glob("text-0*")))


def different_tensors(expected: Path, out: Path) -> list[str]:
    """Tensors, lists and files that differ between what two runs left; there must be some to compare."""
    weights = [_weights(folder) for folder in (expected, out)]
    assert weights[0], f"{expected} holds nothing to compare"
    return sorted(key for key in weights[0].keys() | weights[1].keys() if weights[0].get(key) != weights[1].get(key))


def _weights(out: Path) -> dict[str, Any]:
    """What a run's safetensors files hold, as bytes, by file and name; the order inside a file is no part of it."""
    folder = out / "finished" if (out / "finished").is_dir() else out
    found: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        body = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:body]).items():
            if name != "__metadata__":
                start, end = entry.pop("data_offsets")
                entry["bytes"] = data[body + start : body + end]
            found[f"{path.name}: {name}"] = entry
    return found


def measure(names: list[str], workshop: Workshop) -> dict[str, dict[str, Any]]:
    """Every stage with every signal; stage -> signal -> from where it was resumed and what differs."""
    print(f"{'stage':18}" + "".join(f"{number:>20}" for number in SIGNALS), flush=True)
    rows = {}
    for name in names:
        rows[name] = {number: workshop.stop_and_resume(name, number) for number in SIGNALS}
        print(f"{name:18}" + "".join(f"{_verdict(cell):>20}" for cell in rows[name].values()), flush=True)
    return rows


def in_fresh_clone(names: list[str], folder: Path) -> dict[str, Any]:
    """What this module, run by a fresh clone's own code, finds against the undisturbed runs of this tree."""
    clone = fresh_clone(folder)
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment["PYTHONPATH"] = os.pathsep.join((str(clone), str(clone / "client")))
    result = folder / "clone.json"
    command = [sys.executable, "-m", "benchmarks.resume", *names, "--here", str(folder), "--json", str(result)]
    subprocess.run(command, cwd=clone, env=environment)
    if not result.is_file():
        raise RuntimeError("the fresh clone's run failed")
    return {name: row[CLONE_SIGNAL] for name, row in json.loads(result.read_text())["stages"].items()}


def measure_clone(names: list[str], workshop: Workshop) -> dict[str, dict[str, Any]]:
    """Every stage killed and resumed, each time without compiled kernels at first."""
    rows = {}
    for name in names:
        for kernel in ROOT.rglob("*.nb[ci]"):
            kernel.unlink()
        cell = workshop.stop_and_resume(name, CLONE_SIGNAL)
        rows[name] = {CLONE_SIGNAL: cell}
        compiled = f"{cell['kernels']} kernels compiled before"
        print(f"{name:18}{'fresh clone, ' + CLONE_SIGNAL:>20}{_verdict(cell):>20}  {compiled}", flush=True)
    return rows


def _verdict(cell: dict[str, Any]) -> str:
    return f"equal, from {cell['kept']}" if not cell["different"] else f"{len(cell['different'])} tensors differ"


def main() -> int:
    """Stop, resume and compare; print a row per stage, and write them as JSON when asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("stages", nargs="*", default=list(CASES), metavar="STAGE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, help="file to write the table to")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # in the clone: where the undisturbed runs lie
    args = parser.parse_args()
    if unknown := [name for name in args.stages if name not in CASES]:
        parser.error(f"unknown stage {', '.join(unknown)}: choose from {', '.join(CASES)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.here is not None:
        rows = measure_clone(args.stages, Workshop(args.here, "clone"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(args.stages, Workshop(Path(folder), "here"))
            for name, cell in in_fresh_clone(args.stages, Path(folder)).items():
                rows[name]["fresh clone"] = cell
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**describe_machine(), "steps": STEPS, "stages": rows}, indent=2) + "\n")
    return int(any(cell["different"] for row in rows.values() for cell in row.values()))


if __name__ == "__main__":
    sys.exit(main())
