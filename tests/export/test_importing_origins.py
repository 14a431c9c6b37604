"""Checkpoints as people have them: clones without LFS, the hub's cache, byte order marks, models that are gone."""

import codecs
import dataclasses
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from diffsplat.bundle import Bundle
from diffsplat.text.official_tokenizers import official_tokenizer_json
from export.importing.hub import open_origin
from export.importing.importer import ImportOptions, import_bundle
from export.importing.layout import SourceError
from tests.official import iteration_folder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb\nsize 12345\n"
REVISION, OLDER = "8f3ac9d2", "1b2c3d4e"


@pytest.mark.parametrize(
    "file",
    [
        lambda o: iteration_folder(Path(o.source), "gsvae") / "model.safetensors",
        lambda o: Path(o.base) / "text_encoder" / "model.safetensors",
        lambda o: Path(o.base) / "tokenizer" / "vocab.json",
    ],
    ids=["weights", "text encoder", "tokenizer"],
)
def test_a_git_lfs_pointer_is_named_as_one(options: ImportOptions, file) -> None:
    path = file(options)
    if not path.exists():  # sharded
        path = min(path.parent.glob("*.safetensors"))
    path.write_bytes(POINTER)
    with pytest.raises(SourceError, match=f"^{path}: a Git LFS pointer, not the file itself; .*`git lfs pull`"):
        import_bundle(options)
    assert not options.out.exists()


def in_cache(folder: Path, name: str, cache: Path) -> Path:
    """Move a folder to where the hub's client keeps a snapshot: files are links to blobs."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / REVISION
    shutil.move(folder, snapshot)
    (root / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        blob = root / "blobs" / f"{number:040d}"
        path.rename(blob)
        path.symlink_to(blob)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(REVISION)
    return root


def test_the_root_of_a_cached_repository_leads_to_its_snapshot(options: ImportOptions, tmp_path: Path) -> None:
    base = in_cache(Path(options.base), "owner/base-model", tmp_path / "hub")
    (base / "snapshots" / OLDER).mkdir()  # an older revision, which refs/main no longer names
    bundle = import_bundle(dataclasses.replace(options, base=str(base)))
    assert bundle.lineage["imported_from"]["base"] == {"repository": "owner/base-model", "revision": REVISION}
    with pytest.raises(SourceError, match="the cache of the hub; .* as --base: models--owner--base-model"):
        open_origin(str(tmp_path / "hub"), "--base")


def test_snapshots_that_refs_do_not_choose_between_are_listed(options: ImportOptions, tmp_path: Path) -> None:
    base = in_cache(Path(options.base), "owner/base", tmp_path / "hub")
    (base / "refs" / "main").unlink()
    assert open_origin(str(base)).names()  # the only one
    (base / "snapshots" / OLDER).mkdir()
    with pytest.raises(SourceError, match=f"without a snapshot for refs/main; .* which has: {OLDER}, {REVISION}"):
        open_origin(str(base))


def test_an_incomplete_download_is_named(options: ImportOptions, tmp_path: Path) -> None:
    base = in_cache(Path(options.base), "owner/base", tmp_path / "hub")
    path = base / "snapshots" / REVISION / "tokenizer" / "vocab.json"
    path.resolve().unlink()
    with pytest.raises(SourceError, match=f"^{path}: a link to .*, which is missing: the download is incomplete"):
        import_bundle(dataclasses.replace(options, base=str(base)))


def test_a_byte_order_mark_in_json_does_not_matter(options: ImportOptions) -> None:
    files = [path for root in (options.source, options.base) for path in Path(root).rglob("*.json")]
    marked = [path for path in files if path.name.endswith(("config.json", ".index.json"))]
    for path in marked:
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert {"text_encoder", "unet_ema"} <= {path.parent.name for path in marked}
    import_bundle(options)


def test_a_byte_order_mark_in_a_tokenizer_does_not_matter(tiny_bundle: Bundle, tmp_path: Path) -> None:
    text = tiny_bundle.tokenizer_paths[0].read_text()
    (tmp_path / "tokenizer.json").write_bytes(codecs.BOM_UTF8 + text.encode())
    assert official_tokenizer_json(tmp_path, "clip") == text


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for a repository that is gone, or that has conditions."""

    def do_GET(self) -> None:
        gated = "conditions" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub's own client speaks to a server of ours."""
    import huggingface_hub

    server = HTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (
            "runwayml/stable-diffusion-v1-5",
            "no such repository on the hub: .*give stable-diffusion-v1-5/stable-diffusion-v1-5, .* as --base",
        ),
        ("owner/gone", "no such repository on the hub: removed, renamed, .* a local folder .* as --base"),
        ("owner/conditions", "has conditions on the hub; accept them .*`hf auth login`.* as --base"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_a_base_model_that_is_gone_from_the_hub(options: ImportOptions, base: str, said: str) -> None:
    with pytest.raises(SourceError, match=f"^{base}: {said}"):
        import_bundle(dataclasses.replace(options, base=base))
