"""The device of a server: chosen, checked before the start, filled into the configurations, and locked.

What a card says is replaced here; the questions themselves are in tests/gpu.
"""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from diffsplat_client.contract import ENSEMBLES, MODELS

from diffsplat import backends
from diffsplat.backends import devices
from diffsplat.backends.devices import DeviceError, DeviceFacts, check_precision, device_type, find_device
from diffsplat.export_record import ExportRecord
from diffsplat.integrity import BundleError
from diffsplat.runtime import load_graph
from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.repository import placement
from diffsplat.serving.repository.copy import copy_repository, count_instances, read_configs
from diffsplat.serving.repository.placement import Placement, place
from diffsplat.serving.server.gpu_lock import lock_card
from diffsplat.serving.server.server import TritonServer

CARD = DeviceFacts("cuda:1", int(80e9), "NVIDIA H100", "uuid-of-a-card", (9, 0))
STAGES = set(MODELS) - set(ENSEMBLES)


def rewrite(repository: Path, **changes: object) -> None:
    """Change fields of the records of a repository, and of all their graphs."""
    for folder in repository.glob("*/1"):
        record = ExportRecord.parse(folder / "export.json")
        of_graphs = {name: value for name, value in changes.items() if name in ("device", "precision", "backend")}
        graphs = {
            name: dataclasses.replace(graph, candidates=(dataclasses.replace(graph.chosen, **of_graphs),), **of_graphs)
            for name, graph in record.graphs.items()
        }
        own = {name: value for name, value in changes.items() if name == "device"}
        dataclasses.replace(record, graphs=graphs, **own).write(folder)


@pytest.fixture
def for_cuda(exported_repository: Path, tmp_path: Path) -> Path:
    """A repository that says that it was exported for CUDA."""
    repository = Path(shutil.copytree(exported_repository, tmp_path / "repository"))
    rewrite(repository, device="cuda", backend="torch", precision="bf16")
    return repository


def instances(repository: Path) -> dict[str, int]:
    return count_instances(read_configs(repository))


def test_a_launcher_on_the_cpu_imports_no_back_end(exported_repository: Path) -> None:
    """Each start of a server places it, and importing torch takes seconds."""
    code = (
        "import sys; from pathlib import Path; from collections import defaultdict; "
        "from diffsplat.serving.repository.placement import place; "
        "place(Path(sys.argv[1]), 'auto', defaultdict(lambda: 1), '1'); "
        "print(*sorted({'torch', 'onnxruntime', 'openvino'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code, exported_repository], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_auto_is_what_the_repository_was_exported_for(
    exported_repository: Path, for_cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place(exported_repository, "auto", instances(exported_repository), "1").device == "cpu"
    asked = []
    monkeypatch.setattr(placement, "inspect_apart", lambda name: asked.append(name) or CARD)
    placed = place(for_cuda, "auto", instances(for_cuda), "1")
    assert (placed.device, placed.card, str(placed.facts)) == ("cuda:1", 1, "cuda:1 (NVIDIA H100)")
    place(for_cuda, "cuda:1", instances(for_cuda), "1")
    assert asked == ["cuda", "cuda:1"]


def test_a_repository_for_another_device_is_refused(exported_repository: Path, for_cuda: Path) -> None:
    for repository, device, kind in ((exported_repository, "cuda:0", "cpu"), (for_cuda, "cpu", "cuda")):
        with pytest.raises(ServerStartError, match=f"exported for {kind}, not for {device}: .*--device {device}`$"):
            TritonServer(repository, device=device).start()
    with pytest.raises(BundleError, match="exported for cpu, not for cuda"):
        find_cuda = pytest.MonkeyPatch()
        with find_cuda.context() as patch:
            patch.setattr(devices, "cuda_count", lambda: 1)
            load_graph(exported_repository / "decode" / "1", "decoder", threads=1, device="cuda")
    with pytest.raises(ServerStartError, match="device 'gpu': must be cpu, cuda or cuda:N"):
        TritonServer(exported_repository, device="gpu").start()


def test_a_machine_without_cuda_says_how_to_export_for_it(for_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real question, in a process that sees no card."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = "(this torch was built without CUDA|torch finds no CUDA device)"
    with pytest.raises(ServerStartError, match=f"device 'cuda': {said}; use cpu; export again with .*--device cpu`"):
        TritonServer(for_cuda).start()


def test_devices_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [device_type(name) for name in ("cpu", "cuda", "cuda:12")] == ["cpu", "cuda", "cuda"]
    monkeypatch.setattr(devices, "cuda_count", lambda: 2)
    assert (str(find_device("cuda")), str(find_device("cuda:1")), str(find_device("cpu"))) == (
        "cuda:0",
        "cuda:1",
        "cpu",
    )
    with pytest.raises(DeviceError, match=re.escape("device 'cuda:3': there are 2, cuda:0 .. cuda:1")):
        find_device("cuda:3")
    for name in ("", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "auto"):
        with pytest.raises(DeviceError, match="must be cpu, cuda or cuda:N"):
            find_device(name)


def test_bf16_needs_a_card_that_has_it(for_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = dataclasses.replace(CARD, card="Tesla T4", capability=(7, 5))
    said = r"bf16: cuda:1 \(Tesla T4\) has compute capability 7.5, bf16 needs 8.0 or newer; use fp16 or fp32"
    monkeypatch.setattr(placement, "inspect_apart", lambda name: old)
    with pytest.raises(ServerStartError, match=said):
        place(for_cuda, "auto", instances(for_cuda), "1")
    check_precision(old, "fp16")
    check_precision(dataclasses.replace(old, capability=(8, 0)), "bf16")


def test_too_little_memory_is_told_in_numbers(for_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven processes on the card take half a gigabyte each, and the tiny weights next to nothing."""
    full = dataclasses.replace(CARD, free_bytes=int(3.1e9))
    monkeypatch.setattr(placement, "inspect_apart", lambda name: full)
    said = r"serving it needs about 3.5\d GB of memory, and cuda:1 \(NVIDIA H100\) has 3.10 GB free"
    with pytest.raises(ServerStartError, match=said):
        place(for_cuda, "auto", instances(for_cuda), "1")
    assert place(for_cuda, "auto", dict.fromkeys(STAGES, 0), "1").needed_bytes == 0


def test_the_memory_of_this_machine_is_read() -> None:
    assert 0 < devices.host_free_bytes() < 2**50


def test_a_back_end_that_is_not_installed_is_named_with_its_extra(
    exported_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Path(shutil.copytree(exported_repository, tmp_path / "repository"))
    rewrite(repository, backend="onnxruntime", precision="fp32")
    lacking = dataclasses.replace(
        backends.BACKENDS["onnxruntime"],
        packages=("a_package_that_nobody_has",),
        extras={"cpu": "some-extra"},
        checks={},
    )
    monkeypatch.setitem(backends.BACKENDS, "onnxruntime", lacking)
    said = r"was exported for onnxruntime: a_package_that_nobody_has is not installed: .*diffsplat-triton\[some-extra\]"
    with pytest.raises(ServerStartError, match=said):
        TritonServer(repository).start()
    with pytest.raises(BundleError, match=said):
        load_graph(repository / "decode" / "1", "decoder", threads=1)


def test_one_card_has_one_server(tmp_path: Path) -> None:
    """The lock is the process's: it is free again once its holder was killed."""
    program = (
        "import sys, time; from pathlib import Path; from diffsplat.serving.server.gpu_lock import lock_card\n"
        "lock_card('a', 'cuda:0', 'diffsplat serve build/nano (process 7)', Path(sys.argv[1]))\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        said = r"cuda:0 \(a card\) is in use by diffsplat serve build/nano \(process 7\): stop that server, or choose"
        with pytest.raises(ServerStartError, match=said):
            lock_card("a", "cuda:0 (a card)", "me", tmp_path)
        lock_card("b", "cuda:1", "me", tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    lock_card("a", "cuda:0", "me", tmp_path)


def test_configurations_are_filled_in_for_a_card(exported_repository: Path, tmp_path: Path) -> None:
    copy_repository(
        exported_repository, tmp_path / "copy", read_configs(exported_repository), Placement(CARD, needed_bytes=0), "1"
    )
    configs = read_configs(tmp_path / "copy")
    assert set(configs) == set(MODELS)
    for name, config in configs.items():
        device = config.parameters["device"].string_value
        if name in ENSEMBLES:
            assert device == "cuda:1 (NVIDIA H100)"
            continue
        (group,) = config.instance_group
        if name == "package":
            assert group.kind == group.KIND_CPU and not group.gpus and not device
        else:
            assert group.kind == group.KIND_GPU and list(group.gpus) == [1] and device == "cuda:1"
            from_device = config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value
            assert from_device == ("no" if name in ("decode", "rasterize") else "")
        assert (tmp_path / "copy" / name / "1" / "model.py").read_bytes()  # files are reached through the copy


def test_configurations_for_the_cpu_stay_as_they_are(exported_repository: Path, tmp_path: Path) -> None:
    originals = read_configs(exported_repository)
    placed = place(exported_repository, "cpu", count_instances(originals), "1")
    copy_repository(exported_repository, tmp_path / "copy", read_configs(exported_repository), placed, "1")
    for name, config in read_configs(tmp_path / "copy").items():
        if name != "package":
            assert config.parameters["device"].string_value == "cpu"
            del config.parameters["device"]
        if name not in ENSEMBLES:
            assert list(originals[name].version_policy.specific.versions) == [1]
            config.version_policy.CopyFrom(originals[name].version_policy)  # the copy has no other version
        assert config == originals[name]


def test_an_instance_group_that_names_cards_is_kept(exported_repository: Path, tmp_path: Path) -> None:
    """Whoever spreads a stage over two cards by hand knows why."""
    configs = read_configs(exported_repository)
    (group,) = configs["encode"].instance_group
    group.kind, group.gpus[:] = group.KIND_GPU, [0, 1]
    copy_repository(exported_repository, tmp_path / "copy", configs, Placement(CARD, needed_bytes=0), "1")
    assert list(read_configs(tmp_path / "copy")["encode"].instance_group[0].gpus) == [0, 1]


def test_a_configuration_that_is_none_is_named(exported_repository: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(exported_repository, tmp_path / "repository"))
    (repository / "decode" / "config.pbtxt").write_text("name: ")
    with pytest.raises(ServerStartError, match="decode/config.pbtxt: not a valid model configuration"):
        TritonServer(repository).start()


def test_the_record_says_what_each_graph_takes(exported_repository: Path) -> None:
    graphs = ExportRecord.read(exported_repository / "denoise" / "1").graphs
    for graph in graphs.values():
        assert graph.chosen.memory_mb is not None and graph.chosen.memory_mb > 0
    assert json.loads((exported_repository / "denoise" / "1" / "export.json").read_text())["device"] == "cpu"
