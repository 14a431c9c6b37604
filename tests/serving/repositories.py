"""Repositories that start faster: a process of a stage imports torch, which takes seconds."""

import os
import re
import shutil
from pathlib import Path


def use_one_process_per_stage(repository: Path) -> Path:
    """Edit the configurations as an operator may; `repository` itself, for a caller that goes on."""
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text()
        config.unlink()  # it may be a link to another repository's
        config.write_text(re.sub(r"count: \d+", "count: 1", text))
    return repository


def link_small_repository(repository: Path, folder: Path) -> Path:
    """A copy in links that starts one process per stage. Files may be replaced in it, not changed."""
    return use_one_process_per_stage(Path(shutil.copytree(repository, folder / repository.name, copy_function=os.link)))
