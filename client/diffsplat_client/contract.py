"""The wire contract: names, types and shapes of every tensor, written once.

The client builds requests from it, the stages of the server read them with it, and a test holds every `config.pbtxt`
against it. A request travels twice: as one small tensor per option from the client to `encode`, and from there on as
one JSON tensor (`REQUEST`) in which every default has been filled in, and which leaves the images out.
"""

from typing import NamedTuple

CONTRACT_VERSION = 5  # raised whenever an old client could not talk to a new server, or the other way round

ENSEMBLE = "diffsplat"
RECONSTRUCTION = "diffsplat_reconstruct"  # the ensemble for views of an object; there where the bundle has a GSRecon
ENSEMBLES = (ENSEMBLE, RECONSTRUCTION)
RECONSTRUCT = "reconstruct"  # its first stage; the others are those of ENSEMBLE
STOP_MODEL = "denoise"  # the stage that a STOP is sent to
SCHEDULERS = ("ddim", "dpmsolver++", "sde-dpmsolver++", "edm", "flow")
CONTROL_TYPES = ("depth", "normal", "canny")
DRAWN_SEED_LIMIT = 2**32  # of seeds that the server draws: short enough to be typed again

# Error types: what an error message of a stage starts with, before a colon (`error_text.py`) -> the code of gRPC. It
# travels in the text since Triton 2.51 crashes now and then when a stream asks for status codes (header
# `triton_grpc_error`) and fails.
ERROR_CODES = {
    "INVALID_ARG": "INVALID_ARGUMENT",
    "OVERLOADED": "UNAVAILABLE",  # no room for it now; the message may end with a hint when there is some
    "UNAVAILABLE": "UNAVAILABLE",  # the server stops, or restarts
    "CANCELLED": "CANCELLED",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
    "INTERNAL": "INTERNAL",
    "NOT_FOUND": "NOT_FOUND",  # by the edge alone: nothing goes by this id
}

EDGE_HEADER = "diffsplat-edge"  # in the initial metadata of an edge's answer to ServerLive

# Parameters of a request that the edge reads; a stage never sees them. The id of a request with ON_DISCONNECT lasts:
# sent again it attaches to the running request, or gets the kept result.
ON_DISCONNECT = "diffsplat_on_disconnect"  # string: what happens when the client leaves
CANCEL, KEEP = "cancel", "keep"  # its values: stop the request, or finish it and keep the result for a while
ATTACH = "diffsplat_attach"  # bool: attach only; the request needs no tensors and is never computed

# How a request ends. Early, once `denoise` has accepted it: then `denoise` sends a last STATUS of phase "ended", a
# later stage its tensor EARLY_END_*. Both name one of these states, an error type and a message. Neither is an error
# response: Triton 2.51 crashes when a step of a decoupled ensemble fails while an earlier message of the same
# request is still in the steps after it.
EARLY_END_STATES = ("aborted", "cancelled", "expired", "failed")  # aborted: stopped before its first step
END_STATES = ("finished", *EARLY_END_STATES)

# What `denoise` answers to a STOP: the request ends at the next step; it had ended, not long ago; or nothing is known
# of it, and it is stopped if it arrives soon
STOP_ANSWERS = ("requested", "already_finished", "not_found")

# Columns of GAUSSIANS [N, 14]; linear scales, opacity after the sigmoid, quaternion (w, x, y, z), world units
GAUSSIAN_COLUMNS = {
    "xyz": slice(0, 3),
    "rgb": slice(3, 6),
    "opacity": slice(6, 7),
    "scale": slice(7, 10),
    "quat_wxyz": slice(10, 14),
}
GAUSSIAN_WIDTH = 14

# Columns of FRAME_POSES [F, 4]
POSE_COLUMNS = ("elevation_deg", "azimuth_deg", "distance", "splat_scale")


class TensorSpec(NamedTuple):
    """One tensor of the wire: Triton's datatype name without `TYPE_`, dims with -1 for a free length."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = True


class ModelSpec(NamedTuple):
    """Inputs and outputs of one Triton model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    decoupled: bool = False


# --- what a client wants made from the splats, for every kind of request ---
DEADLINE = TensorSpec("DEADLINE_S", "FP32", (1,))  # seconds from the arrival at the first stage to the last one's start
OUTPUT_TENSORS = (
    TensorSpec("OPACITY_THRESHOLD_RENDER", "FP32", (1,)),
    TensorSpec("OPACITY_THRESHOLD_ASSET", "FP32", (1,)),
    TensorSpec("NUM_GAUSSIANS", "INT32", (1,)),
    TensorSpec("FRAME_SIZE", "INT32", (1,)),
    TensorSpec("FRAME_POSES", "FP32", (-1, 4)),
    TensorSpec("FORMATS", "BYTES", (-1,)),
    TensorSpec("FRAME", "BYTES", (1,)),
    DEADLINE,
)

# --- what a client sends for a generation (all of it goes to `encode`) ---
REQUEST_TENSORS = (
    # optional on the wire alone: Triton only counts inputs, and an ensemble that lacks one never ends; encode checks
    TensorSpec("PROMPT", "BYTES", (1,)),
    TensorSpec("NEGATIVE_PROMPT", "BYTES", (1,)),
    TensorSpec("IMAGE", "BYTES", (1,)),  # a whole PNG, JPEG or WebP file
    TensorSpec("CONTROL_IMAGE", "BYTES", (1,)),  # a whole PNG, JPEG or WebP file
    TensorSpec("REMOVE_BACKGROUND", "BOOL", (1,)),
    TensorSpec("BORDER_RATIO", "FP32", (1,)),
    TensorSpec("ELEVATION_DEG", "FP32", (1,)),
    TensorSpec("ESTIMATE_ELEVATION", "BOOL", (1,)),
    TensorSpec("DISTANCE", "FP32", (1,)),
    TensorSpec("SEED", "INT64", (1,)),
    TensorSpec("NUM_SEEDS", "INT32", (1,)),
    TensorSpec("STEPS", "INT32", (1,)),
    TensorSpec("SCHEDULER", "BYTES", (1,)),
    TensorSpec("ETA", "FP32", (1,)),
    TensorSpec("GUIDANCE_SCALE", "FP32", (1,)),
    TensorSpec("TRIANGLE_GUIDANCE", "BOOL", (1,)),
    TensorSpec("MIN_GUIDANCE_SCALE", "FP32", (1,)),
    TensorSpec("CONTROL_TYPE", "BYTES", (1,)),
    TensorSpec("CONTROL_SCALE", "FP32", (1,)),
    TensorSpec("GUESS_MODE", "BOOL", (1,)),
    TensorSpec("EXTRACT_CANNY", "BOOL", (1,)),
    TensorSpec("INIT_STD", "FP32", (1,)),
    TensorSpec("INIT_NOISE_STRENGTH", "FP32", (1,)),
    TensorSpec("INIT_BACKGROUND", "FP32", (1,)),
    TensorSpec("PRIORITY", "INT32", (1,)),
    TensorSpec("PREVIEW_EVERY", "INT32", (1,)),
    TensorSpec("START_DEADLINE_S", "FP32", (1,)),  # seconds from the arrival at `encode` to the first denoising step
    *OUTPUT_TENSORS,
)

# --- what a client sends for a reconstruction (all of it goes to `reconstruct`); V views of H x W pixels ---
RECONSTRUCTION_TENSORS = (
    TensorSpec("IMAGES", "FP32", (-1, -1, -1, 3)),  # [V, H, W, 3] in [0, 1]
    TensorSpec("NORMALS", "FP32", (-1, -1, -1, 3)),
    TensorSpec("COORDS", "FP32", (-1, -1, -1, 3)),
    TensorSpec("METALLIC_ROUGHNESS", "FP32", (-1, -1, -1, 2)),
    TensorSpec("CAMERA_TO_WORLD", "FP32", (-1, 4, 4)),
    TensorSpec("INTRINSICS", "FP32", (-1, 4)),
    *OUTPUT_TENSORS,
)

# --- what a client gets ---
STATUS = TensorSpec("STATUS", "BYTES", (1,))  # JSON, see `events.py`
GAUSSIANS = TensorSpec("GAUSSIANS", "FP32", (-1, GAUSSIAN_WIDTH))
# splats of the object as it would be now, by STATUS of the same message; in the columns of GAUSSIANS
PREVIEW = TensorSpec("PREVIEW", "FP32", (-1, GAUSSIAN_WIDTH))
FRAMES = TensorSpec("FRAMES", "UINT8", (-1, -1, -1, 3))  # [F, H, W, 3]
ASSETS = TensorSpec("ASSETS", "BYTES", (-1,))  # the files asked for; absent where that is none
ASSET_FORMATS = TensorSpec("ASSET_FORMATS", "BYTES", (-1,))  # the format of each of them
SERVED = TensorSpec("SERVED", "BYTES", (1,))  # JSON {version, bundle, bundle_digest}: what made the object
DENOISE_TIMINGS = TensorSpec("TIMINGS", "BYTES", (1,))  # JSON {stage: milliseconds}; encode's time rides along
DECODE_TIMINGS = TensorSpec("TIMINGS_DECODE", "BYTES", (1,))
RASTERIZE_TIMINGS = TensorSpec("TIMINGS_RASTERIZE", "BYTES", (1,))
PACKAGE_TIMINGS = TensorSpec("TIMINGS_PACKAGE", "BYTES", (1,))
RECONSTRUCT_TIMINGS = TensorSpec("TIMINGS_RECONSTRUCT", "BYTES", (1,))
# which result of NUM_SEEDS the other tensors of this stage in the same message belong to; STATUS says its own
DECODE_INDEX = TensorSpec("INDEX_DECODE", "INT32", (1,))
RASTERIZE_INDEX = TensorSpec("INDEX_RASTERIZE", "INT32", (1,))
PACKAGE_INDEX = TensorSpec("INDEX_PACKAGE", "INT32", (1,))
DECODE_EARLY_END = TensorSpec("EARLY_END_DECODE", "BYTES", (1,))  # JSON {end_state, error_type, message}
RASTERIZE_EARLY_END = TensorSpec("EARLY_END_RASTERIZE", "BYTES", (1,))
PACKAGE_EARLY_END = TensorSpec("EARLY_END_PACKAGE", "BYTES", (1,))
EARLY_ENDS = (DECODE_EARLY_END, RASTERIZE_EARLY_END, PACKAGE_EARLY_END)
INDICES = (DECODE_INDEX, RASTERIZE_INDEX, PACKAGE_INDEX)
TIMING_TENSORS = (DENOISE_TIMINGS, DECODE_TIMINGS, RASTERIZE_TIMINGS, PACKAGE_TIMINGS)
_ASSETS = (ASSETS, ASSET_FORMATS)
RESPONSE_TENSORS = (STATUS, PREVIEW, GAUSSIANS, FRAMES, *_ASSETS, SERVED, *INDICES, *TIMING_TENSORS, *EARLY_ENDS)
RECONSTRUCTION_EARLY_ENDS = (RASTERIZE_EARLY_END, PACKAGE_EARLY_END)
RECONSTRUCTION_TIMINGS = (RECONSTRUCT_TIMINGS, RASTERIZE_TIMINGS, PACKAGE_TIMINGS)

# --- between the stages ---
REQUEST = TensorSpec("REQUEST", "BYTES", (1,))  # JSON of a GenerationRequest without open defaults, plus warnings
TEXT_EMBEDDINGS = TensorSpec("TEXT_EMBEDDINGS", "FP32", (2, -1, -1))  # (prompt, negative prompt) x tokens x width
TEXT_MASK = TensorSpec("TEXT_MASK", "BOOL", (2, -1))  # False on padding that nothing attends to; left out: all True
POOLED_TEXT = TensorSpec("POOLED_TEXT", "FP32", (2, -1))  # left out by backbones without one
CONDITION_LATENTS = TensorSpec("CONDITION_LATENTS", "FP32", (-1, -1, -1))  # [C, h, w] of the condition image
HINT = TensorSpec("HINT", "FP32", (3, -1, -1))  # control map of view 0 in [0, 1]
START_MOMENTS = TensorSpec("START_MOMENTS", "FP32", (2, -1, -1, -1, -1))  # mean, deviation [V, C, h, w]; Instant3D
LATENTS = TensorSpec("LATENTS", "FP32", (-1, -1, -1, -1))  # [V, C, h, w]
RESOLVED_REQUEST = TensorSpec("RESOLVED_REQUEST", "BYTES", (1,))  # REQUEST, repeated by denoise for the later stages
SPLATS = TensorSpec("SPLATS", "FP32", (-1, GAUSSIAN_WIDTH))  # every decoded splat, before any opacity threshold
# the same splats with the network's own quaternions and scales; for formats `as_decoded` alone
RAW_SPLATS = TensorSpec("RAW_SPLATS", "FP32", (-1, GAUSSIAN_WIDTH))
# RESOLVED_REQUEST again, from decode: a stage's inputs must come from one stage, since an ensemble pairs outputs of
# different stages by their order of arrival, and instances may overtake each other
DECODED_REQUEST = TensorSpec("DECODED_REQUEST", "BYTES", (1,))
STOP = TensorSpec("STOP", "BOOL", (1,))  # sent straight to `denoise` under the id of the request to stop
STOP_ANSWER = TensorSpec("STOP_ANSWER", "BYTES", (1,))  # one of STOP_ANSWERS

IMAGE_TENSORS = (CONDITION_LATENTS, HINT, START_MOMENTS)  # each left out by requests without it
TEXT_TENSORS = (TEXT_EMBEDDINGS, TEXT_MASK, POOLED_TEXT)
MODELS = {
    "encode": ModelSpec(REQUEST_TENSORS, (REQUEST, *TEXT_TENSORS, *IMAGE_TENSORS)),
    "denoise": ModelSpec(
        (REQUEST, *TEXT_TENSORS, *IMAGE_TENSORS, STOP),
        (STATUS, PREVIEW, DENOISE_TIMINGS, RESOLVED_REQUEST, LATENTS, STOP_ANSWER),
        decoupled=True,
    ),
    # after `denoise` every input is optional: each progress message calls these stages without tensors
    "decode": ModelSpec(
        (LATENTS, RESOLVED_REQUEST),
        (SPLATS, RAW_SPLATS, DECODED_REQUEST, DECODE_INDEX, DECODE_TIMINGS, DECODE_EARLY_END),
    ),
    "rasterize": ModelSpec(
        (SPLATS, DECODED_REQUEST), (FRAMES, RASTERIZE_INDEX, RASTERIZE_TIMINGS, RASTERIZE_EARLY_END)
    ),
    "package": ModelSpec(
        (SPLATS, RAW_SPLATS, DECODED_REQUEST),
        (GAUSSIANS, *_ASSETS, SERVED, PACKAGE_INDEX, PACKAGE_TIMINGS, PACKAGE_EARLY_END),
    ),
    ENSEMBLE: ModelSpec(REQUEST_TENSORS, RESPONSE_TENSORS, decoupled=True),
    RECONSTRUCT: ModelSpec(RECONSTRUCTION_TENSORS, (SPLATS, RAW_SPLATS, DECODED_REQUEST, RECONSTRUCT_TIMINGS)),
    RECONSTRUCTION: ModelSpec(
        RECONSTRUCTION_TENSORS,
        (GAUSSIANS, FRAMES, *_ASSETS, SERVED, *INDICES[1:], *RECONSTRUCTION_TIMINGS, *RECONSTRUCTION_EARLY_ENDS),
    ),
}
# tensor of a later stage -> the one that says which result it belongs to
INDEX_OF = {
    output.name: index.name
    for stage, index in zip(("decode", "rasterize", "package"), INDICES, strict=True)
    for output in MODELS[stage].outputs
}
