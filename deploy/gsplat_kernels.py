"""Compile gsplat's CUDA kernels ahead of time: `python deploy/gsplat_kernels.py --arch 9.0 --out csrc.so`.

gsplat compiles them when it first draws, which takes minutes and a CUDA toolkit, unless a file `csrc.so` lies in its
folder. This makes that file, from the sources and with the flags of the installed gsplat. It needs the toolkit of
torch's CUDA version, a C++ compiler, ninja, and no GPU; copy the file into `site-packages/gsplat` of a machine with the
same Python and torch.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path


def sources(folder: Path) -> list[Path]:
    """What gsplat compiles: its kernels, their C++ side, and the module."""
    cuda = folder / "cuda"
    return [*sorted((cuda / "csrc").glob("*.cu")), *sorted((cuda / "csrc").glob("*.cpp")), cuda / "ext.cpp"]


def compile_kernels(folder: Path, build: Path) -> Path:
    """The compiled module, in `build`."""
    from torch.utils.cpp_extension import load

    load(
        name="csrc",
        sources=[str(path) for path in sources(folder)],
        extra_cflags=["-O3", "-Wno-attributes"],
        extra_cuda_cflags=["-O3", "-use_fast_math"],
        extra_include_paths=[str(folder / "cuda" / "include"), str(folder / "cuda" / "csrc" / "third_party" / "glm")],
        build_directory=str(build),
        verbose=True,
    )
    return build / "csrc.so"


def main() -> int:
    """Compile and copy; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", required=True, help="compute capabilities, such as 9.0 (H100, H200) or 8.0;8.9;9.0")
    parser.add_argument("--out", type=Path, default=Path("csrc.so"), help="the file to write (default: %(default)s)")
    arguments = parser.parse_args()
    found = importlib.util.find_spec("gsplat")
    if found is None or not found.submodule_search_locations:
        print("error: gsplat is not installed: pip install 'diffsplat-triton[cuda]'", file=sys.stderr)
        return 1
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None or not (Path(CUDA_HOME) / "bin" / "nvcc").is_file():
        print("error: no CUDA toolkit was found: set CUDA_HOME to a folder with bin/nvcc", file=sys.stderr)
        return 1
    os.environ["TORCH_CUDA_ARCH_LIST"] = arguments.arch
    with tempfile.TemporaryDirectory() as build:
        shutil.copy(compile_kernels(Path(found.submodule_search_locations[0]), Path(build)), arguments.out)
    print(f"{arguments.out}: copy it to gsplat/csrc.so of the other machine")
    return 0


if __name__ == "__main__":
    sys.exit(main())
