"""Further training of one stage of a bundle, whose other networks stay as they are, into a new bundle."""

import dataclasses
from typing import Any

from diffsplat.bundle import Bundle, open_bundle
from training.config.chain import RefineConfig
from training.recipe import make_bundle, run_stage


def run_refinement(config: RefineConfig) -> Bundle:
    """Train ``config.stage`` from the weights of ``config.bundle`` and write ``<out>/bundle``.

    Raises:
        BundleError: the bundle is missing or damaged.
        ValueError: a field is out of range, the bundle has another backbone than the stage, or what was trained no
            longer fits the bundle's other networks.
        Interrupted: stopped by a signal.
    """
    bundle, stage = open_bundle(config.bundle), config.stage
    if bundle.spec.name != stage.backbone:
        raise ValueError(f"bundle = {config.bundle} is of backbone {bundle.spec.name}, not {stage.backbone}")
    out = config.out / config.name
    parents: dict[str, Any] = {parent: config.bundle for parent in stage.parents}
    stage = dataclasses.replace(
        stage,
        **parents,
        run=dataclasses.replace(stage.run, out=out, resume=config.resume),
    )
    stage.check()
    run_stage(stage)
    return make_bundle({"bundle": config.bundle, config.name: out}, config.out / "bundle")
