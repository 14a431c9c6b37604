"""docs/reference_options.md names flags that exist, every option of a request, and the defaults that are served."""

import argparse
import re
from pathlib import Path

import pytest
from diffsplat_client.cli import Parser
from diffsplat_client.commands import generate
from diffsplat_client.request import OPTIONS

from diffsplat.backbones import BACKBONES, image_conditioned

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference_options.md"


def rows(title: str) -> list[list[str]]:
    """Cells of the first table below a headline, without its head."""
    section = PAGE.read_text("utf-8").split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_flags_of_generate_are_those_of_the_page() -> None:
    parser = Parser()
    generate.add_command(parser.add_subparsers())
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    flags = {flag for action in commands.choices["generate"]._actions for flag in action.option_strings}
    named = {flag for row in rows("Per request") for flag in re.findall(r"--[a-z-]+", " ".join(row))}
    assert named <= flags
    connection = {"--url", "--timeout-s", "--token-file", "--tls", "--ca-certificate", "--client-certificate"}
    assert flags - named == connection | {"-h", "--help", "-o", "--viewer", "--no-viewer"}


def test_every_option_of_a_request_is_on_the_page() -> None:
    text = PAGE.read_text("utf-8")
    no_flags = {"prompt", "frame_poses"}
    assert [name for name in set(OPTIONS) - no_flags if f"--{name.replace('_', '-')}" not in text] == []


def test_defaults_of_the_request_are_those_of_the_page() -> None:
    defaults = {flag: row[2] for row in rows("Per request") for flag in re.findall(r"--[a-z-]+", row[1])}
    for flag in ("--border-ratio", "--min-guidance-scale", "--control-scale", "--init-noise-strength", "--render-size"):
        name = "frame_size" if flag == "--render-size" else flag[2:].replace("-", "_")
        assert float(defaults[flag]) == OPTIONS[name].default


@pytest.mark.parametrize("row", rows("Defaults per backbone"), ids=lambda row: row[0])
def test_defaults_of_a_backbone_are_those_of_the_page(row: list[str]) -> None:
    name, scheduler, steps, guidance, image_guidance, eta, elevation, distance, schedulers = row
    spec = BACKBONES[name]
    assert (spec.scheduler, spec.steps, spec.guidance_scale) == (scheduler, int(steps), float(guidance))
    assert (spec.eta, spec.elevation_deg, spec.distance) == (float(eta), float(elevation), float(distance))
    assert set(spec.schedule.schedulers) == set(schedulers.split(", "))
    with_image = image_conditioned(spec)
    assert with_image.guidance_scale == float(image_guidance) and with_image.elevation_deg is None


def test_every_published_backbone_is_on_the_page() -> None:
    own = {"pico", "nano"}
    assert {row[0] for row in rows("Defaults per backbone")} == {n for n in BACKBONES if not n.endswith("_image")} - own
