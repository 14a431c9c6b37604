"""A server's own view of a repository: its files, and configurations filled in for the device that it serves on.

The exported `config.pbtxt` say KIND_CPU. For a card, the instances of the stages that compute go to it, and those that
read tensors of another stage take them from its memory.
"""

from pathlib import Path
from typing import Any

from diffsplat_client.contract import ENSEMBLES

from diffsplat.serving.placement import ON_DEVICE, Placement
from diffsplat.serving.wheel import ServerStartError

TAKES_DEVICE_TENSORS = ("decode", "rasterize")  # their large inputs come from a stage on the same card
CONFIG = "config.pbtxt"


def read_configs(repository: Path) -> dict[str, Any]:
    """Model -> its `ModelConfig`. ServerStartError names a file that is not one."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    configs = {}
    for path in sorted(repository.glob(f"*/{CONFIG}")):
        try:
            configs[path.parent.name] = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise ServerStartError(f"{path}: not a valid model configuration: {error}") from None
    return configs


def count_instances(configs: dict[str, Any]) -> dict[str, int]:
    """Model -> number of its processes."""
    return {name: sum(max(group.count, 1) for group in config.instance_group) or 1 for name, config in configs.items()}


def copy_repository(repository: Path, folder: Path, configs: dict[str, Any], placement: Placement) -> None:
    """Make `folder` a repository of links to the files of another, with configurations filled in.

    Args:
        repository: folder written by `python -m export`.
        folder: to be created.
        configs: of its models; they are changed.
        placement: where it is served.
    """
    from google.protobuf import text_format

    folder.mkdir()
    for name, config in configs.items():
        (folder / name).mkdir()
        for path in (repository / name).iterdir():
            if path.name != CONFIG:
                (folder / name / path.name).symlink_to(path)
        fill_config(name, config, placement)
        (folder / name / CONFIG).write_text(text_format.MessageToString(config))


def fill_config(name: str, config: Any, placement: Placement) -> None:
    """Tell a model its device, and place its processes there. An instance group that names cards stays as it is."""
    if name in ENSEMBLES:
        config.parameters["device"].string_value = str(placement.facts)
        return
    if name not in ON_DEVICE:
        return
    config.parameters["device"].string_value = placement.device
    if placement.card is None:
        return
    for group in config.instance_group:
        if group.kind != group.KIND_GPU:
            group.kind = group.KIND_GPU
            group.gpus[:] = [placement.card]
    if name in TAKES_DEVICE_TENSORS:
        config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
