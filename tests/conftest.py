"""Fixtures that several rooms' tests share: a very small bundle with random weights, pico, and the exports of both."""

from __future__ import annotations

import atexit
import dataclasses
import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads of torch sleep: other workers need the cores

if TYPE_CHECKING:  # at run time inside the fixtures: the client's tests start without torch
    from diffsplat.backbones import BackboneSpec
    from diffsplat.bundle import Bundle
    from export.common import BackendChoice

MAX_TOKENS = 8
HERE = Path(__file__).resolve().parent
PICO = HERE.parent / "bundles" / "pico"
LONG_ROOMS = ("golden", "training", "benchmarks", "export")
SHARED_SERVER = {  # files whose tests use the fixture `server` of tests/serving: in one worker it starts once
    f"tests/serving/test_{name}.py"
    for name in ("deploy", "kubernetes", "pico", "readme_example", "reconstruct_served", "served", "served_refusals")
}
CAPTIONS = [f"a {color} {shape}" for color in ("red", "green", "blue") for shape in ("cube", "sphere", "cone")]


def pytest_configure(config: pytest.Config) -> None:
    """Rendered views of training go to a folder of this test run; workers of xdist share it."""
    if "DIFFSPLAT_CACHE" not in os.environ:
        os.environ["DIFFSPLAT_CACHE"] = folder = tempfile.mkdtemp(prefix="diffsplat-cache-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--tensorrt` runs what is left out otherwise."""
    parser.addoption("--tensorrt", action="store_true", help="also build the TensorRT engines of every family: minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers (`make test`) what takes long comes first, so that no worker is left alone at the end."""
    if not config.getoption("--tensorrt"):
        left_out = [item for item in items if item.get_closest_marker("tensorrt")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Servers, then rooms with long tests, then the others."""
    room = Path(item.nodeid).parts[1]
    if item.get_closest_marker("triton"):
        return 0
    return 1 + LONG_ROOMS.index(room) if room in LONG_ROOMS else 1 + len(LONG_ROOMS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a server that starts or stops makes its test wait."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)  # mutants run without plugins
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests stay together in one worker: see `worker_group`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return worker_group(nodeid)

    return ByGroup(config, log)


def worker_group(nodeid: str) -> str:
    """Tests of a file share its fixtures, some files a server, golden tests the list of what they have read.

    Each family has a server of its own.
    """
    path, _, test = nodeid.partition("::")
    if path.startswith("tests/golden/"):
        return "golden"
    if path in SHARED_SERVER:
        return "server"
    return f"{path} {test.partition('[')[2]}" if path.endswith("test_families_served.py") else path


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Whatever loads a stage lets torch use all cores from then on; here the workers share them."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def tiny_spec(vocab_size: int) -> BackboneSpec:
    """PICO with every network shrunken; geometry, latents and noise schedule are PICO's."""
    from diffsplat.backbones import PICO, TextSpec

    (encoder,) = PICO.text.encoders
    config = {**encoder.config, "hidden_size": 16, "intermediate_size": 32, "vocab_size": vocab_size}
    config["max_position_embeddings"] = MAX_TOKENS
    return dataclasses.replace(
        PICO,
        name="tiny",
        text=TextSpec((dataclasses.replace(encoder, max_tokens=MAX_TOKENS, config=config),)),
        denoiser={
            **PICO.denoiser,
            "block_out_channels": [8, 16],
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
        },
        gsvae={**PICO.gsvae, "block_out_channels": [8, 8, 16], "norm_num_groups": 4, "scaling_factor": 0.7},
        gsrecon={**PICO.gsrecon, "dim": 16, "num_blocks": 1, "num_heads": 2},
        steps=4,
    )


def write_tiny_bundle(folder: Path, seed: int = 0) -> Bundle:
    """A bundle of `tiny_spec` with random weights; the same seed gives the same bytes."""
    import torch

    from diffsplat.bundle import write_bundle
    from diffsplat.networks import network_builders
    from diffsplat.text.tokenizer import Tokenizer, train_tokenizer

    tokenizer_json = train_tokenizer(CAPTIONS, MAX_TOKENS)
    spec = tiny_spec(Tokenizer.from_json(tokenizer_json).vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = {name: build() for name, build in network_builders(spec).items()}
    return write_bundle(folder, spec, networks, [tokenizer_json], {"seed": seed})


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with random weights. Read only: copy it before damaging it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def exported_repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served repository of `tiny_bundle`, exported once, back ends chosen by measurement. Read only."""
    return _export_once(tiny_bundle.root, tmp_path_factory)


@pytest.fixture(scope="session")
def pico_bundle() -> Bundle:
    """The trained bundle that comes with the repository. Read only."""
    from diffsplat.bundle import open_bundle

    return open_bundle(PICO)


@pytest.fixture(scope="session")
def pico_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served repository of pico, exported once by the back end that the default installation has. Read only."""
    return _export_once(PICO, tmp_path_factory, "onnxruntime")


def _export_once(bundle: Path, tmp_path_factory: pytest.TempPathFactory, backend: BackendChoice = "auto") -> Path:
    """Export a bundle unless another worker of this run has done so."""
    from export.repository import export_repository

    root = tmp_path_factory.getbasetemp()
    shared = root.parent if root.name.startswith("popen-gw") else root  # of all workers
    with (shared / f"{bundle.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return export_repository(bundle, shared / "repositories" / bundle.name, backend).folder
