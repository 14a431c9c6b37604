"""Every reference output of every file is taken by a test of this run.

The fixture `golden` notes what the tests take; this module runs after all others and looks at the rest.
"""

from pathlib import Path

import pytest

# last part of an output's name -> why no test compares it
NOT_COMPARED = {
    "scheduler_alphas_cumprod_first_last": "the file `schedules` has them for every scheduler",
    "scheduler_sigmas": "the file `schedules` has them for every scheduler",
    "projmatrix": "our rasterizer takes intrinsics; the file `renderer` checks that they agree",
    "set_bg": "what the caller asked for",
    "set_sh_degree": "splats have plain colours here",
    "set_require_depth_coord": "our rasterizer always gives depth",
}


def test_every_output_is_read(golden_path: Path, unread_outputs: dict[Path, set[str]]) -> None:
    assert golden_path in unread_outputs, f"no test opened {golden_path.name}"
    unread = sorted(name for name in unread_outputs[golden_path] if name.rsplit("/", 1)[1] not in NOT_COMPARED)
    if unread:
        pytest.fail(f"no test reads {len(unread)} outputs of {golden_path.name}, such as {unread[:8]}")
