"""Who may import whom: each room is imported in a process of its own, and then looked at from inside."""

import json
import subprocess
import sys

import pytest

# what is imported -> top-level packages that must not come along
RULES = {
    "diffsplat_client": ("torch", "tritonclient", "rich", "PIL", "diffsplat"),
    "diffsplat_client.client": ("torch", "rich", "PIL", "diffsplat"),
    "diffsplat_client.cli": ("torch", "diffsplat"),
    "diffsplat.pipeline": ("training", "export", "tritonclient", "benchmarks"),
    "diffsplat.bundle": ("training", "export", "tritonclient", "benchmarks"),
    "diffsplat.stages.encode": ("diffusers", "transformers", "training", "export", "tritonclient"),
    "diffsplat.stages.denoise": ("diffusers", "transformers", "training", "export", "tritonclient"),
    "diffsplat.stages.decode": ("diffusers", "transformers", "training", "export", "tritonclient"),
    "diffsplat.stages.rasterize": ("diffusers", "transformers", "training", "export", "tritonclient"),
    "diffsplat.stages.package": ("torch", "training", "export", "tritonclient"),  # starts at once
    "diffsplat.serving.engine.engine": ("torch", "training", "export", "tritonclient"),
    "diffsplat.serving.server.server": ("torch", "training", "export", "tritonclient", "pytriton"),
    "diffsplat.serving.edge.service": ("torch", "training", "export", "opentelemetry", "aiohttp"),
    "diffsplat.serving.prerequisites": ("torch", "numpy"),
    "diffsplat.networks": ("diffusers", "transformers", "training", "export"),  # until one is built that needs them
    "export": ("training",),
}


# `python -c PROGRAM MODULE ...`: each module is imported in a fork, those after "torch" in forks that have it
PROGRAM = """
import importlib, json, os, sys
for module in sys.argv[1:]:
    if module == "torch":
        import torch
    elif (pid := os.fork()) == 0:
        importlib.import_module(module)
        print(json.dumps([module, sorted({name.partition(".")[0] for name in sys.modules})]), flush=True)
        os._exit(0)
    else:
        os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """Module -> packages that are loaded once it was imported. Importing torch takes seconds: once for all that may."""
    without = [module for module, unwanted in RULES.items() if "torch" in unwanted]
    others = [module for module in RULES if module not in without]
    command = [sys.executable, "-c", PROGRAM, *without, "torch", *others]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and not run.stderr, run.stderr
    return {module: set(packages) for module, packages in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize("module", RULES)
def test_a_room_brings_no_more_than_it_may(module: str, loaded: dict[str, set[str]]) -> None:
    unwanted = loaded[module] & set(RULES[module])
    assert not unwanted, f"importing {module} loads {', '.join(sorted(unwanted))}"
