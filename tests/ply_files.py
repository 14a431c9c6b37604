"""Files of the published script compared with ours."""

import numpy as np
from diffsplat_client.formats.ply_compat import RECORD

LOGARITHMS = ("opacity", "scale_0", "scale_1", "scale_2")


def assert_same_file(ours: bytes, theirs: bytes, compatible: bool) -> None:
    """Equal bytes; only logarithms may differ, by one unit in the last place.

    PyTorch's float32 logarithm, which wrote the reference, gives different last bits on different CPUs.
    """
    end = theirs.index(b"end_header\n") + len(b"end_header\n")
    assert ours[:end] == theirs[:end] and len(ours) == len(theirs)
    records, expected = (np.frombuffer(file, RECORD, offset=end) for file in (ours, theirs))
    for name in RECORD.names:
        if compatible and name in LOGARITHMS:
            np.testing.assert_array_max_ulp(records[name], expected[name], maxulp=1)
        else:
            assert records[name].tobytes() == expected[name].tobytes(), name
