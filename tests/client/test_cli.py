"""The command line over a scripted transport: files, exit codes, one line per failure, no partial files."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import CONTRACT_VERSION, read_ply
from diffsplat_client.cli import main
from diffsplat_client.commands import artifacts
from diffsplat_client.commands.jobs import MAX_SLUG_CHARACTERS, slug
from diffsplat_client.transport import TransportError


@pytest.fixture
def last(fakes):
    """The last response for a request of four views and three turntable frames of 32 pixels."""
    frames = np.random.default_rng(0).integers(0, 255, (7, 32, 32, 3), np.uint8)
    return fakes.finished(FRAMES=frames)


def generate(out: Path, *more: str, prompt: str = "a red cube") -> int:
    fixed = ["--url=host:1", f"--out={out}", "--turntable-frames=3", "--frame-size=32"]
    return main(["generate", prompt, *fixed, *more])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("diffsplat: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


def test_generate_writes_its_files_and_says_where_time_went(fakes, serve_fake, last, tmp_path, capsys) -> None:
    fake = serve_fake(fakes.transport(fakes.status("queued"), fakes.status("denoising", 1, seconds_left=0.2), last))
    options = ["--seed=5", "--steps=3", "--scheduler=ddim", "--guidance-scale=2.5", "--negative-prompt=blue"]
    assert generate(tmp_path, *options, "--elevation-deg=-20", "--distance=2", "--triangle-guidance") == 0
    folder = tmp_path / "a-red-cube"
    assert sorted(path.name for path in folder.iterdir()) == [
        "generation.json",
        "splats.ply",
        "turntable.mp4",
        "viewer.html",
        "views.png",
    ]
    assert list(tmp_path.iterdir()) == [folder]
    np.testing.assert_allclose(read_ply(folder / "splats.ply").positions, fakes.splats()[:, :3])

    from PIL import Image

    with Image.open(folder / "views.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.concatenate(list(last["FRAMES"][:4]), axis=1))
    (plain := tmp_path.parent / "plain").touch()  # with the mode that the umask gives any file
    assert {path.stat().st_mode for path in folder.iterdir()} == {plain.stat().st_mode}
    assert b"ftyp" in (folder / "turntable.mp4").read_bytes()[:16]
    assert "<title>a red cube</title>" in (folder / "viewer.html").read_text("utf-8")

    description = json.loads((folder / "generation.json").read_text("utf-8"))
    assert description["seed"] == 7 and description["splats"] == 5 and description["timings_ms"]["denoise"] == 30
    assert description["request"]["negative_prompt"] == "blue"
    assert description["versions"]["contract"] == CONTRACT_VERSION
    assert description["versions"]["server"]["bundle"] == "pico"

    ((_, tensors, _, _),) = fake.calls
    sent = {name: tensor.reshape(-1)[0] for name, tensor in tensors.items()}
    assert sent["SEED"] == 5 and sent["SCHEDULER"] == b"ddim" and sent["GUIDANCE_SCALE"] == 2.5 and sent["STEPS"] == 3
    assert sent["TRIANGLE_GUIDANCE"] and sent["ELEVATION_DEG"] == -20 and sent["DISTANCE"] == 2
    poses = tensors["FRAME_POSES"]
    assert poses.shape == (7, 4) and (poses[:, 0] == -20).all() and (poses[:, 2] == 2).all()

    captured = capsys.readouterr()
    for word in ("encode", "denoise", "30.0", "total", "seed 7", str(folder / "turntable.mp4")):
        assert word in captured.out
    assert "warning: prompt cut" in captured.err


def test_a_second_result_stands_beside_the_first(fakes, serve_fake, last, tmp_path, capsys) -> None:
    for expected in ("a-red-cube", "a-red-cube-2", "a-red-cube-3"):
        serve_fake(fakes.transport(last))
        assert generate(tmp_path, "--no-viewer") == 0
        assert str(tmp_path / expected / "splats.ply") in capsys.readouterr().out
        assert len(list((tmp_path / expected).iterdir())) == 4
    assert len(list(tmp_path.iterdir())) == 3


def test_overwrite_replaces_a_result_and_leaves_nothing_of_it(fakes, serve_fake, last, tmp_path) -> None:
    serve_fake(fakes.transport(last))
    assert generate(tmp_path) == 0
    folder = tmp_path / "a-red-cube"
    (folder / "notes.txt").write_text("mine")
    serve_fake(fakes.transport(last))
    assert generate(tmp_path, "--overwrite", "--no-viewer", "--video=gif") == 0
    assert list(tmp_path.iterdir()) == [folder]
    names = ["generation.json", "notes.txt", "splats.ply", "turntable.gif", "views.png"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_result_without_splats_is_a_warning_and_a_failure(fakes, serve_fake, last, tmp_path, capsys) -> None:
    last["GAUSSIANS"] = np.zeros((0, 14), np.float32)
    serve_fake(fakes.transport(last))
    assert generate(tmp_path, "--no-viewer", "--opacity-threshold-asset=1") == 1
    says = "the result has 0 splats: none is more opaque than opacity_threshold_asset = 1"
    assert f"warning: {says}" in capsys.readouterr().err
    (tmp_path / "prompts").write_text("a red cube")
    serve_fake(fakes.transport(last))
    options = [f"--out={tmp_path / 'batch'}", "--no-viewer", "--turntable-frames=3", "--frame-size=32"]
    more = [f"--prompt-file={tmp_path / 'prompts'}", "--opacity-threshold-asset=1"]
    assert main(["generate", "--url=host:1", *options, *more]) == 1
    err = capsys.readouterr().err
    assert f"warning: [1/1] a-red-cube: {says}" in err and "1 of 1 failed: a-red-cube" in err


def test_no_film_no_viewer_and_the_servers_own_file(fakes, serve_fake, last, tmp_path) -> None:
    last["FRAMES"] = last["FRAMES"][:4]
    last |= fakes.files(ply=b"ply of the server", spz=b"spz", splat=b"splat")
    serve_fake(fakes.transport(last))
    assert generate(tmp_path, "--turntable-frames=0", "--no-viewer", "--format=ply,spz", "--formats=splat") == 0
    folder = tmp_path / "a-red-cube"
    assert sorted(path.name for path in folder.iterdir()) == [
        "generation.json",
        *("splats.ply", "splats.splat", "splats.spz", "views.png"),
    ]
    assert (folder / "splats.ply").read_bytes() == b"ply of the server"
    assert (folder / "splats.spz").read_bytes() == b"spz"


def test_previews_are_written_and_the_page_plays_them(fakes, serve_fake, last, tmp_path, monkeypatch) -> None:
    played: list[int] = []
    monkeypatch.setattr(
        "diffsplat_client.commands.artifacts.write_viewer",
        lambda path, cloud, *_, previews, **__: played.extend(map(len, [*previews, cloud])) or path.touch(),
    )
    shown = [
        {**fakes.status("denoising", step, previews=number), "PREVIEW": fakes.splats(2 + number)}
        for number, step in enumerate((1, 2), 1)
    ]
    fake = serve_fake(fakes.transport(*shown, last))
    assert generate(tmp_path, "--previews", str(tmp_path / "shown")) == 0
    ((_, sent, _, _),) = fake.calls
    assert sent["PREVIEW_EVERY"] == [5]
    files = {path.name: len(read_ply(path)) for path in (tmp_path / "shown").iterdir()}
    assert files == {"a-red-cube-001.ply": 3, "a-red-cube-002.ply": 4}
    assert played == [3, 4, len(last["GAUSSIANS"])]


def test_each_seed_has_its_folder(fakes, serve_fake, last, tmp_path, capsys) -> None:
    def result(index: int) -> dict:
        stages = {f"INDEX_{stage}": np.array([index], np.int32) for stage in ("RASTERIZE", "PACKAGE")}
        return {**last, **fakes.status("finished", 3, index=index, results=2, seed=7 + index), **stages}

    serve_fake(fakes.transport(result(1), result(0)))
    assert generate(tmp_path, "--no-viewer", "--num-seeds=2") == 0
    for index in (0, 1):
        description = json.loads((tmp_path / f"a-red-cube-{index}" / "generation.json").read_text("utf-8"))
        assert description["seed"] == 7 + index and description["request"]["num_seeds"] == 2
    assert "seed 7" in (out := capsys.readouterr().out) and "seed 8" in out


def test_the_published_file_lies_beside_the_one_that_viewers_show(fakes, serve_fake, last, tmp_path) -> None:
    last |= fakes.files(ply_compat=b"the published bytes")
    serve_fake(fakes.transport(last))
    assert generate(tmp_path, "--no-viewer", "--format=ply_compat") == 0
    folder = tmp_path / "a-red-cube"
    assert (folder / "splats_compat.ply").read_bytes() == b"the published bytes"
    assert len(read_ply(folder / "splats.ply")) == len(last["GAUSSIANS"])
    assert "splats_compat.ply" in json.loads((folder / "generation.json").read_text("utf-8"))["files"]


def test_a_missing_extra_is_named_before_anything_is_asked_for(
    fakes, serve_fake, last, tmp_path, capsys, monkeypatch
) -> None:
    fake = serve_fake(fakes.transport(last))
    monkeypatch.setitem(sys.modules, "viser", None)
    assert generate(tmp_path) == 1
    assert "viser is not installed: pip install 'diffsplat-client[grpc,cli,viewer,formats]'" in one_line(capsys)
    assert not fake.calls and not list(tmp_path.iterdir())
    assert generate(tmp_path, "--no-viewer") == 0


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--steps=500"], 2, "steps = 500: must be in 1 .. 200"),
        (["--steps=many"], 2, "--steps: invalid int value: 'many'"),
        (["--scheduler=euler"], 2, "scheduler = 'euler': must be one of"),
        (["--guidance-scale=nan"], 2, "guidance_scale = nan"),
        (["--turntable-frames=-1"], 2, "turntable_frames = -1: must be in 0 .. 716"),
        (["--turntable-frames=100000"], 2, "turntable_frames = 100000"),
        (["--timeout-s=0"], 2, "timeout_s = 0"),
        (["--url=nowhere"], 2, "url = 'nowhere'"),
        (["--unknown"], 2, "unrecognized arguments: --unknown"),
    ],
)
def test_bad_options_are_one_line(fakes, serve_fake, tmp_path, capsys, options, code, says) -> None:
    fake = serve_fake(fakes.transport())
    assert generate(tmp_path, *options) == code
    assert says in one_line(capsys)
    assert not fake.calls and not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [[], ["sing"], ["generate"], ["generate", ""]])
def test_bad_commands_are_one_line(argv, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    one_line(capsys)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (TransportError("UNAVAILABLE", "Socket closed"), 1, "host:1 went away"),
        (TransportError("INVALID_ARGUMENT", "scheduler = 'flow': pico knows\nddim"), 2, "pico knows ddim"),
        (TransportError("DEADLINE_EXCEEDED", ""), 1, "timeout_s"),
        (TransportError("INTERNAL", "decode failed"), 1, "decode failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_during_the_request_are_one_line_and_leave_nothing(
    fakes, serve_fake, tmp_path, capsys, error, code, says
) -> None:
    fake = serve_fake(fakes.transport(fakes.status("denoising", 1), error))
    assert generate(tmp_path) == code
    assert says in one_line(capsys)
    assert not list(tmp_path.iterdir())
    assert bool(fake.stopped) == (code == 130 or "timeout" in says or "decode" in says)


def test_failures_before_the_request_are_one_line(fakes, serve_fake, tmp_path, capsys) -> None:
    fake = serve_fake(fakes.transport())
    fake.config = {"contract_version": "999"}
    assert generate(tmp_path) == 1
    assert "contract version 999" in one_line(capsys)
    (tmp_path / "file").touch()
    assert generate(tmp_path / "file") == 1
    assert "file" in one_line(capsys)


def test_ctrl_c_while_files_are_written_leaves_the_old_ones(
    fakes, serve_fake, last, tmp_path, capsys, monkeypatch
) -> None:
    serve_fake(fakes.transport(last))
    assert generate(tmp_path, "--no-viewer") == 0
    folder = tmp_path / "a-red-cube"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()

    def interrupted(path: Path, frames: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "write_video", interrupted)
    serve_fake(fakes.transport({**last, "GAUSSIANS": fakes.splats(9)}))
    assert generate(tmp_path) == 130
    assert "interrupted" in one_line(capsys)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_sigterm_stops_the_request(fakes, serve_fake, tmp_path) -> None:
    class Terminating(fakes.transport):  # the signal arrives while the client waits for a response
        def stream(self, model, tensors, request_id, timeout_s, version="", parameters=None):
            if model == "diffsplat":
                signal.raise_signal(signal.SIGTERM)
            return super().stream(model, tensors, request_id, timeout_s, version, parameters)

    before = signal.getsignal(signal.SIGTERM)
    serve_fake(Terminating(block=True))
    with pytest.raises(SystemExit) as caught:
        generate(tmp_path)
    assert caught.value.code == 143
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) == before


def test_status_tells_readiness_models_and_contract(fakes, serve_fake, capsys) -> None:
    fake = serve_fake(fakes.transport())
    assert main(["status", "--url", "host:1"]) == 0
    out = capsys.readouterr().out
    assert "host:1: ready" in out and f"contract: {CONTRACT_VERSION}\n" in out and "bundle: pico" in out
    assert "diffsplat    version 1   READY" in out
    fake.config = {"contract_version": "999"}
    assert main(["status", "--url", "host:1"]) == 1
    assert f"contract: 999 (this client speaks {CONTRACT_VERSION})" in capsys.readouterr().out
    fake.config = {"contract_version": str(CONTRACT_VERSION)}
    fake.stage_faults["decode"] = TransportError("UNKNOWN", "Stub process\nis dead")
    assert main(["status", "--url", "host:1"]) == 1
    out = capsys.readouterr().out
    assert "host:1: not ready" in out and "decode       version 1   UNAVAILABLE (Stub process is dead)" in out
    fake.ready = False
    assert main(["status", "--url", "host:1"]) == 1
    assert "UNAVAILABLE (bundle is damaged)" in capsys.readouterr().out
    fake.ready = TransportError("UNAVAILABLE", "refused")
    assert main(["status", "--url", "host:1"]) == 1
    assert "no server answers" in one_line(capsys)


@pytest.mark.parametrize("command", [["status"], ["generate", "x"]])
def test_the_real_thing_without_a_server(command, tmp_path) -> None:
    """A separate process, real gRPC, a port where nothing listens: one line, exit code 1."""
    done = subprocess.run(
        [sys.executable, "-m", "diffsplat_client.cli", *command, "--url", "127.0.0.1:1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "no server answers at 127.0.0.1:1" in done.stderr


def test_commands_of_other_distributions_load_only_when_asked_for(monkeypatch, capsys) -> None:
    loaded = []

    class Entry:
        name, value, dist = "shout", "loud:command", None

        def load(self):
            loaded.append(self.name)

            def add(commands):
                parser = commands.add_parser("shout")
                parser.add_argument("word")
                parser.set_defaults(run=lambda args: print(args.word.upper()))

            return add

    monkeypatch.setattr("diffsplat_client.cli.entry_points", lambda group: [Entry()])
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and "shout" in capsys.readouterr().out and not loaded
    assert main(["shout", "hey"]) == 0
    assert capsys.readouterr().out == "HEY\n" and loaded == ["shout"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red cube", "a-red-cube"),
        ("  A  Red, CUBE!! ", "a-red-cube"),
        ("../../etc/passwd", "etc-passwd"),
        ("ein Würfel 红色", "ein-würfel-红色"),
    ],
)
def test_slugs(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_odd_prompts_have_a_slug_of_their_own() -> None:
    long = [slug("word " * 50 + end) for end in ("a", "b")]
    assert long[0] != long[1] and all(len(name) <= MAX_SLUG_CHARACTERS for name in long)
    assert slug("!!!") != slug("???") and slug("!!!") and "/" not in slug("/")
