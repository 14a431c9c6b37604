"""Who may import whom: each room is imported in a process of its own, and then looked at from inside."""

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
    "diffsplat.serving.engine": ("torch", "training", "export", "tritonclient"),
    "diffsplat.serving.server": ("torch", "training", "export", "tritonclient", "pytriton"),
    "diffsplat.serving.prerequisites": ("torch", "numpy"),
    "diffsplat.networks": ("diffusers", "transformers", "training", "export"),  # until one is built that needs them
    "export": ("training",),
}


@pytest.mark.parametrize("module", RULES)
def test_a_room_brings_no_more_than_it_may(module: str) -> None:
    code = f"import {module}, sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    unwanted = set(run.stdout.split()) & set(RULES[module])
    assert not unwanted, f"importing {module} loads {', '.join(sorted(unwanted))}"
