"""`diffsplat generate` from images, prompt files and folders over a scripted transport; kinds of films."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from diffsplat_client.cli import main
from diffsplat_client.request_checks import MAX_IMAGE_BYTES
from diffsplat_client.transport import TransportError

IMAGE = b"\x89PNG of the client's tests, which does not look inside\0"


@pytest.fixture
def answering(fakes):
    """A transport that answers every request with an object, unless a word of the prompt says how it ends."""

    class Answering(fakes.transport):
        def stream(self, model, tensors, request_id, timeout_s, version="", parameters=None):
            if model != "diffsplat":
                return super().stream(model, tensors, request_id, timeout_s)
            prompt = tensors["PROMPT"][0]
            frames, size = len(tensors["FRAME_POSES"]), int(tensors["FRAME_SIZE"][0])
            levels = np.linspace(0, 255, frames).astype(np.uint8)[:, None, None, None]
            self.script = [fakes.finished(FRAMES=np.broadcast_to(levels, (frames, size, size, 3)))]
            if b"refused" in prompt:
                self.script = [TransportError("INVALID_ARGUMENT", "IMAGE is\nanimated")]
            elif b"lost" in prompt:
                self.script = [TransportError("UNAVAILABLE", "Socket closed")]
            elif b"interrupted" in prompt:
                self.script = [KeyboardInterrupt()]
            return super().stream(model, tensors, request_id, timeout_s)

        @property
        def sent(self) -> list[dict]:
            """Scalars of every request, by name."""
            return [{name: t[0] for name, t in tensors.items() if t.shape == (1,)} for _, tensors, _, _ in self.calls]

    return Answering()


@pytest.fixture
def fake(answering, serve_fake):
    return serve_fake(answering)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "My photo.PNG"
    path.write_bytes(IMAGE)
    return path


def generate(tmp_path: Path, *more: object) -> int:
    fixed = [f"--out={tmp_path / 'out'}", "--turntable-frames=2", "--render-size=32", "--no-viewer"]
    return main(["generate", "--url=host:1", *fixed, *map(str, more)])


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_an_image_is_sent_and_described_by_its_hash(fake, image, tmp_path) -> None:
    options = ["--image", image, "--remove-background", "--border-ratio=0.3", "--estimate-elevation"]
    assert generate(tmp_path, *options) == 0
    (sent,) = fake.sent
    assert sent["IMAGE"] == IMAGE and sent["PROMPT"] == b"" and sent["FRAME_SIZE"] == 32
    assert sent["REMOVE_BACKGROUND"] and sent["ESTIMATE_ELEVATION"] and sent["BORDER_RATIO"] == np.float32(0.3)
    assert folders(tmp_path) == ["my-photo"]
    text = (tmp_path / "out" / "my-photo" / "generation.json").read_text()
    request = json.loads(text, parse_constant=pytest.fail)["request"]
    assert request["image"] == {"sha256": hashlib.sha256(IMAGE).hexdigest(), "bytes": len(IMAGE)}
    assert "control_image" not in request and "PNG of the client" not in text


def test_frames_stand_at_an_elevation_that_the_client_does_not_know(fake, image, tmp_path) -> None:
    for options in (["--estimate-elevation"], ["--elevation-deg=20"]):
        assert generate(tmp_path, "--image", image, *options) == 0
    assert generate(tmp_path, "a red cube") == 0
    estimated, given, of_the_bundle = (tensors["FRAME_POSES"][:, 0] for _, tensors, _, _ in fake.calls)
    assert np.isnan(estimated).all() and (given == 20).all() and np.isnan(of_the_bundle).all()
    assert ["ELEVATION_DEG" in sent for sent in fake.sent] == [False, True, False]


def test_a_control_map_with_every_option(fake, image, tmp_path) -> None:
    options = ["--control-type=canny", "--control-scale=0.5", "--guess-mode", "--extract-canny", "--init-std=0.1"]
    more = ["--init-noise-strength=0.9", "--init-background=0.25", "--elevation-deg=10", "--name-by-id"]
    assert generate(tmp_path, *options, "--control-image", image, *more, "a robot") == 0
    (sent,) = fake.sent
    assert sent["CONTROL_IMAGE"] == IMAGE and sent["PROMPT"] == b"a robot" and "IMAGE" not in sent
    assert sent["CONTROL_TYPE"] == b"canny" and sent["CONTROL_SCALE"] == 0.5
    assert sent["GUESS_MODE"] and sent["EXTRACT_CANNY"]
    assert sent["INIT_STD"] == np.float32(0.1) and sent["INIT_NOISE_STRENGTH"] == np.float32(0.9)
    assert sent["INIT_BACKGROUND"] == 0.25
    assert folders(tmp_path) == ["000_000"]


def test_a_prompt_file_goes_on_after_a_failure(fake, tmp_path, capsys) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red cube\n\n  refused one \nlost one\r\na red cube\n" + "x" * 2001, "utf-8")
    assert generate(tmp_path, "--prompt-file", file, "--seed=4") == 1
    lost = [b"lost one"] * 3  # sent again twice
    assert [sent["PROMPT"] for sent in fake.sent] == [b"a red cube", b"refused one", *lost, b"a red cube"]
    assert all(sent["SEED"] == 4 for sent in fake.sent)
    assert folders(tmp_path) == ["a-red-cube", "a-red-cube-2"]  # and nothing half-written
    captured = capsys.readouterr()
    done = captured.out.splitlines()
    assert done[0].startswith(f"[1/5] {tmp_path}/out/a-red-cube: 5 splats, seed 7, ") and done[1].startswith("[4/5] ")
    *_, refused, gone, _, long, last = captured.err.splitlines()
    assert refused == "diffsplat: [2/5] refused-one: IMAGE is animated"
    assert gone.startswith("diffsplat: [3/5] lost-one: the server at host:1 went away")
    assert long.startswith("diffsplat: [5/5] xxx") and "prompt has 2001 characters" in long
    assert last.startswith("diffsplat: 3 of 5 failed: refused-one, lost-one, xxx")
    assert "warning: [1/5] a-red-cube: prompt cut" in captured.err and "Traceback" not in captured.err


def test_ctrl_c_ends_a_batch(fake, tmp_path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\ninterrupted\nthree")
    assert generate(tmp_path, "--prompt-file", file) == 130
    assert folders(tmp_path) == ["one"] and len(fake.stopped) == 1


def test_every_image_of_a_folder_with_every_prompt(fake, tmp_path, capsys) -> None:
    images = tmp_path / "images"
    (images / "sub.png").mkdir(parents=True)
    others = {
        "._a.png": "a hidden file",
        ".DS_Store": "a hidden file",
        "IMG_1.HEIC": "not one of .png, .jpg, .jpeg, .jfif, .webp",
        "c.avif": "not one of .png",
        "empty.jpg": "an empty file",
        "sub.png": "not a file",
    }
    for name in ("b.JFIF", "a.png", "a.webp", *others):
        if name != "sub.png":
            (images / name).write_bytes(b"" if name == "empty.jpg" else name.encode())
    (tmp_path / "prompts.txt").write_text("red\nblue")
    sources = ["--image-dir", images, "--prompt-file", tmp_path / "prompts.txt", "--elevation-deg=0"]
    assert generate(tmp_path, *sources) == 0
    err = capsys.readouterr().err
    for name, reason in others.items():
        assert f"warning: {images / name} is skipped: {reason}" in err
    assert err.count("is skipped") == len(others)
    assert folders(tmp_path) == ["a-blue", "a-blue-2", "a-red", "a-red-2", "b-blue", "b-red"]
    sent = [(sent["IMAGE"], sent["PROMPT"]) for sent in fake.sent]
    assert sent[:2] == [(b"a.png", b"red"), (b"a.png", b"blue")] and sent[-1] == (b"b.JFIF", b"blue")
    assert generate(tmp_path, *sources, "--name-by-id") == 0
    assert [f"{i:03d}_{j:03d}" for i in range(3) for j in range(2)] == folders(tmp_path)[:6]


def test_a_folder_of_control_maps(fake, image, tmp_path) -> None:
    assert generate(tmp_path, "--control-image-dir", tmp_path, "--control-type=depth", "a robot") == 0
    assert fake.sent[0]["CONTROL_IMAGE"] == IMAGE and folders(tmp_path) == ["my-photo-a-robot"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "nothing to make: give a PROMPT, --prompt-file, --image or --control-image"),
        (["x", "--prompt-file=f"], 2, "not allowed with argument"),
        (["--image={image}", "--image-dir={dir}"], 2, "not allowed with argument"),
        (["--image={image}", "--control-image={image}"], 2, "a ControlNet belongs to a text model"),
        (["--image-dir={dir}", "--control-image-dir={dir}"], 2, "a ControlNet belongs to a text model"),
        (["--image={dir}/absent"], 1, "absent"),
        (["--image-dir={dir}/absent"], 1, "absent"),
        (["--image-dir={dir}/folder"], 2, "folder holds no image: must have files .png, .jpg"),
        (["--image-dir={dir}/photos"], 2, "(._a.png: a hidden file; a.heic: not one of .png"),
        (["--prompt-file={dir}/nul"], 2, "nul line 2 has the control character U+0000, as UTF-16 read as UTF-8 has"),
        (["--prompt-file={dir}/utf16"], 2, "utf16 line 1 has the control character U+0000"),
        (["--prompt-file={dir}/utf16le"], 2, "utf16le line 1 is not UTF-8 text"),
        (["--prompt-file={dir}/cp1252"], 2, "cp1252 line 3 is not UTF-8 text"),
        (["--prompt-file={dir}/page"], 2, "page line 1 has the control character U+000C: must be UTF-8 text"),
        (["--image={dir}/empty"], 2, "empty has 0 bytes: must have 1 .."),
        (["--image={dir}/huge"], 2, f"huge has more than {MAX_IMAGE_BYTES} bytes"),
        (["--prompt-file={dir}/empty"], 2, "empty holds no prompt"),
        (["--prompt-file={image}"], 2, "is not UTF-8 text"),
        (["--prompt-file={dir}/prompts", "--steps=0"], 2, "steps = 0"),
        (["--image-dir={dir}/images", "--init-std=0.1"], 2, "init_std = 0.1 and image exclude each other"),
        (["--control-image-dir={dir}/images"], 2, "control_image needs control_type"),
        (["x", "--guess-mode"], 2, "guess_mode = True needs control_image"),
        (["--image={image}", "--estimate-elevation", "--elevation-deg=3"], 2, "exclude each other"),
        (["x", "--video=webm"], 2, "invalid choice: 'webm'"),
        (["x", "--video=fancy-gif", "--turntable-frames=717"], 2, "turntable_frames = 717"),
    ],
)
def test_bad_sources_are_one_line_and_nothing_is_sent(fake, image, tmp_path, capsys, options, code, says) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(IMAGE)
    (tmp_path / "photos").mkdir()
    for name in ("._a.png", "a.heic"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    texts = {
        "nul": b"a cube\na \0 cone\n",
        "utf16": "a red cube\na cone\n".encode("utf-16-le"),
        "utf16le": "\ufeffa red cube\n".encode("utf-16-le"),
        "cp1252": "one\n\nein W\u00fcrfel\n".encode("cp1252"),
        "page": b"a cube\x0ca cone",
    }
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "prompts").write_text("one\ntwo")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    assert generate(tmp_path, *(option.format(image=image, dir=tmp_path) for option in options)) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err
    assert not fake.calls and not (tmp_path / "out").exists()


def test_a_gif_is_endless_and_as_quick_as_the_film(fake, tmp_path, monkeypatch) -> None:
    import imageio_ffmpeg
    from PIL import Image

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: pytest.fail("a GIF needs no ffmpeg"))
    assert generate(tmp_path, "x", "--video=gif", "--turntable-frames=12") == 0
    folder = tmp_path / "out" / "x"
    names = ["generation.json", "splats.ply", "turntable.gif", "views.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    with Image.open(folder / "turntable.gif") as film:
        assert film.n_frames == 12 and film.info["loop"] == 0 and film.info["duration"] == 30
        film.seek(11)
        assert film.size == (32, 32) and film.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["fancy-mp4", "fancy-gif"])
def test_a_fancy_film_goes_round_twice_while_splats_grow(fake, tmp_path, kind) -> None:
    assert generate(tmp_path, "x", f"--video={kind}", "--turntable-frames=180") == 0
    assert (tmp_path / "out" / "x" / f"turntable.{kind[6:]}").exists()
    poses = fake.calls[0][1]["FRAME_POSES"]
    assert (poses[:4, 3] == 1).all()
    np.testing.assert_array_equal(poses[4:, 1], np.arange(0, 720, 4))
    np.testing.assert_allclose(poses[4:, 3], np.minimum(np.arange(0, 720, 4) / 360, 1), rtol=1e-6)


def test_without_a_number_a_fancy_film_has_twice_the_frames(fake, tmp_path) -> None:
    for kind in ("gif", "fancy-gif"):
        assert main(["generate", "x", f"--out={tmp_path}", "--no-viewer", "--frame-size=16", f"--video={kind}"]) == 0
    assert [len(tensors["FRAME_POSES"]) for _, tensors, _, _ in fake.calls] == [4 + 48, 4 + 96]
