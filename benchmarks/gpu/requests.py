"""Whole requests through the stages and the engine that are served: full-size random networks, real tokenizers."""

import statistics
import threading
import time
from dataclasses import dataclass

import torch
from diffsplat_client.request import GenerationRequest

from benchmarks.gpu.measure import forget_peak, peak_gb, wait_for
from benchmarks.gpu.networks import random_graphs, request_graphs_of, roofline_ms, specs
from benchmarks.gpu.runner import Settings, Task
from diffsplat.backbones import BackboneSpec
from diffsplat.backends.cuda_graphs import replayed
from diffsplat.backends.devices import find_device
from diffsplat.denoisers.buckets import Buckets
from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.serving.engine.engine import Engine
from diffsplat.serving.engine.interface import EngineProgress
from diffsplat.serving.engine.policy import EnginePolicy
from diffsplat.stages.decode import DecodeStage
from diffsplat.stages.denoise import DenoiseStage, denoise_graphs, step_graphs
from diffsplat.stages.denoise_job import DenoiseJob
from diffsplat.stages.encode import EncodeStage, encode_graphs
from diffsplat.stages.work import DenoiseWork
from diffsplat.text.tokenizer import Tokenizer
from tests.families import CAPTIONS, tokenizer_json

PROMPT = CAPTIONS[0]
END_TO_END = ("sd15", "pixart_sigma", "sd35")
BARS_MS = {"sd15": 100.0, "pixart_sigma": 150.0, "sd35": 350.0}  # prompt to splats on an H200
REPEATS = 5
MAX_REQUESTS = 8
LEAST_S = 10.0


@dataclass(frozen=True)
class Served:
    """The stages of one backbone up to its splats, as they are loaded for a server."""

    encode: EncodeStage
    denoise: DenoiseStage
    decode: DecodeStage


def served(spec: BackboneSpec, settings: Settings, requests: int) -> Served:
    """Stages with random networks in bf16, warmed up for batches of up to `requests`."""
    device = find_device(settings.device)
    names = [*encode_graphs(spec), *denoise_graphs(spec), "decoder"]
    graphs = random_graphs(spec, names, device, "bf16")
    tokenizers = [Tokenizer.for_encoder(tokenizer_json(encoder.kind), encoder) for encoder in spec.text.encoders]
    buckets = Buckets(2 * requests, spec.text.tokens) if device.type == "cuda" else None
    stages = Served(
        EncodeStage(spec, graphs, tokenizers),
        DenoiseStage(spec, replayed(graphs, step_graphs(spec)), buckets),
        DecodeStage(spec, graphs["decoder"]),
    )
    stages.denoise.warm_up(requests)
    return stages


def end_to_end(task: Task) -> None:
    """Prompt to splats, one request: a row per stage, and one for all with its bar."""
    device = find_device(task.settings.device)
    for spec in specs(task.settings, END_TO_END):
        if task.left_s < (0.5 if task.settings.tiny else LEAST_S):
            task.log.add(backbone=spec.name, stage="left out: no time")
            continue
        forget_peak(device)
        stages = served(spec, task.settings, 1)
        runs = [_milliseconds(stages, device, seed) for seed in range(2 if task.settings.tiny else REPEATS + 1)][1:]
        limits = {graph.name: roofline_ms(spec, graph) for graph in request_graphs_of(spec)}
        shares = {
            "encode": sum(limits[name] for name in encode_graphs(spec)),
            "denoise": sum(limits[name] * (spec.steps if name == STEP else 1) for name in denoise_graphs(spec)),
            "decode": limits["decoder"],
        }
        for stage, limit in (*shares.items(), ("prompt to splats", sum(shares.values()))):
            ms = statistics.median(sum(run.values()) if stage not in run else run[stage] for run in runs)
            whole = stage not in shares
            task.log.add(
                backbone=spec.name,
                stage=stage,
                steps=spec.steps,
                ms=ms,
                roofline_ms=limit,
                share_of_roofline=limit / ms,
                bar_ms=BARS_MS.get(spec.name) if whole else None,
                peak_gb=peak_gb(device) if whole else None,
            )
        del stages


def _milliseconds(stages: Served, device: torch.device, seed: int) -> dict[str, float]:
    """Of every stage of one request; the device has finished one before the next begins."""
    times = [time.perf_counter()]

    def ended() -> None:
        wait_for(device)
        times.append(time.perf_counter())

    work = stages.encode.run(GenerationRequest(PROMPT, seed=seed))
    ended()
    job = stages.denoise.start(work)
    while job.step < job.steps:
        stages.denoise.step([job])
    ended()
    stages.decode.run(job.result(), job.envelope)
    ended()
    return {
        name: (end - start) * 1e3
        for name, start, end in zip(("encode", "denoise", "decode"), times, times[1:], strict=False)
    }


class _Listener:
    """Waits for the end of one request."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.error: Exception | None = None

    def progress(self, progress: EngineProgress) -> None:
        """Nobody watches."""

    def finished(self, state: DenoiseJob, denoise_ms: float, queued_ms: float) -> None:
        """All steps are done."""
        self.ended.set()

    def failed(self, error: Exception, end_state: str) -> None:
        """It ended early."""
        self.error = error
        self.ended.set()

    def is_cancelled(self) -> bool:
        """Nobody leaves."""
        return False


def scaling(task: Task) -> None:
    """1 to 8 requests at once through the engine: seconds for all of them, objects per second."""
    device = find_device(task.settings.device)
    (spec,) = specs(task.settings, ("sd15",))
    stages = served(spec, task.settings, MAX_REQUESTS)
    (step,) = (graph for graph in request_graphs_of(spec) if graph.name == STEP)
    limit = roofline_ms(spec, step)
    engine: Engine[DenoiseWork, DenoiseJob] = Engine(stages.denoise, EnginePolicy(MAX_REQUESTS, MAX_REQUESTS, 0.1))
    try:
        for count in (1, 2) if task.settings.tiny else range(1, MAX_REQUESTS + 1):
            works = [stages.encode.run(GenerationRequest(PROMPT, seed=seed)) for seed in range(count)]
            seconds = min(_all_done(engine, works, device) for _ in range(2))  # of two: the first meets new shapes
            task.log.add(
                backbone=spec.name,
                requests=count,
                denoise_s=seconds,
                objects_per_s=count / seconds,
                ms_per_step=seconds / spec.steps * 1e3,
                share_of_roofline=limit * count * spec.steps / 1e3 / seconds,
                peak_gb=peak_gb(device),
            )
    finally:
        engine.close()


def _all_done(engine: "Engine[DenoiseWork, DenoiseJob]", works: list[DenoiseWork], device: torch.device) -> float:
    """Seconds from the first submission until the last request has finished."""
    listeners = [_Listener() for _ in works]
    started = time.perf_counter()
    for index, (work, listener) in enumerate(zip(works, listeners, strict=True)):
        engine.submit(f"request {index}", work, listener)
    for listener in listeners:
        listener.ended.wait()
        if listener.error is not None:
            raise listener.error
    wait_for(device)
    return time.perf_counter() - started
