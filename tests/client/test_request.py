"""Requests survive both forms on the wire, and `validate` refuses everything out of range."""

import json

import numpy as np
import pytest
from diffsplat_client import GenerationRequest, InvalidRequestError, four_views, turntable
from diffsplat_client.contract import REQUEST_TENSORS
from diffsplat_client.output_options import OutputOptions
from diffsplat_client.poses import OWN_ELEVATION
from diffsplat_client.request import CHOICES, FILES, OPTIONS, RANGES
from diffsplat_client.request_checks import MAX_IMAGE_BYTES, MAX_PROMPT_CHARACTERS

IMAGE = bytes(range(256)) + b"\0"  # the client does not look inside
# no value of these two equals its default, so that a field lost on the way shows
FULL = GenerationRequest(
    prompt="ein roter Würfel 🟥",
    negative_prompt="blue",
    elevation_deg=-12.5,
    distance=2.25,
    seed=2**63 - 1,
    steps=33,
    scheduler="edm",
    eta=0.5,
    guidance_scale=3.25,
    triangle_guidance=True,
    min_guidance_scale=1.75,
    opacity_threshold_render=0.125,
    opacity_threshold_asset=0.25,
    num_gaussians=1000,
    init_std=0.1,
    init_noise_strength=0.9,
    init_background=0.3,
    deadline_s=600.0,
    priority=2,
    preview_every=3,
    start_deadline_s=20.5,
    frame_size=64,
    frame_poses=np.array([[10, 0, 1.5, 1], [20, 350, 2, 0.5]], np.float32),
    formats=("ply", "spz"),
    frame="opengl",
)


CONTROLLED = GenerationRequest(
    control_image=IMAGE,
    remove_background=True,
    border_ratio=0.15,
    estimate_elevation=True,
    control_type="canny",
    control_scale=0.7,
    guess_mode=True,
    extract_canny=True,
    num_seeds=2,
)


def plain(request: GenerationRequest) -> dict:
    """The request as a dictionary that went through JSON."""
    return json.loads(json.dumps(request.to_dict()))


CONTROL = {"control_image": IMAGE, "control_type": "depth"}


def assert_same(a: GenerationRequest, b: GenerationRequest, but: tuple[str, ...] = ()) -> None:
    for name in set(OPTIONS) - set(but):
        left, right = getattr(a, name), getattr(b, name)
        assert type(left) is type(right), name
        assert np.array_equal(left, right), name


def test_the_full_examples_use_no_default() -> None:
    for name, field in OPTIONS.items():
        if name not in ("prompt", "image"):
            values = [getattr(request, name) for request in (FULL, CONTROLLED)]
            assert not all(np.array_equal(value, field.default) for value in values), name


def test_every_field_has_a_tensor_and_a_check() -> None:
    assert {spec.name.lower() for spec in REQUEST_TENSORS} == set(OPTIONS)
    flags = {name for name, field in OPTIONS.items() if isinstance(field.default, bool)}
    own_tests = {"prompt", "negative_prompt", "frame_poses"}
    assert set(OPTIONS) - set(RANGES) - set(CHOICES) - set(FILES) - flags == own_tests


REQUESTS = {
    "full": FULL,
    "controlled": CONTROLLED,
    "image": GenerationRequest(image=IMAGE, elevation_deg=20.0),
    "defaults": GenerationRequest("x"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_round_trips(request_: GenerationRequest) -> None:
    tensors = request_.validate().to_tensors()
    assert_same(GenerationRequest.from_tensors(tensors), request_)
    assert_same(GenerationRequest.from_dict(plain(request_)), request_, but=FILES)  # images stay with `encode`
    for spec in REQUEST_TENSORS:  # as declared
        if spec.name in tensors and spec.dims == (1,):
            assert tensors[spec.name].shape == (1,)


def test_json_has_no_images_and_takes_none() -> None:
    for request in (CONTROLLED, REQUESTS["image"]):
        values = plain(request)
        assert not set(FILES) & set(values) and not set(FILES) & set(request.to_dict())
        for name in FILES:
            with pytest.raises(InvalidRequestError, match=f"{name} = 'abc': must be the bytes"):
                GenerationRequest.from_dict({**values, name: "abc"})


def test_the_output_options_of_a_request_stand_alone() -> None:
    alone = FULL.output_options()
    assert type(alone) is OutputOptions and alone.formats == ("ply", "spz") and alone.frame_size == 64
    assert plain(OutputOptions.from_dict(plain(alone))) == plain(alone)
    assert plain(alone).items() <= plain(FULL).items()


def test_an_image_does_not_flood_a_log() -> None:
    assert "control_image" not in repr(CONTROLLED)


def test_decimals_survive_float32() -> None:
    """0.9 in float32 is a little less: int(20 * 0.9) steps would be 17."""
    for number in np.linspace(0, 1, 101).round(2).tolist():
        tensors = GenerationRequest("x", init_noise_strength=number).to_tensors()
        assert GenerationRequest.from_tensors(tensors).init_noise_strength == number


def test_what_is_left_open_is_not_sent() -> None:
    tensors = GenerationRequest("x").to_tensors()
    assert "SEED" not in tensors and "STEPS" not in tensors and "FRAME_POSES" not in tensors


def test_with_defaults_fills_only_what_is_open() -> None:
    request = GenerationRequest("x", steps=5).with_defaults(steps=20, eta=1.0)
    assert (request.steps, request.eta, request.seed) == (5, 1.0, None)


def test_an_elevation_left_open_in_poses_becomes_the_views_own() -> None:
    poses = np.concatenate([four_views(OWN_ELEVATION), turntable(3, 5.0)])
    request = GenerationRequest("x", frame_poses=poses).validate()
    received = GenerationRequest.from_tensors(request.to_tensors())
    np.testing.assert_array_equal(received.with_defaults(steps=5).frame_poses, poses)  # nobody knows it yet
    resolved = received.with_defaults(elevation_deg=-17.5)
    assert resolved.frame_poses[:, 0].tolist() == [-17.5] * 4 + [5.0] * 3
    assert np.isnan(request.frame_poses[:4, 0]).all()  # left as it was
    assert_same(GenerationRequest.from_dict(plain(resolved)), resolved)

    given = GenerationRequest("x", elevation_deg=30.0, frame_poses=poses).validate()
    assert given.with_defaults(elevation_deg=10.0).frame_poses[0, 0] == 30
    json.loads(json.dumps(given.to_dict()), parse_constant=pytest.fail)  # JSON proper knows no NaN


def test_numpy_numbers_become_json() -> None:
    request = GenerationRequest("x", seed=np.int64(3), eta=np.float32(0.5), triangle_guidance=np.bool_(True))
    assert_same(
        GenerationRequest.from_dict(plain(request.validate())),
        GenerationRequest("x", seed=3, eta=0.5, triangle_guidance=True),
    )


BAD_NUMBERS = [
    (name, value)
    for name, (low, high) in RANGES.items()
    for value in (low - 1, high * 2 + 1, float("nan"), float("inf"), "1", True, [1], 10**400)
]


@pytest.mark.parametrize(("name", "value"), BAD_NUMBERS, ids=lambda v: repr(v)[:20])
def test_bad_numbers_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} = .*must be") as caught:
        GenerationRequest("x", **{name: value}).validate()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", sorted(RANGES))
def test_limits_are_inclusive(name: str) -> None:
    for value in RANGES[name]:
        number = int(value) if OPTIONS[name].metadata["integer"] else value
        image = CONTROL if name == "control_scale" else {}
        GenerationRequest("x", **{name: number}, **image).validate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "prompt = ''"),
        ({"prompt": " \n\t"}, "prompt = "),
        ({"prompt": None}, "prompt = None: must be text"),
        ({"prompt": b"x"}, "prompt = b'x': must be text"),
        ({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, "prompt has 2001 characters: at most 2000"),
        ({"prompt": "\ud800"}, "prompt = .*valid Unicode"),
        ({"negative_prompt": 3}, "negative_prompt = 3: must be text"),
        ({"scheduler": "euler"}, "scheduler = 'euler': must be one of ddim, dpmsolver"),
        ({"scheduler": ["ddim"]}, "scheduler = .*must be one of"),
        ({"formats": ("stl",)}, "formats = 'stl': must be one of raw, ply"),
        ({"formats": ["ply", "stl"]}, "formats = 'stl': must be one of raw, ply"),
        ({"formats": "ply"}, "formats = 'ply': must be a list of raw, ply"),
        ({"formats": []}, r"formats = \[\]: must be a list of raw, ply"),
        ({"formats": ["ply", "spz", "ply"]}, "formats names 'ply' 2 times: must name it once"),
        ({"formats": [["ply"]]}, r"formats = \['ply'\]: must be one of raw, ply"),
        ({"frame": "3dgs"}, "frame = '3dgs': must be one of '', opengl"),
        ({"formats": None}, "formats = None: must be a list of"),
        ({"frame_size": None}, "frame_size = None: must be an integer"),
        ({"steps": 2.5}, "steps = 2.5: must be an integer"),
        ({"triangle_guidance": 1}, "triangle_guidance = 1: must be true or false"),
        ({"guess_mode": None}, "guess_mode = None: must be true or false"),
        ({"control_type": "edges"}, "control_type = 'edges': must be one of depth, normal, canny"),
        ({"image": "photo.png"}, "image = 'photo.png': must be the bytes of a PNG, JPEG or WebP file"),
        ({"image": bytearray(b"x")}, "image = bytearray.*must be the bytes"),
        ({"image": b""}, "image has 0 bytes: must be a PNG, JPEG or WebP file"),
        ({"control_image": bytes(MAX_IMAGE_BYTES + 1)}, "control_image has 33554433 bytes: at most 33554432"),
    ],
)
def test_other_bad_fields_are_named(fields: dict, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        GenerationRequest(**{"prompt": "x", **fields}).validate()


TOGETHER = [
    ({"image": IMAGE, **CONTROL}, "image and control_image exclude each other: a ControlNet belongs to a text model"),
    ({"control_type": "depth"}, "control_type = 'depth' needs control_image"),
    ({"control_image": IMAGE}, "control_image needs control_type: .* one of depth, normal, canny"),
    ({"control_scale": 0.5}, "control_scale = 0.5 needs control_image"),
    ({"guess_mode": True}, "guess_mode = True needs control_image"),
    ({"extract_canny": True}, "extract_canny = True needs control_image"),
    ({"extract_canny": True, "image": IMAGE}, "extract_canny = True needs control_image"),
    ({"extract_canny": True, **CONTROL}, "extract_canny = True and control_type = 'depth': must be 'canny'"),
    ({"estimate_elevation": True}, "estimate_elevation = True needs image or control_image"),
    ({"remove_background": True}, "remove_background = True needs image or control_image"),
    (
        {"estimate_elevation": True, "elevation_deg": 0.0, "image": IMAGE},
        "estimate_elevation = True and elevation_deg = 0.0 exclude each other",
    ),
    ({"init_std": 0.1, "image": IMAGE}, "init_std = 0.1 and image exclude each other"),
    ({"prompt": " \n\t"}, r"prompt = ' .n.t': must contain .* or come with image or control_image"),
]


@pytest.mark.parametrize(("fields", "message"), TOGETHER, ids=lambda value: "-".join(value)[:60])
def test_options_that_do_not_go_together_are_named(fields: dict, message: str) -> None:
    request = GenerationRequest(**{"prompt": "x", **fields})
    with pytest.raises(InvalidRequestError, match=f"^{message}"):
        request.validate()
    with pytest.raises(InvalidRequestError, match=f"^{message}"):
        GenerationRequest.from_tensors(request.to_tensors()).validate()


@pytest.mark.parametrize(
    "fields",
    [
        {"image": IMAGE, "prompt": "x", "remove_background": True, "estimate_elevation": True},
        {"image": IMAGE, "elevation_deg": 20.0, "negative_prompt": "blue"},
        {"init_std": 0.1, **CONTROL},
        {"image": bytes(MAX_IMAGE_BYTES)},
    ],
)
def test_options_that_go_together(fields: dict) -> None:
    GenerationRequest(**fields).validate()


@pytest.mark.parametrize(
    ("poses", "size", "message"),
    [
        (np.zeros(4), 64, r"shape \[4\].*must be numbers \[F, 4\]"),
        (np.zeros((2, 3)), 64, r"shape \[2, 3\]"),
        (np.array([["a"] * 4]), 64, "type <U1"),
        (np.ones((1, 4), complex), 64, "type complex128"),
        ([[1, 2, 3, 4], [1]], 64, "not a table"),
        (np.ones((721, 4)), 64, "721 frames: at most 720"),
        (np.ones((100, 4)), 2048, "100 x 2048 x 2048 = 419430400 pixels: at most"),
        ([[0, 0, 1, 1], [0, float("nan"), 1, 1]], 64, r"frame_poses\[1\] azimuth_deg = nan: must be in -3600 .. 3600"),
        ([[90, 0, 1, 1]], 64, r"frame_poses\[0\] elevation_deg = 90"),
        ([[0, 0, 0, 1]], 64, r"frame_poses\[0\] distance = 0"),
        ([[0, 0, 1, -1]], 64, r"frame_poses\[0\] splat_scale = -1"),
    ],
)
def test_bad_poses_are_named(poses: object, size: int, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        GenerationRequest("x", frame_poses=poses, frame_size=size).validate()


def test_poses_of_the_client_are_valid() -> None:
    poses = np.concatenate([four_views(30, 2), turntable(716, -89, 10, grow=True)])
    GenerationRequest("x", frame_poses=poses).validate()
    assert poses.dtype == np.float32
    np.testing.assert_array_equal(poses[:4, 1], [0, 90, 180, 270])
    assert poses[4, 3] == 0 and poses[-1, 3] == 1
    assert turntable(4)[:, 1].tolist() == [0, 90, 180, 270]  # the last frame stands one step before the first
    with pytest.raises(ValueError, match="frames = 0"):
        turntable(0)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "prompt is missing"),
        ({"STEPS": np.array([3], np.int32)}, "prompt is missing"),
        ({"IMAGE": np.array(["text"], np.object_)}, "image = 'text': must be the bytes"),
        ({"IMAGE": np.array([b"a", b"b"], np.object_)}, r"image has shape \[2\]: must be \[1\]"),
        ({"PROMPT": np.array([b"\xff"], np.object_)}, "prompt is not valid UTF-8"),
        ({"PROMPT": np.array([b"a", b"b"], np.object_)}, r"prompt has shape \[2\]: must be \[1\]"),
        ({"PROMPT": np.array([b"a"], np.object_), "STEPS": np.zeros((0,), np.int32)}, r"steps has shape \[0\]"),
        ({"PROMPT": np.array([b"a"], np.object_), "ETA": np.array([np.nan], np.float32)}, "eta = nan"),
    ],
)
def test_bad_tensors_are_named(tensors: dict, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        GenerationRequest.from_tensors(tensors).validate()


@pytest.mark.parametrize(
    "values",
    ["", "text", [1], 3, None, {"prompt": "x", "more": 1}, {"prompt": "x", "frame_poses": [[1], [2, 3]]}],
)
def test_what_is_no_dictionary_of_options_is_refused(values: object) -> None:
    with pytest.raises(InvalidRequestError):
        GenerationRequest.from_dict(values)


def test_json_poses_keep_their_shape() -> None:
    for poses in (np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32)):
        request = GenerationRequest("x", frame_poses=poses)
        np.testing.assert_array_equal(GenerationRequest.from_dict(plain(request)).frame_poses, poses)
    with pytest.raises(InvalidRequestError, match="frame_poses has shape"):  # 12 numbers, but not as [3, 4]
        GenerationRequest.from_dict({"prompt": "x", "frame_poses": [[1.0] * 3] * 4})
