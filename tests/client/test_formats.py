"""Every format of the registry: what it keeps, its axes, and files that are damaged or hostile."""

import numpy as np
import pytest
from diffsplat_client import SplatCloud
from diffsplat_client.formats import FORMATS, FileFormat
from diffsplat_client.formats.axes import FRAME_CHOICES, FRAMES, OPENGL, THREEDGS

from tests.splat_clouds import LOSSES, in_order_of, largest_loss, make_cloud

each_format = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)


@pytest.mark.parametrize("frame", FRAME_CHOICES)
@pytest.mark.parametrize("count", [0, 1, 2, 1000])
@each_format
def test_a_format_reads_what_it_writes(format: FileFormat, count: int, frame: str) -> None:
    cloud = make_cloud(count)
    loss = largest_loss(cloud, format.read(format.write(cloud, frame), frame))
    assert all(changed <= allowed for changed, allowed in zip(loss, LOSSES[format.name], strict=True)), loss


@each_format
def test_a_format_is_written_in_its_own_axes(format: FileFormat) -> None:
    """A splat above and nearer to the viewer than the origin, read as if the file were in our axes."""
    one = SplatCloud([[0.1, 0.2, 0.3]], [[1, 0, 0]], [0.9], [[0.01, 0.02, 0.03]], [[1, 0, 0, 0]])
    seen = format.read(format.write(one), OPENGL).positions[0]
    up = {OPENGL: 1, THREEDGS: -1}[format.frame]
    assert format.frame in FRAMES
    np.testing.assert_allclose(seen, [0.1, up * 0.2, up * 0.3], atol=LOSSES[format.name].position + 1e-6)


def test_files_are_told_apart_by_their_names() -> None:
    assert len({format.file_name for format in FORMATS.values()}) == len(FORMATS)


@each_format
def test_what_is_no_cloud_of_numbers_is_refused(format: FileFormat) -> None:
    """By the compact formats; .ply holds any float32."""
    if format.extension == ".ply":
        return
    for name, message in (("positions", r"positions\[1, 2\] = nan"), ("scales", r"scales\[1, 2\] = nan")):
        cloud = make_cloud(3)
        getattr(cloud, name)[1, 2] = np.nan
        with pytest.raises(ValueError, match=f"{message}: must be finite"):
            format.write(cloud)
    cloud = make_cloud(3)
    cloud.quats_wxyz[2] = 0
    with pytest.raises(ValueError, match=r"quats_wxyz\[2\] = 0: must have a length"):
        format.write(cloud)


@each_format
def test_extremes_are_clipped_not_wrapped(format: FileFormat) -> None:
    cloud = make_cloud(2)
    cloud.opacity[:] = [0, 1]
    cloud.scales[0] = 0
    if format.extension != ".ply":
        cloud.rgb[:] = [[-0.5, 0.5, 1.5], [0, 1, 0.25]]
    again = format.read(format.write(cloud))
    again = in_order_of(cloud, again)
    assert np.isfinite(again.to_array()).all()
    np.testing.assert_allclose(again.opacity, cloud.opacity, atol=2e-6)
    assert again.scales[0].max() < 1e-4 and (again.scales >= 0).all()
    np.testing.assert_allclose(np.clip(again.rgb, 0, 1), np.clip(cloud.rgb, 0, 1), atol=1 / 255)


@each_format
def test_every_truncation_is_refused(format: FileFormat) -> None:
    data = format.write(make_cloud(2))
    for length in range(len(data)):
        if format.name == "splat" and length % 32 == 0:
            assert len(format.read(data[:length])) == length // 32  # nothing in such a file says how long it is
            continue
        with pytest.raises(ValueError, match=format.extension.removeprefix(".")):
            format.read(data[:length])


@each_format
def test_damage_is_read_or_refused_and_never_anything_else(format: FileFormat) -> None:
    """Bytes changed at random, in the head of the file more often than behind it."""
    rng = np.random.default_rng(0)
    data = np.frombuffer(format.write(make_cloud(40)), np.uint8)
    refused = 0
    for _ in range(300):
        damaged = data.copy()
        reach = len(data) if rng.random() < 0.3 else min(len(data), 64)
        places = rng.integers(0, reach, rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            assert len(format.read(damaged.tobytes())) <= 40
        except ValueError:
            refused += 1
    assert refused or format.name == "splat"
