"""Small objects in every form that training reads."""

import io
import tarfile
from pathlib import Path

import numpy as np
import OpenEXR

from training.data.parquet_store import write_parquet
from training.data.procedural.synthetic import synthetic_object
from training.data.record import DEPTH_RANGE, U16_MAX, PackedViews, encode_record
from training.data.tar_store import write_tar

SIDE = 24
COUNT = 6
VIEWS = tuple(range(40))
FORMS = ("flat folder", "gobjaverse folder", "gobjaverse tar", "webdataset", "parquet", "grouped parquet")


def uid_of(number: int) -> str:
    """GObjaverse's kind of id: group and object."""
    return f"{number % 2}/{10000 + number}"


def packed_object(number: int, side: int = SIDE) -> PackedViews:
    """All 40 views with all maps."""
    packed = synthetic_object(0, number).render_packed(VIEWS, side)
    return packed._replace(albedo=packed.rgba[..., :3], metallic_roughness=packed.rgba[..., 1:])


def caption_of(number: int) -> str:
    """The object's plainest caption."""
    return synthetic_object(0, number).caption


def records(packed: list[PackedViews], captions: bool = True) -> list[dict[str, bytes]]:
    """The objects as records."""
    return [
        encode_record(uid_of(number), views, VIEWS, [caption_of(number)] if captions else [])
        for number, views in enumerate(packed)
    ]


def write_form(form: str, root: Path, packed: list[PackedViews]) -> None:
    """The objects below `root`, in one of `FORMS`."""
    made = records(packed)
    if form == "webdataset":
        write_tar(root / "00000.tar", made[:4])
        write_tar(root / "00001.tar", made[4:])
    elif form == "parquet":
        write_parquet(root / "00000.parquet", made)
    elif form == "grouped parquet":
        write_grouped_parquet(root / "00000.parquet", made)
    elif form == "gobjaverse tar":
        for number, record in enumerate(made):
            write_gobjaverse_tar(root / f"{uid_of(number)}.tar", record)
    else:
        for number, record in enumerate(made):
            write_folder(root / uid_of(number), record if form == "flat folder" else gobjaverse_files(record))


def write_grouped_parquet(path: Path, made: list[dict[str, bytes]]) -> None:
    """Several rows in one row group, as the published files have."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for record in made for name in record))
    columns = {name: [record.get(name) for record in made] for name in names}
    columns["__key__"] = [key.decode() for key in columns["__key__"]]
    parquet.write_table(pa.table(columns), path, row_group_size=3)


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Files by their path below the folder."""
    for name, data in files.items():
        if name not in ("__key__", "uid"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def write_gobjaverse_tar(path: Path, record: dict[str, bytes]) -> None:
    """An archive as GObjaverse publishes it, one per object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in gobjaverse_files(record).items():
            info = tarfile.TarInfo(f"{path.stem}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def gobjaverse_files(record: dict[str, bytes]) -> dict[str, bytes]:
    """Path -> content as in GObjaverse: a folder per view, normals and depth as floats."""
    files = {}
    for name, data in record.items():
        if name in ("__key__", "uid", "txt"):
            continue
        if name.endswith("_nd.png"):
            name, data = name.replace(".png", ".exr"), exr_of(data)
        files[f"campos_512_v4/{name[:5]}/{name}"] = data
    return files


def exr_of(png: bytes) -> bytes:
    """The values of a 16-bit PNG as an EXR file."""
    import cv2

    codes = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]].astype(np.float64)
    values = np.concatenate([codes[..., :3] / U16_MAX * 2 - 1, codes[..., 3:] / U16_MAX * DEPTH_RANGE], axis=-1)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    channels = {name: np.ascontiguousarray(values[..., place], np.float32) for place, name in enumerate("RGBA")}
    stream = io.BytesIO()
    OpenEXR.File(header, channels).write(stream)
    return stream.getvalue()
