"""The quality benchmark as a whole, on very small bundles with random weights: what is asked, written and returned."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.quality.__main__ import parser, run
from benchmarks.quality.bars import BARS, missed_bars
from benchmarks.quality.cases import FULL, QUICK, Amounts, all_cases, sweep_cases
from benchmarks.quality.generation import generate_views
from benchmarks.quality.measure import SWEEPS, Plan
from benchmarks.quality.ruler import RulerSize
from benchmarks.quality.sheets import write_turntables
from benchmarks.quality.truth import EVALUATION_SEED, bundle_config
from diffsplat.backbones import TextSpec
from diffsplat.bundle import Bundle, open_bundle, write_bundle
from diffsplat.networks import network_builders
from diffsplat.pipeline import Pipeline
from diffsplat.text.tokenizer import Tokenizer, train_tokenizer
from training.data.procedural.grammar import COUNTS
from training.data.procedural.held_out import HELD_OUT
from training.data.procedural.source import ProceduralSource
from training.data.procedural.synthetic import DEFAULT_CONFIG, RICH_CONFIG, vocabulary

KEYS = {
    "machine", "bundle", "digest", "grammar", "requests", "colour_accuracy", "shape_accuracy", "heldout_accuracy",
    "relations_accuracy", "pattern_accuracy", "silhouette_iou", "recon_psnr_db", "vae_psnr_db", "vae_drop_db",
    "seconds_per_asset", "size_accuracy", "count_accuracy", "splats", "surface", "psnr_db_by_side", "dead_pixels",
    "covered_area", "visible_splats", "seed_spread",
    "sweeps", "on_true_renders", "missed", "by_noun",
}  # fmt: skip
RULER = RulerSize(train=1, test=1, scenes=6, outlines=1, epochs=1)


@pytest.fixture(scope="module")
def rich_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As `tiny_bundle`, with the rich vocabulary and a lineage that says so."""
    max_tokens = 24
    tokenizer = train_tokenizer(vocabulary(RICH_CONFIG), max_tokens)
    (text,) = tiny_bundle.spec.text.encoders
    config = {**text.config, "vocab_size": Tokenizer.from_json(tokenizer).vocab_size}
    config["max_position_embeddings"] = max_tokens
    spec = dataclasses.replace(
        tiny_bundle.spec,
        name="tiny-rich",
        steps=2,
        text=TextSpec((dataclasses.replace(text, max_tokens=max_tokens, config=config),)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {name: build() for name, build in network_builders(spec).items()}
    data = ProceduralSource(0, 1, 16, config=RICH_CONFIG).identity()
    folder = tmp_path_factory.mktemp("bundles") / "tiny-rich"
    return write_bundle(folder, spec, networks, [tokenizer], {"stages": {"diffusion": {"data": data}}})


def with_data(bundle: Bundle, **data: Any) -> Bundle:
    return dataclasses.replace(bundle, lineage={"stages": {"diffusion": {"data": data}}})


def test_the_grammar_is_read_from_the_lineage(tiny_bundle: Bundle, pico_bundle: Bundle, rich_bundle: Bundle) -> None:
    assert bundle_config(pico_bundle) == bundle_config(tiny_bundle) == DEFAULT_CONFIG
    assert bundle_config(rich_bundle) == RICH_CONFIG
    first = bundle_config(with_data(tiny_bundle, grammar="rich", seed=0))  # as nano's lineage, which names no colours
    assert set(RICH_CONFIG.colours) - set(first.colours) == {"white"} and first.kind_weights[3] == 0.0
    assert not [case for case in all_cases(first, FULL) if case.words.number or "white" in case.words]
    with pytest.raises(ValueError, match="grammar = 'klingon'"):
        bundle_config(with_data(tiny_bundle, grammar="klingon"))
    with pytest.raises(ValueError, match=f"data seed {EVALUATION_SEED}"):
        bundle_config(with_data(tiny_bundle, grammar="rich", seed=EVALUATION_SEED))


def test_rich_cases_cover_every_noun_and_every_held_out_pair() -> None:
    cases = all_cases(RICH_CONFIG, FULL)
    groups: dict[str, list] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    singles = groups["shape"] + groups["object"]
    assert {case.words.shape for case in singles} == {*RICH_CONFIG.shapes, *RICH_CONFIG.composites}
    assert not {(case.words.shape, case.words.colour) for case in singles} & HELD_OUT
    assert {(case.words.shape, case.words.colour) for case in groups["held-out"]} == HELD_OUT
    assert sorted((case.words.shape, case.words.size) for case in groups["size"]) == sorted(
        (shape, size) for shape in RICH_CONFIG.shapes for size in ("small", "large")
    )
    assert all(case.words.size in case.prompt.split() for case in groups["size"])
    assert {case.words.relation for case in groups["relation"]} == set(RICH_CONFIG.relations)
    assert {case.words.pattern for case in groups["pattern"]} == {"striped", "two-tone"}
    assert {case.words.number for case in groups["count"]} == set(COUNTS)
    alone = [case for case in cases if case.group != "spread"]
    assert len({case.seed for case in alone}) == len(alone)
    known = set(vocabulary(RICH_CONFIG))
    assert all(word in known for case in cases for word in case.prompt.split())
    assert cases == all_cases(RICH_CONFIG, FULL)
    assert 50 <= len(all_cases(RICH_CONFIG, QUICK)) <= 70


def test_basic_cases_are_every_shape_in_every_colour() -> None:
    cases = all_cases(DEFAULT_CONFIG, QUICK)
    assert len(cases) == 4 * 6 * 4 and len({case.prompt for case in cases}) == 24
    assert [case.group for case in sweep_cases(cases, 9)] == ["shape"] * 9


def test_bars_decide_what_is_missed() -> None:
    good = {bar.figure: bar.limit for bar in BARS["rich"]}
    assert missed_bars(good, "rich") == []
    for bar in BARS["rich"]:
        worse = {**good, bar.figure: bar.limit + (-0.01 if bar.at_least else 0.01)}
        assert missed_bars(worse, "rich") == [bar]
        assert missed_bars({**good, bar.figure: None}, "rich") == [bar]
    assert missed_bars({"colour_accuracy": 0.9, "shape_accuracy": 0.8}, "basic") == []


def test_many_at_once_are_what_one_by_one_would_be(rich_bundle: Bundle) -> None:
    pipeline = Pipeline.from_bundle(rich_bundle)
    requests = [case.request(steps=2) for case in all_cases(RICH_CONFIG, QUICK)[:3]]
    together = generate_views(pipeline, requests, 32)
    alone = torch.cat([generate_views(pipeline, [request], 32) for request in requests])
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)


def test_a_rich_bundle_is_measured_and_its_missed_bars_are_the_exit_code(
    rich_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    amounts = Amounts(shapes=3, objects=3, held_out=2, patterns=2, relations=2, counts=2, sizes=2, spread=1)
    plan = Plan(amounts, RULER, recon_objects=2, surfaces=2, sweep_prompts=2)
    paths = {name: tmp_path / "new" / f"{name}.{end}" for name, end in (("json", "json"), ("sheet", "png"))}
    args = parser().parse_args(
        [str(rich_bundle.root), "--json", str(paths["json"]), "--sheet", str(paths["sheet"]),
         "--prompts-sheet", str(tmp_path / "prompts.png")]
    )  # fmt: skip
    assert run(args, plan, cache=tmp_path / "cache") == 1
    figures = json.loads(paths["json"].read_text())
    assert set(figures) >= KEYS
    assert figures["grammar"] == "rich" and figures["missed"]
    for name in ("colour", "shape", "heldout", "relations", "pattern", "count"):
        assert 0.0 <= figures[f"{name}_accuracy"] <= 1.0
    areas = figures["covered_area"]
    assert 0.0 < areas["true_small"] < 0.6 * areas["true_large"] < 0.6 and areas["true_accuracy"] == 1.0
    assert 0.0 <= areas["small"] <= 1.0 and 0.0 <= figures["size_accuracy"] <= 1.0
    assert figures["visible_splats"]["objects"] == sum(figures["requests"].values())
    assert 0 <= figures["visible_splats"]["median"] <= figures["visible_splats"]["most"] <= 4 * 32 * 32
    assert set(figures["sweeps"]) == set(SWEEPS)
    assert figures["seed_spread"]["seeds"] == 4
    assert 0.0 < figures["seed_spread"]["true_image_difference"] < 0.5
    assert set(figures["psnr_db_by_side"]["vae"]) == {"32", "64", "128"}
    assert figures["psnr_db_by_side"]["recon"]["32"] == figures["recon_psnr_db"]
    true = figures["grid_surface"]["true"]
    assert 0.0 < true["fuzz"] < 0.03 and 0.5 < true["fringe_px"] < 1.0
    assert figures["on_true_renders"]["counts"] >= 5 / 6
    assert figures["on_true_renders"]["relation"] == 1.0 and figures["on_true_renders"]["colour"] > 0.9
    printed = capsys.readouterr().out
    assert "true objects: done" in printed
    assert "MISSED: " in printed and "shape_accuracy at least 0.75" in printed
    for path, columns in ((paths["sheet"], 8), (tmp_path / "prompts.png", 3)):
        with Image.open(path) as image:
            assert image.width > columns * 4 * 32

    # judges are fitted once: the second run finds them and says the same
    assert len(list((tmp_path / "cache").iterdir())) == 1
    again = parser().parse_args([str(rich_bundle.root), "--json", str(paths["json"])])
    assert run(again, plan._replace(sweep_prompts=0), cache=tmp_path / "cache") == 1
    assert "true objects: done" not in capsys.readouterr().out
    repeated = json.loads(paths["json"].read_text())
    same = KEYS - {"machine", "seconds_per_asset", "sweeps", "missed"}
    assert {key: repeated[key] for key in same} == {key: figures[key] for key in same}


def test_turntables_show_all_sides(rich_bundle: Bundle, tmp_path: Path) -> None:
    write_turntables(tmp_path / "new", Pipeline.from_bundle(rich_bundle), ["a toy robot"])
    with Image.open(tmp_path / "new" / "a-toy-robot.png") as image:
        assert image.size == (6 * 512, 2 * 512)
        assert np.asarray(image).std() > 0


def test_a_bundle_of_the_basic_grammar_is_measured_by_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    args = parser().parse_args([str(tiny_bundle.root), "--json", str(tmp_path / "figures.json")])
    assert run(args, Plan(QUICK, RULER._replace(scenes=0), recon_objects=2), cache=tmp_path / "cache") == 1
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) >= KEYS and figures["grammar"] == "basic"
    assert figures["heldout_accuracy"] is figures["relations_accuracy"] is None
    assert sum(figures["requests"].values()) == 96
    assert open_bundle(tiny_bundle.root).digest == figures["digest"]
