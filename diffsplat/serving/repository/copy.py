"""A server's own view of a repository: its files, and configurations filled in for the device that it serves on.

The exported `config.pbtxt` say KIND_CPU. For a card, the instances of the stages that compute go to it, and those that
read tensors of another stage take them from its memory.

The copy holds the folders of the versions that the server shall have, by links: one, or two while it changes over from
one to another (`supervisor/version_switch.py`). Triton loads what is new among them and leaves alone what it has.
"""

import contextlib
import os
import py_compile
import tempfile
from pathlib import Path
from typing import Any

from diffsplat_client.contract import ENSEMBLES

from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.repository.placement import ON_DEVICE, Placement
from diffsplat.serving.repository.versions import CONFIG, configs_of

TAKES_DEVICE_TENSORS = ("decode", "rasterize")  # their large inputs come from a stage on the same card
_ENSEMBLE_VERSION = "1"  # an ensemble is replaced in place: it has no files, and names the versions of its stages


def read_configs(repository: Path, version: str | None = None) -> dict[str, Any]:
    """Model -> its `ModelConfig`, of a version or of the one that is served. ServerStartError names a broken file."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    configs = {}
    for model, path in configs_of(repository, version).items():
        try:
            configs[model] = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise ServerStartError(f"{path}: not a valid model configuration: {error}") from None
    return configs


def count_instances(configs: dict[str, Any]) -> dict[str, int]:
    """Model -> number of its processes."""
    return {name: sum(max(group.count, 1) for group in config.instance_group) or 1 for name, config in configs.items()}


class RepositoryCopy:
    """A repository of links to the files of another one, with configurations filled in; `copy_repository` makes it.

    Args:
        repository: folder written by `python -m export`.
        folder: to be created.
        placement: where it is served.
    """

    def __init__(self, repository: Path, folder: Path, placement: Placement) -> None:
        self.repository = repository
        self.folder = folder
        self._placement = placement
        folder.mkdir()

    def add_stage(self, name: str, version: str) -> None:
        """Hold a version of a stage; another one that is held already stays.

        Its model.py is compiled here: if its process did so, Triton would find the folder changed, and load it again at
        the next occasion.
        """
        source = self.repository / name / version
        (self.folder / name / version).symlink_to(source)
        with contextlib.suppress(OSError, py_compile.PyCompileError):  # read-only; or it does not load, and says why
            py_compile.compile(str(self.folder / name / version / "model.py"), doraise=True)

    def drop_stage(self, name: str, version: str) -> None:
        """Hold a version of a stage no longer."""
        (self.folder / name / version).unlink(missing_ok=True)

    def renew_stage(self, name: str) -> None:
        """Let a stage look changed, so that Triton, when it looks at it again, starts new processes for it."""
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2

        config = text_format.Parse((self.folder / name / CONFIG).read_text(), model_config_pb2.ModelConfig())
        loads = config.parameters["loads"]
        loads.string_value = str(int(loads.string_value or 1) + 1)
        self.write_config(name, config)

    def write_config(self, name: str, config: Any) -> None:
        """Replace the configuration of a model; `config` is changed."""
        from google.protobuf import text_format

        fill_config(name, config, self._placement)
        if is_ensemble(config):
            (self.folder / name / _ENSEMBLE_VERSION).mkdir(parents=True, exist_ok=True)
        elif config.version_policy.HasField("specific"):
            # All that are held here. With this the file never changes, and Triton loads what is new and nothing else.
            config.version_policy.all.SetInParent()
        with tempfile.NamedTemporaryFile("w", dir=self.folder / name, delete=False) as file:
            file.write(text_format.MessageToString(config))
        os.replace(file.name, self.folder / name / CONFIG)


def copy_repository(
    repository: Path, folder: Path, configs: dict[str, Any], placement: Placement, version: str
) -> RepositoryCopy:
    """A copy with one version of every stage; of a stage whose configuration names no version, with every file."""
    copy = RepositoryCopy(repository, folder, placement)
    for name, config in configs.items():
        (folder / name).mkdir()
        if not is_ensemble(config):
            named = config.version_policy.HasField("specific")
            for path in (repository / name).iterdir():
                if path.name != CONFIG and (not named or path.name == version):
                    copy.add_stage(name, path.name)
        copy.write_config(name, config)
    return copy


def find_chains(configs: dict[str, Any]) -> dict[str, frozenset[str]]:
    """Model -> the stages that a request to it passes: those that an ensemble connects; of a stage, itself."""
    return {
        name: frozenset(step.model_name for step in config.ensemble_scheduling.step) or frozenset([name])
        for name, config in configs.items()
    }


def version_of(ensemble: Any) -> str:
    """The version that an ensemble serves; "1" where its configuration names none."""
    return ensemble.parameters["version"].string_value if "version" in ensemble.parameters else "1"


def is_ensemble(config: Any) -> bool:
    """Whether a model only connects others."""
    return bool(config.HasField("ensemble_scheduling"))


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
